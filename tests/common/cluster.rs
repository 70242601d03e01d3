//! A real Redis Cluster on this machine.

use redis::aio::MultiplexedConnection;

use super::{RedisServer, place, spawn, until};

pub const PASSWORD: &str = "hunter2";
const SLOTS: usize = 16_384;

/// Three primaries with a third of the slots each, and as many replicas of the second as were asked for.
pub struct Cluster {
    pub nodes: Vec<RedisServer>,
    ids: Vec<String>,
}

impl Cluster {
    pub async fn start(replicas: usize) -> Self {
        let mut cluster = Self { nodes: Vec::new(), ids: Vec::new() };
        for _ in 0..3 + replicas {
            let node = node();
            let mut redis = connection(&node).await;
            cluster.ids.push(redis::cmd("CLUSTER").arg("MYID").query_async(&mut redis).await.unwrap());
            cluster.nodes.push(node);
        }
        for place in 0..cluster.nodes.len() {
            let mut redis = cluster.connection(place).await;
            // Without one each, the nodes first have to settle whose word on the slots is the newest.
            let epoch = ["SET-CONFIG-EPOCH".to_owned(), (place + 1).to_string()];
            let _: () = redis::cmd("CLUSTER").arg(&epoch).query_async(&mut redis).await.unwrap();
            if place < 3 {
                let slots: Vec<usize> = (place * SLOTS / 3..(place + 1) * SLOTS / 3).collect();
                let _: () = redis::cmd("CLUSTER").arg("ADDSLOTS").arg(slots).query_async(&mut redis).await.unwrap();
            }
            let first = cluster.nodes[0].port();
            let _: () =
                redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(first).query_async(&mut redis).await.unwrap();
        }
        for place in 0..cluster.nodes.len() {
            until("the nodes know each other", async || {
                let info = cluster.info(place).await;
                info.contains("cluster_state:ok")
                    && info.contains("cluster_slots_ok:16384")
                    && info.contains(&format!("cluster_known_nodes:{}", cluster.nodes.len()))
            })
            .await;
        }
        for place in 3..cluster.nodes.len() {
            let mut redis = cluster.connection(place).await;
            let _: () =
                redis::cmd("CLUSTER").arg("REPLICATE").arg(&cluster.ids[1]).query_async(&mut redis).await.unwrap();
            until("the replica has followed", async || {
                let info: String = redis::cmd("INFO").arg("replication").query_async(&mut redis).await.unwrap();
                info.contains("master_link_status:up")
            })
            .await;
        }
        cluster
    }

    pub fn url(&self, place: usize) -> String {
        url(&self.nodes[place])
    }

    pub async fn connection(&self, place: usize) -> MultiplexedConnection {
        connection(&self.nodes[place]).await
    }

    pub async fn info(&self, place: usize) -> String {
        redis::cmd("CLUSTER").arg("INFO").query_async(&mut self.connection(place).await).await.unwrap()
    }

    pub async fn slot(&self, key: &str) -> usize {
        redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query_async(&mut self.connection(2).await).await.unwrap()
    }

    /// Which of the three primaries has this slot, as the cluster was started.
    pub fn place(slot: usize) -> usize {
        (0..3).find(|place| slot < (place + 1) * SLOTS / 3).unwrap()
    }

    /// A UID whose keys are on the node at `place`.
    pub async fn uid(&self, place: usize) -> String {
        for n in 0.. {
            let uid = format!("{place}c1e-{n}");
            if Self::place(self.slot(&uid).await) == place {
                return uid;
            }
        }
        unreachable!()
    }

    /// Says `CLUSTER SETSLOT slot what id-of-node` at the node at `place`.
    pub async fn set_slot(&self, place: usize, slot: usize, what: &str, node: usize) {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SETSLOT").arg(slot).arg(what).arg(&self.ids[node]);
        let _: () = command.query_async(&mut self.connection(place).await).await.unwrap();
    }

    /// Moves these keys between two nodes, as a resharding does.
    pub async fn migrate(&self, from: usize, to: usize, keys: &[String]) {
        let mut command = redis::cmd("MIGRATE");
        command.arg("127.0.0.1").arg(self.nodes[to].port()).arg("").arg(0).arg(5_000);
        command.arg("AUTH").arg(PASSWORD).arg("KEYS").arg(keys);
        let _: () = command.query_async(&mut self.connection(from).await).await.unwrap();
    }
}

fn url(node: &RedisServer) -> String {
    format!("redis://:{PASSWORD}@127.0.0.1:{}", node.port())
}

async fn connection(node: &RedisServer) -> MultiplexedConnection {
    redis::Client::open(url(node)).unwrap().get_multiplexed_async_connection().await.unwrap()
}

fn node() -> RedisServer {
    for _ in 0..100 {
        let (port, dir) = place();
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500"];
        let more = ["--cluster-require-full-coverage", "no", "--requirepass", PASSWORD, "--masterauth", PASSWORD];
        // The nodes talk to each other on the port that is 10,000 above.
        if port < 55_000
            && let Some(child) = spawn(port, &dir, &[&options[..], &more].concat())
        {
            return RedisServer { child, port, dir };
        }
        let _ = std::fs::remove_dir_all(&dir);
    }
    panic!("no node of a cluster started on any of 100 ports");
}
