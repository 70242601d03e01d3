//! Ledgers as companies have them: a Redis Cluster, one behind a Sentinel that promotes another, one with TLS, a CA of its own
//! and the ACL user of the docs. The operator and a LiteLLM process find it by the same Secret.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::checks::{delete_within, manifest, until_attached};
use super::fleet::{Fleet, until, until_async};
use super::ports::free_port;
use super::redis::{ask, connect_to, serve};
use super::rig::Rig;

/// A LiteLLM process has to start, three at once on two cores.
const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(20);

/// A Sentinel sees a loss after a second and has some seconds to promote; the operator and the agent then look again.
const PROMOTED: Duration = Duration::from_secs(40);

const PASSWORD: &str = "hunter3";

const SLOTS: u32 = 16_384;

/// The Deployments, one with each kind of ledger, which start while other checks run.
pub struct Ledgers<'a> {
    rig: &'a Rig,
    kinds: Vec<Kind>,
}

/// A kind of ledger: the name of its Secret, Deployment and TokenBudget, and where it is.
struct Kind {
    name: &'static str,
    url: String,
    ca: Option<String>,
    servers: Vec<Server>,
    /// Held until the end.
    _sentinel: Option<Server>,
}

/// A server that ends with this.
struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Ledgers<'a> {
    /// Starts the servers, and the Deployments with their TokenBudgets.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(rig: &'a Rig) -> Result<Self> {
        let mut kinds = vec![cluster(rig).await?, sentinel(rig).await?];
        if rig.paths.redis_tls_server().exists() {
            kinds.push(tls(rig).await?);
        } else {
            println!("check: left out, as e2e/prepare redis-tls found no redis-server with TLS: a ledger by TLS");
        }
        let fleet = Fleet::of(rig);
        for kind in &kinds {
            rig.redis_secret_with_ca(kind.name, &kind.url, kind.ca.as_deref())?;
            fleet.copy_plain(kind.name, |deployment| deployment["spec"]["replicas"] = 0.into())?;
            let spec = format!(
                "targetRefs: [{{name: {name}}}]\n  redis: {{urlSecretRef: {{name: {name}, key: url}}}}\n  \
                 limits: [{{name: a, models: [{{modelName: gpt-4o}}], tokensPerMinute: 600}}]",
                name = kind.name
            );
            rig.apply_text(&manifest(kind.name, &spec))?;
        }
        for kind in &kinds {
            until_attached(&fleet, kind.name).await?;
            rig.kubectl(&["-n", "llm", "scale", &format!("deployment/{}", kind.name), "--replicas=1"])?;
        }
        Ok(Self { rig, kinds })
    }

    /// Waits until each Deployment's process enforces, has the Sentinel promote, and takes all of it away.
    ///
    /// # Errors
    /// When it does not in time, or leaves a key behind.
    pub async fn until_enforced(mut self) -> Result<()> {
        let fleet = Fleet::of(self.rig);
        for kind in &self.kinds {
            until(&format!("the pod of {} enforces", kind.name), BOOT, || {
                let rows = fleet.get("tokenbudget", kind.name)?["status"]["pods"].as_array().cloned();
                Ok(rows.is_some_and(|rows| rows.len() == 1 && rows[0]["state"] == "Enforcing"))
            })
            .await?;
            fleet.until_condition(kind.name, "LedgerReachable", "True", None, SOON).await?;
            println!("check: with a ledger of kind {} a pod enforces", kind.name);
        }
        self.promotes().await?;
        for kind in &self.kinds {
            delete_within(self.rig, kind.name, Duration::from_secs(30))?;
            for object in ["deployment", "secret"] {
                self.rig.kubectl(&["-n", "llm", "delete", object, kind.name])?;
            }
            ensure!(kind.keys().await? <= 1, "more than the last word to its members is left in {}", kind.name);
        }
        Ok(())
    }

    /// The primary ends: both sides go on at the server that the Sentinel promotes.
    async fn promotes(&mut self) -> Result<()> {
        let kind = self.kinds.iter_mut().find(|kind| kind.name == SENTINEL).context("there is no Sentinel")?;
        drop(kind.servers.remove(0));
        let started = std::time::Instant::now();
        loop {
            // Both call scripts; what a replica gets from its primary are the scripts' effects. Promoted, it closes all connections.
            let clients = kind.servers[0].tell("CLIENT LIST").await.unwrap_or_default();
            if clients.lines().filter(|client| client.contains(" cmd=evalsha")).count() >= 2 {
                break;
            }
            ensure!(started.elapsed() < PROMOTED, "who calls the promoted server: {clients}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // What the former primary lent at the end may be missing here, so nothing is lent for a while.
        Fleet::of(self.rig).until_condition(SENTINEL, "LedgerReachable", "False", Some("Learning"), SOON).await?;
        println!(
            "check: {:.1} s after a primary's end the operator and the agent call the server that the Sentinel promoted, which learns",
            started.elapsed().as_secs_f32()
        );
        Ok(())
    }
}

impl Kind {
    /// How many keys are in its servers, but for those that we cannot ask without TLS.
    async fn keys(&self) -> Result<u64> {
        let mut keys = 0;
        for server in self.servers.iter().filter(|server| server.url.starts_with("redis://")) {
            keys += ask::<u64>(&mut connect_to(&server.url).await?, "DBSIZE").await?;
        }
        Ok(keys)
    }
}

const CLUSTER: &str = "redis-cluster";
const SENTINEL: &str = "redis-sentinel";
const TLS: &str = "redis-tls";

/// A server that wants a password.
async fn server(rig: &Rig, part: &str, more: &[&str]) -> Result<Server> {
    let port = free_port()?;
    let options = ["--requirepass", PASSWORD, "--masterauth", PASSWORD];
    let child = serve(&rig.paths, &format!("{part}-{port}"), port, &[&options[..], more].concat())?;
    let server = Server { child, url: format!("redis://:{PASSWORD}@127.0.0.1:{port}") };
    until("the server listens", SOON, || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())).await?;
    Ok(server)
}

