//! What a process has open, by whom its connections are with.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;

/// In `/proc/net/tcp`: the other side has closed, this one has not (`CLOSE_WAIT`). A pool of connections leaves one so until
/// it takes it out again.
const CLOSE_WAIT: &str = "08";

const CLOSED: &str = "connections that the other side has closed";
const UNCONNECTED: &str = "sockets without a connection";

/// The kinds that nobody can use any more.
pub const DEAD: [&str; 2] = [CLOSED, UNCONNECTED];

/// How many of each kind, of a process: connections to these ports, other connections (those of its own clients too), those that
/// the other side has closed or that are dead, and the rest.
///
/// # Errors
/// When the process is gone.
pub fn of(process: &str, servers: &[(&'static str, u16)]) -> Result<BTreeMap<&'static str, usize>> {
    let connections: BTreeMap<String, Connection> = ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/{process}/net/{table}")).ok())
        .flat_map(|text| text.lines().skip(1).filter_map(connection).collect::<Vec<_>>())
        .collect();
    let mut open = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{process}/fd"))?.flatten() {
        // One that is closed meanwhile is none.
        let Ok(target) = fs::read_link(file.path()) else { continue };
        *open.entry(kind(&target.to_string_lossy(), &connections, servers)).or_default() += 1;
    }
    Ok(open)
}

fn kind(target: &str, connections: &BTreeMap<String, Connection>, servers: &[(&'static str, u16)]) -> &'static str {
    let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) else {
        return if target.starts_with('/') { "files" } else { "pipes and events" };
    };
    match connections.get(inode) {
        Some(Connection { remote: 0, .. }) => "listening",
        Some(Connection { is_closed: true, .. }) => CLOSED,
        Some(Connection { remote, .. }) => {
            servers.iter().find(|(_, port)| port == remote).map_or("other connections", |(name, _)| name)
        }
        None => UNCONNECTED,
    }
}

/// A TCP socket.
struct Connection {
    /// Port of the other side; 0 of one that listens.
    remote: u16,
    /// Whether the other side has closed it.
    is_closed: bool,
}

/// The inode and the connection of a line of `/proc/net/tcp`.
fn connection(line: &str) -> Option<(String, Connection)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let connection = Connection { remote: port(fields.get(2)?)?, is_closed: *fields.get(3)? == CLOSE_WAIT };
    Some((fields.get(9)?.to_string(), connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_told_apart_by_whom_they_are_with() {
        let line = |state: &str, inode: &str| {
            connection(&format!("2: 0100007F:9C40 0100007F:18EB {state} 00000000:00000000 00:0 0 1000 0 {inode} 1 0"))
                .unwrap()
        };
        let connections = BTreeMap::from([line("01", "4711"), line("08", "4712")]);
        assert_eq!(connections["4711"].remote, 6379);
        let kinds = ["socket:[4711]", "socket:[4712]", "socket:[1]", "/dev/null", "anon_inode:[eventpoll]"];
        let found = kinds.map(|target| kind(target, &connections, &[("redis", 6379)]));
        assert_eq!(found, ["redis", CLOSED, UNCONNECTED, "files", "pipes and events"]);
    }

    #[test]
    fn what_this_process_has_open_is_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let before = of("self", &[("here", port)]).unwrap();
        let streams: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        let after = of("self", &[("here", port)]).unwrap();
        assert_eq!((before.get("here"), after["here"]), (None, 3));
        drop(streams);
    }
}
