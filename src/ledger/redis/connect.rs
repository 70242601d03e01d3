//! The connections: to the server that the URL names or its Sentinels know, and in a Redis Cluster to the nodes that it sends
//! callers on to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ConnectionAddr, ErrorKind, RedisError, RedisResult, ServerErrorKind};

use super::Timeouts;
use super::address::{Address, FixedText};
use super::sentinel::primary;
use crate::ledger::error::LedgerError;

/// A cluster of one slot per TokenBudget needs no map of its slots: a node that does not hold the slot says which one does
/// (`MOVED`), and all keys of the TokenBudget are there. So a plain server and a cluster take the same URL.
pub(super) struct Nodes {
    address: Address,
    timeouts: Timeouts,
    known: Mutex<Known>,
}

/// What is known of the servers. Names are `host:port`.
struct Known {
    /// Whom to ask where a TokenBudget is: the URL's server, or another one while that is away; the primary of the Sentinels,
    /// until it fails.
    entry: Option<String>,
    /// The node that a TokenBudget's keys are on, by UID, where the entry said so.
    homes: HashMap<String, String>,
    open: HashMap<String, (u64, ConnectionManager)>,
    /// How many connections were made.
    made: u64,
}

/// The way of one command.
#[derive(Clone)]
pub(super) struct Route {
    node: String,
    made: u64,
    pub(super) connection: ConnectionManager,
}

impl Nodes {
    /// Nothing is sent yet. Needs a tokio runtime.
    pub(super) fn new(address: Address, timeouts: Timeouts) -> Result<Self, LedgerError> {
        let known = Known { entry: None, homes: HashMap::new(), open: HashMap::new(), made: 0 };
        let nodes = Self { address, timeouts, known: Mutex::new(known) };
        // What the client has against the URL is said now.
        let invalid = |error: RedisError| LedgerError::InvalidUrl { problem: error.kind_text() };
        manager(&nodes.address.server, timeouts).map_err(invalid)?;
        Ok(nodes)
    }

    /// The server that the URL names, or the Sentinels' name for it.
    pub(super) fn named(&self) -> String {
        self.address.named()
    }

    pub(super) fn passwords(&self) -> impl Iterator<Item = &str> {
        self.address.passwords()
    }

    /// The way to the TokenBudget with this UID, as far as it is known; Sentinels are asked where nothing is.
    pub(super) async fn route(&self, uid: &str) -> RedisResult<Route> {
        let entry = self.known().entry.clone();
        let entry = match entry {
            Some(entry) => entry,
            None if self.address.sentinels.is_empty() => self.own(),
            None => primary(&self.address.sentinels, &self.address.service, self.timeouts).await?,
        };
        let mut known = self.known();
        let entry = known.entry.get_or_insert(entry).clone();
        let node = known.homes.get(uid).cloned().unwrap_or(entry);
        if let Some((made, connection)) = known.open.get(&node) {
            return Ok(Route { made: *made, connection: connection.clone(), node });
        }
        let connection = self.connect(&node)?;
        known.made += 1;
        let made = known.made;
        known.open.insert(node.clone(), (made, connection.clone()));
        Ok(Route { node, made, connection })
    }

    /// Whether `error` sends the caller on to another node; [`route`](Self::route) leads there then. Nothing was done.
    pub(super) fn follow(&self, uid: &str, route: &Route, error: &RedisError) -> bool {
        if error.kind() != ErrorKind::Server(ServerErrorKind::Moved) {
            return false;
        }
        let Some(node) = error.redirect_node().and_then(|(to, _)| target(to, &route.node)) else {
            return false;
        };
        self.known().homes.insert(uid.to_owned(), node);
        true
    }

    /// The connection manager mends a broken connection only after some errors: not after a time-out, a wrong password, or
    /// while the server loads. So it is replaced after every failure. In a cluster, the slot may be elsewhere by now.
    pub(super) fn failed(&self, uid: &str, route: &Route) {
        let mut known = self.known();
        known.homes.remove(uid);
        if known.open.get(&route.node).is_some_and(|(made, _)| *made == route.made) {
            known.open.remove(&route.node);
        }
        if known.entry.as_ref() != Some(&route.node) {
            return;
        }
        known.entry = None;
        if self.address.sentinels.is_empty() && route.node == self.own() {
            // Any other node of a cluster can tell, and next time it is the URL's turn again.
            known.entry = known.open.keys().next().cloned();
        }
    }

    /// The TokenBudget with this UID is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.known().homes.remove(uid);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server that the URL names itself.
    fn own(&self) -> String {
        self.address.server.get_connection_info().addr().to_string()
    }

    fn connect(&self, node: &str) -> RedisResult<ConnectionManager> {
        if self.address.sentinels.is_empty() && node == self.own() {
            return manager(&self.address.server, self.timeouts);
        }
        let info = self.address.server.get_connection_info();
        let (host, port) = node.rsplit_once(':').unwrap_or_default();
        let (host, port) = (host.to_owned(), port.parse().unwrap_or_default());
        let addr = match info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        manager(&Client::open(info.clone().set_addr(addr))?, self.timeouts)
    }
}

/// The node that `MOVED <slot> <to>` names, as seen from `from`. A node that does not know its own name leaves the host out.
fn target(to: &str, from: &str) -> Option<String> {
    let (host, port) = to.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = if host.is_empty() { from.rsplit_once(':')?.0 } else { host };
    (host != "?").then(|| format!("{host}:{port}"))
}

fn manager(client: &Client, timeouts: Timeouts) -> RedisResult<ConnectionManager> {
    // One attempt: who asks tries again at the next tick, and hears the reason now.
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(timeouts.connect))
        .set_response_timeout(Some(timeouts.response))
        .set_number_of_retries(0);
    client.get_connection_manager_lazy(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_sent_on_to_by_name_address_or_port_alone() {
        for (to, node) in [
            ("10.0.0.7:6379", Some("10.0.0.7:6379")),
            ("redis-1.redis:6380", Some("redis-1.redis:6380")),
            ("fd00::7:6379", Some("fd00::7:6379")),
            (":6380", Some("redis-0:6380")),
            ("?:6379", None),
            ("redis-1", None),
            ("redis-1:port", None),
        ] {
            assert_eq!(target(to, "redis-0:6379").as_deref(), node, "{to}");
        }
    }

    #[tokio::test]
    async fn while_the_named_server_is_away_another_node_is_asked() {
        let nodes = Nodes::new(Address::read("redis://redis-0:1", None).unwrap(), Timeouts::default()).unwrap();
        let first = nodes.route("a").await.unwrap();
        nodes.failed("a", &first);
        assert_eq!(nodes.route("a").await.unwrap().node, "redis-0:1", "a plain server is the only one");
        nodes.known().homes.insert("b".into(), "redis-1:1".into());
        assert_eq!(nodes.route("b").await.unwrap().node, "redis-1:1");
        let first = nodes.route("a").await.unwrap();
        nodes.failed("a", &first);
        let other = nodes.route("a").await.unwrap();
        assert_eq!(other.node, "redis-1:1");
        nodes.failed("a", &other);
        assert_eq!(nodes.route("a").await.unwrap().node, "redis-0:1");
    }
}
