//! What lies between the processes and Redis: a relay that can be slow, or closed to one process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::process::Process;
use crate::scenario::rig::Rig;

/// The most pieces of an answer that are on their way.
const ON_THE_WAY: usize = 1024;

/// How much later answers of a slow Redis arrive.
const LATE_MS: u64 = 200;

/// Relays to the rig's Redis. The processes that start from now on go through it, and so does the operator.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub port: u16,
    ways: Arc<Ways>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Ways {
    /// How much later an answer arrives, in milliseconds.
    late_ms: AtomicU64,
    /// Whose packets are lost.
    cut: watch::Sender<Option<Process>>,
}

impl Relay {
    /// Starts one, and names it in the ConfigMap from which the fleet has its Redis.
    ///
    /// # Errors
    /// When it cannot listen, or the ConfigMap is not there.
    pub async fn start(rig: &Rig) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        name_redis(rig, port)?;
        let ways = Arc::new(Ways { late_ms: AtomicU64::new(0), cut: watch::channel(None).0 });
        let redis = format!("127.0.0.1:{}", rig.redis_port()?);
        let task = tokio::spawn(accept(listener, redis, Arc::clone(&ways))).abort_handle();
        Ok(Self { port, ways, task })
    }

    /// Answers arrive 200 ms later for so long.
    pub async fn late(&self, time: Duration) {
        self.ways.late_ms.store(LATE_MS, Ordering::Relaxed);
        sleep(time).await;
        self.ways.late_ms.store(0, Ordering::Relaxed);
    }

    /// Nothing arrives from this process, or at it, for so long. What it sent arrives then.
    pub async fn cut_off(&self, process: Process, time: Duration) {
        self.ways.cut.send_replace(Some(process));
        sleep(time).await;
        self.ways.cut.send_replace(None);
    }
}

/// Names this port in the ConfigMap from which the fleet has its Redis: for the processes that start from now on.
///
/// # Errors
/// When the ConfigMap is not there.
pub fn name_redis(rig: &Rig, port: u16) -> Result<()> {
    let patch = json!({"data": {"REDIS_PORT": port.to_string()}}).to_string();
    rig.kubectl(&["-n", "llm", "patch", "configmap", "local", "-p", &patch]).map(drop)
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, redis: String, ways: Arc<Ways>) {
    while let Ok((client, peer)) = listener.accept().await {
        let (ways, redis) = (Arc::clone(&ways), redis.clone());
        tokio::spawn(async move {
            // A Redis that is not there refuses, and the client learns it by the end of its connection.
            let Ok(server) = TcpStream::connect(redis).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let up = tokio::spawn(relay(from_client, to_server, peer.port(), Arc::clone(&ways), false));
            relay(from_server, to_client, peer.port(), ways, true).await;
            up.abort();
        });
    }
}

/// One direction of a connection, to its end.
async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, port: u16, ways: Arc<Ways>, answers: bool) {
    let (send, mut receive) = mpsc::channel::<(Instant, Bytes)>(ON_THE_WAY);
    let reader = async {
        let mut buffer = BytesMut::with_capacity(1 << 16);
        while from.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
            let late = if answers { ways.late_ms.load(Ordering::Relaxed) } else { 0 };
            let due = Instant::now() + Duration::from_millis(late);
            if send.send((due, buffer.split().freeze())).await.is_err() {
                return;
            }
        }
        drop(send);
    };
    let writer = async {
        let mut cut = ways.cut.subscribe();
        while let Some((due, piece)) = receive.recv().await {
            sleep_until(due).await;
            let until_open = |process: &Option<Process>| !process.is_some_and(|process| has_port(process, port));
            if cut.wait_for(until_open).await.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reader, writer);
}

/// So often the kernel's table is read: it is not read at once, and a row can be missed while others come and go.
const LOOKS: usize = 10;

/// Whether this port of the loopback interface is an end of a process's connection.
fn has_port(process: Process, port: u16) -> bool {
    let root = PathBuf::from(format!("/proc/{}", process.id()));
    let local = format!("0100007F:{port:04X}");
    let inode = || {
        let table = std::fs::read_to_string(root.join("net/tcp")).unwrap_or_default();
        table.lines().find_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let inode = (fields.next() == Some(&local)).then(|| fields.nth(7))?;
            // A connection that was closed a minute ago may have had the same port; nobody has it open.
            inode.filter(|inode| *inode != "0").map(str::to_owned)
        })
    };
    let found = (0..LOOKS).find_map(|_| inode());
    let Some(socket) = found.map(|inode| format!("socket:[{inode}]")) else { return false };
    let files = std::fs::read_dir(root.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == socket.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_known_by_the_port_of_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let port = client.local_addr().unwrap().port();
        assert!(has_port(Process::myself(), port));
        drop(client);
        assert!(!has_port(Process::myself(), port));
    }

    #[tokio::test]
    async fn answers_are_late_and_a_cut_holds_them_back() {
        let (listener, echo) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (front, back) = (listener.local_addr().unwrap(), echo.local_addr().unwrap().to_string());
        let ways = Arc::new(Ways { late_ms: AtomicU64::new(150), cut: watch::channel(None).0 });
        let tasks = [
            tokio::spawn(accept(listener, back, Arc::clone(&ways))).abort_handle(),
            tokio::spawn(async move {
                let (mut stream, _) = echo.accept().await.unwrap();
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.unwrap();
            })
            .abort_handle(),
        ];
        let mut client = TcpStream::connect(front).await.unwrap();
        let mut word = [0; 4];
        let asked = Instant::now();
        client.write_all(b"ping").await.unwrap();
        client.read_exact(&mut word).await.unwrap();
        assert!(asked.elapsed() >= Duration::from_millis(150), "{:?}", asked.elapsed());
        ways.cut.send_replace(Some(Process::myself()));
        client.write_all(b"ping").await.unwrap();
        let answer = tokio::time::timeout(Duration::from_millis(300), client.read_exact(&mut word)).await;
        assert!(answer.is_err(), "a process that is cut off got an answer");
        ways.cut.send_replace(None);
        client.read_exact(&mut word).await.unwrap();
        tasks.iter().for_each(AbortHandle::abort);
    }
}
