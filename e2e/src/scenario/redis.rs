//! Commands to the rig's Redis, as one types them.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue};

use super::rig::Rig;

const DEADLINE: Duration = Duration::from_secs(5);

/// A connection on which Redis has 5 s for each answer.
///
/// # Errors
/// When there is no Redis.
pub async fn connect(rig: &Rig) -> Result<MultiplexedConnection> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
    let client = Client::open(rig.redis_url.as_str())?;
    client.get_multiplexed_async_connection_with_config(&config).await.context("the rig's Redis")
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
