//! The rig's Redis, and commands to it as one types them.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue};

use super::fleet::until_async;
use super::paths::Paths;
use super::ports::free_port;
use super::rig::Rig;

const DEADLINE: Duration = Duration::from_secs(5);

/// A connection on which Redis has 5 s for each answer.
///
/// # Errors
/// When there is no Redis.
pub async fn connect(rig: &Rig) -> Result<MultiplexedConnection> {
    connect_to(&rig.redis_url).await
}

/// [`connect`] to another server than the rig's.
///
/// # Errors
/// When there is no Redis.
pub async fn connect_to(url: &str) -> Result<MultiplexedConnection> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
    let client = Client::open(url)?;
    client.get_multiplexed_async_connection_with_config(&config).await.with_context(|| format!("Redis at {url}"))
}

/// The answer to a command whose arguments have no spaces.
///
/// # Errors
/// When Redis does not answer, or with an error, or with another type.
pub async fn ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, line: &str) -> Result<T> {
    let mut words = line.split_whitespace();
    let mut command = redis::cmd(words.next().context("an empty command")?);
    command.arg(words.collect::<Vec<_>>());
    command.query_async(redis).await.with_context(|| line.to_owned())
}

/// [`ask`] on a connection of its own.
///
/// # Errors
/// As [`connect`] and [`ask`].
pub async fn command<T: FromRedisValue>(rig: &Rig, line: &str) -> Result<T> {
    ask(&mut connect(rig).await?, line).await
}

/// A number of what INFO answered.
///
/// # Errors
/// When it is not there.
pub fn figure(info: &str, name: &str) -> Result<f64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("INFO has no {name}"))?.trim().parse()?)
}

/// Starts a server that keeps nothing on disk by itself; `more` are arguments.
///
/// # Errors
/// When it does not start.
pub fn serve(paths: &Paths, part: &str, port: u16, more: &[&str]) -> Result<Child> {
    let mut redis = Command::new(paths.redis_server());
    redis.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    // Its title would be written over its environment, by which `down` finds it.
    redis.args(["--set-proc-title", "no"]).arg("--dir").arg(&paths.dir).args(more);
    paths.start(part, redis)
}

/// A second server that follows the rig's.
pub struct Replica {
    child: Child,
    url: String,
}

const DUMP: &str = "replica.rdb";

impl Replica {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn of(rig: &Rig) -> Result<Self> {
        let port = free_port()?;
        let primary = format!("127.0.0.1 {}", rig.redis_port()?);
        let follows = ["--replicaof", &primary, "--dbfilename", DUMP];
        Ok(Self { child: serve(&rig.paths, "replica", port, &follows)?, url: format!("redis://127.0.0.1:{port}") })
    }

    /// Waits until it has all that the primary has.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn until_in_step(&self, limit: Duration) -> Result<()> {
        let follows =
            async || Ok(self.tell("INFO replication").await.is_ok_and(|info| info.contains("master_link_status:up")));
        until_async("the replica is in step", limit, follows).await.map(drop)
    }

    /// The answer to a command.
    ///
    /// # Errors
    /// When it does not answer, or with an error.
    pub async fn tell(&self, line: &str) -> Result<String> {
        ask(&mut connect_to(&self.url).await?, line).await
    }

    /// Takes the place of the rig's server, which is gone, with what it saved.
    ///
    /// # Errors
    /// When it cannot be started there.
    pub fn take_over(&mut self, rig: &Rig) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        serve(&rig.paths, "redis", rig.redis_port()?, &["--dbfilename", DUMP]).map(drop)
    }
}