impl Server {
    fn port(&self) -> &str {
        self.url.rsplit(':').next().unwrap_or_default()
    }

    async fn tell(&self, line: &str) -> Result<String> {
        ask(&mut connect_to(&self.url).await?, line).await
    }
}

/// Three nodes with a third of the slots each; the URL names one of them.
async fn cluster(rig: &Rig) -> Result<Kind> {
    let mut servers: Vec<Server> = Vec::new();
    for n in 0..3 {
        let config = format!("nodes-{n}.conf");
        let node = server(rig, CLUSTER, &["--cluster-enabled", "yes", "--cluster-config-file", &config]).await?;
        node.tell(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1)).await?;
        node.tell(&format!("CLUSTER ADDSLOTSRANGE {} {}", n * SLOTS / 3, (n + 1) * SLOTS / 3 - 1)).await?;
        if let Some(first) = servers.first() {
            node.tell(&format!("CLUSTER MEET 127.0.0.1 {}", first.port())).await?;
        }
        servers.push(node);
    }
    for node in &servers {
        let whole = async || Ok(node.tell("CLUSTER INFO").await?.contains("cluster_state:ok"));
        until_async("the nodes come together", SOON, whole).await?;
    }
    Ok(Kind { name: CLUSTER, url: servers[0].url.clone(), ca: None, servers, _sentinel: None })
}

/// A primary, its replica, and a Sentinel that watches them.
async fn sentinel(rig: &Rig) -> Result<Kind> {
    let primary = server(rig, SENTINEL, &[]).await?;
    let replica = server(rig, SENTINEL, &["--replicaof", &format!("127.0.0.1 {}", primary.port())]).await?;
    let config = rig.paths.dir.join("sentinel.conf");
    let lines = format!(
        "sentinel monitor ledger 127.0.0.1 {} 1\nsentinel auth-pass ledger {PASSWORD}\n\
         sentinel down-after-milliseconds ledger 1000\nsentinel failover-timeout ledger 5000\n",
        primary.port()
    );
    fs::write(&config, lines)?;
    let port = free_port()?;
    let mut command = Command::new(rig.paths.redis_server());
    command.arg(&config).args(["--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--set-proc-title", "no"]);
    let watch = Server { child: rig.paths.start(SENTINEL, command)?, url: format!("redis://127.0.0.1:{port}") };
    until("the Sentinel listens", SOON, || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())).await?;
    // Its line of the primary: `...,status=ok,address=127.0.0.1:6379,slaves=1,...`
    let knows = async || Ok(watch.tell("INFO sentinel").await?.contains(",slaves=1"));
    until_async("the Sentinel knows the replica", SOON, knows).await?;
    let url = format!("redis+sentinel://:{PASSWORD}@127.0.0.1:{port}/ledger");
    Ok(Kind { name: SENTINEL, url, ca: None, servers: vec![primary, replica], _sentinel: Some(watch) })
}

/// A server that listens for TLS only, has nobody but the ACL user of `docs/operations.md`, and a certificate of a CA of its own.
async fn tls(rig: &Rig) -> Result<Kind> {
    let page = fs::read_to_string(rig.paths.root.join("docs/operations.md"))?;
    let rule = page.lines().find_map(|line| line.strip_prefix("ACL SETUSER ")).context("the docs have no ACL")?;
    let dir = rig.paths.dir.join(TLS);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\n")?;
    let openssl = |line: &str| -> Result<()> {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(&dir).output().context("openssl")?;
        ensure!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -subj /CN=ours -keyout ca.key -out ca.crt"))?;
    openssl(&format!("req {key} -subj /CN=redis -keyout tls.key -out tls.csr"))?;
    openssl("x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -in tls.csr -out tls.crt")?;
    let port = free_port()?;
    let lines = format!(
        "port 0\ntls-port {port}\nbind 127.0.0.1\ntls-cert-file tls.crt\ntls-key-file tls.key\ntls-ca-cert-file ca.crt\n\
         tls-auth-clients no\nsave \"\"\nset-proc-title no\nuser default off\nuser {}\n",
        rule.replace("PASSWORD", PASSWORD)
    );
    fs::write(dir.join("redis.conf"), lines)?;
    let mut command = Command::new(rig.paths.redis_tls_server());
    command.arg("redis.conf").current_dir(&dir);
    let url = format!("rediss://tokenbudget:{PASSWORD}@127.0.0.1:{port}");
    let server = Server { child: rig.paths.start(TLS, command)?, url: url.clone() };
    until("the server listens", SOON, || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())).await?;
    let ca = Some(fs::read_to_string(dir.join("ca.crt"))?);
    Ok(Kind { name: TLS, url, ca, servers: vec![server], _sentinel: None })
}
