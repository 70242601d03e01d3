//! The connections: to the server that the URL names, and in a Redis Cluster to the nodes that it sends callers on to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ConnectionAddr, ErrorKind, RedisError, RedisResult, ServerErrorKind};

use super::Timeouts;
use crate::ledger::error::LedgerError;

/// A cluster of one slot per TokenBudget needs no map of its slots: a node that does not hold the slot says which one does
/// (`MOVED`), and all keys of the TokenBudget are there. So a plain server and a cluster take the same URL.
pub(super) struct Nodes {
    client: Client,
    timeouts: Timeouts,
    known: Mutex<Known>,
}

/// What is known of the servers. Names are `host:port`, or the path of a socket.
struct Known {
    /// Whom to ask where a TokenBudget is: the URL's server, or another one while that is away.
    entry: String,
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
    pub(super) fn new(url: &str, timeouts: Timeouts) -> Result<Self, LedgerError> {
        let client = open(url)?;
        let entry = client.get_connection_info().addr().to_string();
        let known = Known { entry, homes: HashMap::new(), open: HashMap::new(), made: 0 };
        let nodes = Self { client, timeouts, known: Mutex::new(known) };
        // What the client has against the URL is said now.
        nodes.route("").map_err(|error| LedgerError::InvalidUrl { problem: error.kind_text() })?;
        Ok(nodes)
    }

    /// The server that the URL names.
    pub(super) fn named(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    pub(super) fn password(&self) -> Option<&str> {
        self.client.get_connection_info().redis_settings().password().filter(|password| !password.is_empty())
    }

    /// The way to the TokenBudget with this UID, as far as it is known.
    pub(super) fn route(&self, uid: &str) -> RedisResult<Route> {
        let mut known = self.known();
        let node = known.homes.get(uid).unwrap_or(&known.entry).clone();
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
        if known.entry == route.node {
            // Any other node of a cluster can tell, and next time it is the URL's turn again.
            let named = self.named();
            let other = known.open.keys().find(|node| **node != route.node).cloned();
            known.entry = if known.entry == named { other.unwrap_or(named) } else { named };
        }
    }

    /// The TokenBudget with this UID is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.known().homes.remove(uid);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, node: &str) -> RedisResult<ConnectionManager> {
        if node == self.named() {
            return manager(&self.client, self.timeouts);
        }
        let info = self.client.get_connection_info();
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

/// Reads the URL. What the client says of a bad one may quote it, so only its fixed texts are passed on.
fn open(url: &str) -> Result<Client, LedgerError> {
    let invalid = |problem: &str| LedgerError::InvalidUrl { problem: problem.to_owned() };
    let url = url.trim();
    if url.is_empty() {
        return Err(invalid("it is empty"));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(invalid("it does not start with redis:// or rediss://"));
    };
    if !["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix", "valkey+unix"].contains(&scheme) {
        return Err(invalid("its scheme is neither redis nor rediss"));
    }
    if rest.is_empty() {
        return Err(invalid("it names no host"));
    }
    if redis::parse_redis_url(url).is_none() {
        return Err(invalid(
            "it does not parse: the port has to be a number, and special characters of user and password have to be \
             percent-encoded (%2F for /, %23 for #, %3F for ?, %40 for @)",
        ));
    }
    Client::open(url).map_err(|error| LedgerError::InvalidUrl { problem: error.kind_text() })
}

pub(super) trait FixedText {
    fn kind_text(&self) -> String;
}

impl FixedText for RedisError {
    /// The error's text without its detail.
    fn kind_text(&self) -> String {
        let text = self.to_string();
        match self.detail() {
            Some(detail) if !detail.is_empty() => text.replace(detail, "…"),
            _ => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_named_without_its_secret() {
        for (url, problem) in [
            ("", "empty"),
            (" \n", "empty"),
            ("default:hunter2@redis:6379", "redis:// or rediss://"),
            ("http://:hunter2@redis", "scheme"),
            ("redis://", "no host"),
            ("redis://:hunter2@redis:port", "port"),
            ("redis://:hunter2#more@redis:6379", "percent-encoded"),
            ("redis://:hunter2@redis:6379/cache", "database"),
            ("redis://:hunter2@redis:6379/?protocol=hunter2", "protocol"),
        ] {
            let error = open(url).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.to_lowercase().contains(problem), "{url:?}: {text}");
            assert!(!text.contains("hunter2"), "{url:?}: {text}");
        }
        assert!(open("rediss://user:p%40ss@redis.example:6380/2\n").is_ok());
    }

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
        assert_eq!(target(":6380", "/run/redis.sock"), None);
    }

    #[tokio::test]
    async fn while_the_named_server_is_away_another_node_is_asked() {
        let nodes = Nodes::new("redis://redis-0:1", Timeouts::default()).unwrap();
        let first = nodes.route("a").unwrap();
        nodes.failed("a", &first);
        assert_eq!(nodes.route("a").unwrap().node, "redis-0:1", "a plain server is the only one");
        nodes.known().homes.insert("b".into(), "redis-1:1".into());
        assert_eq!(nodes.route("b").unwrap().node, "redis-1:1");
        let first = nodes.route("a").unwrap();
        nodes.failed("a", &first);
        let other = nodes.route("a").unwrap();
        assert_eq!(other.node, "redis-1:1");
        nodes.failed("a", &other);
        assert_eq!(nodes.route("a").unwrap().node, "redis-0:1");
    }
}
