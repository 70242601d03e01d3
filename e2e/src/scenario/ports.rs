//! Free ports of this machine.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// How far above its port a node of a Redis Cluster listens for the other nodes (`cluster.h` of Redis 6.2).
const CLUSTER_BUS: u16 = 10_000;

/// From here the system takes the ports of outgoing connections (`ip_local_port_range` of Linux): one of them could have the
/// port of a server that is stopped for a while.
const OUTGOING: u16 = 32_768;

const PORTS: Range<u16> = 10_000..OUTGOING - CLUSTER_BUS;

static ASKED: AtomicU32 = AtomicU32::new(0);

/// A port nobody listens on now, nor on the one where a cluster's node would have its bus. No two calls have the same.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    let free =
        |port: &u16| [*port, *port + CLUSTER_BUS].iter().all(|&p| TcpListener::bind((Ipv4Addr::LOCALHOST, p)).is_ok());
    // Another run of ours began elsewhere.
    let place = |asked: u32| (std::process::id().wrapping_add(asked) % PORTS.len() as u32) as u16;
    let next = || PORTS.start + place(ASKED.fetch_add(1, Ordering::Relaxed));
    std::iter::repeat_with(next).take(PORTS.len()).find(free).context("no port is free")
}
