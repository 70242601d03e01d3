//! The local cluster: control plane, node, metrics-server, Redis, the provider, and the operator installed by its chart.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::Api;
use kube::api::PostParams;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::paths::{Paths, version};
use super::ports::free_port;
use super::redis;
use crate::provider::Remote;

/// As OpenShift has it: who sets or changes an owner reference needs more rights than for the object alone.
const STRICT_OWNERS: &str = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement";

/// How long the control plane may take to be ready, also on a busy machine.
const CONTROL_PLANE: Duration = Duration::from_secs(120);

/// Tokens of the provider's answers: mean and coefficient of variation.
const ANSWER: &str = "250~0.6";

/// How long the provider takes before it answers, in milliseconds.
const LATENCY_MS: &str = "300";

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "tokenbudget-system";

/// A cluster that runs.
#[derive(Clone, Debug)]
pub struct Rig {
    /// Where things are.
    pub paths: Paths,
    /// `http://127.0.0.1:port` of the provider.
    pub provider_url: String,
    /// `redis://127.0.0.1:port` of the ledger.
    pub redis_url: String,
}

impl Rig {
    /// Starts the cluster, after stopping what is left of an earlier one.
    ///
    /// # Errors
    /// When a part does not start; the text names its log.
    pub async fn up(paths: &Paths) -> Result<Self> {
        Self::up_with(paths, &[], |rig| rig.helm_install(&[])).await
    }

    /// [`Self::up`] with more flags of the API server, and the operator installed in another way.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub async fn up_with(
        paths: &Paths,
        api_server_args: &[&str],
        install: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let started = Instant::now();
        let say = |what: &str| eprintln!("up: {what} ({:.0} s)", started.elapsed().as_secs_f32());
        for (needed, from) in [
            (paths.cluster_binary(), "e2e/prepare cluster"),
            (paths.redis_server(), "e2e/prepare redis"),
            (paths.helm(), "e2e/prepare helm"),
            (paths.metrics_server(), "e2e/prepare metrics-server"),
            (paths.prometheus_operator_crds(), "e2e/prepare crds"),
            (paths.litellm(version("LITELLM_VERSION")), "e2e/prepare litellm"),
            (paths.built("tokenbudget"), "cargo build --release --workspace"),
            (paths.built("provider"), "cargo build --release --workspace"),
        ] {
            if !needed.exists() {
                bail!("{} is missing: run {from}", needed.display());
            }
        }
        Self::down(paths)?;
        fs::create_dir_all(paths.dir.join("logs"))?;
        let image_map = paths.write_image_map()?;

        say("control plane and node");
        let cluster = paths.cluster_binary();
        let mut command = Command::new(&cluster);
        command.args(["run", "--dir"]).arg(paths.state()).arg("--image-map").arg(&image_map);
        command.arg("--metrics-server").arg(paths.metrics_server());
        command.arg("--audit-policy").arg(paths.manifest("audit-policy.yaml"));
        command.args(["--api-server-arg", STRICT_OWNERS]);
        for arg in api_server_args {
            command.args(["--api-server-arg", arg]);
        }
        let mut cluster = paths.start("cluster", command)?;
        let waiting = Instant::now();
        while !paths.state().join("ready").exists() {
            if let Some(status) = cluster.try_wait()? {
                bail!("the control plane ended ({status}): see {}", paths.log("cluster").display());
            }
            if waiting.elapsed() > CONTROL_PLANE {
                bail!("the control plane is not ready: see {}", paths.state().join("logs").display());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }

        // Only now: a cluster does not start where marked processes are alive.
        let redis_port = free_port()?;
        redis::serve(paths, "redis", redis_port, &[])?;

        let provider_port = free_port()?;
        let provider_url = format!("http://127.0.0.1:{provider_port}");
        let mut provider = Command::new(paths.built("provider"));
        provider.args([
            "--listen",
            &format!("127.0.0.1:{provider_port}"),
            "--answer",
            ANSWER,
            "--latency-ms",
            LATENCY_MS,
        ]);
        paths.start("provider", provider)?;

        let rig = Self { paths: paths.clone(), provider_url, redis_url: format!("redis://127.0.0.1:{redis_port}") };
        let remote = Remote::new(&rig.provider_url)?;
        let provider_up = Instant::now();
        while remote.settings().await.is_err() {
            if provider_up.elapsed() > Duration::from_secs(10) {
                bail!("the provider did not start: see {}", paths.log("provider").display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        say("the operator, by its chart");
        paths.write_env(&rig)?;
        // It admits restricted pods only.
        rig.kubectl(&["create", "namespace", OPERATOR_NAMESPACE])?;
        rig.kubectl(&["label", "namespace", OPERATOR_NAMESPACE, "pod-security.kubernetes.io/enforce=restricted"])?;
        install(&rig)?;
        rig.kubectl(&["create", "namespace", "llm"])?;
        let (provider, port) = (format!("{}/v1", rig.provider_url), redis_port.to_string());
        let (provider, port) = (format!("PROVIDER_URL={provider}"), format!("REDIS_PORT={port}"));
        rig.kubectl(&[
            "-n",
            "llm",
            "create",
            "configmap",
            "local",
            "--from-literal",
            &provider,
            "--from-literal",
            "REDIS_HOST=127.0.0.1",
            "--from-literal",
            &port,
        ])?;
        say("ready");
        Ok(rig)
    }

    /// Stops every process of the cluster, whatever state it is in.
    ///
    /// # Errors
    /// When the cluster's binary cannot be run.
    pub fn down(paths: &Paths) -> Result<()> {
        if paths.state().exists() && paths.cluster_binary().exists() {
            let status = Command::new(paths.cluster_binary()).args(["down", "--dir"]).arg(paths.state()).status()?;
            if !status.success() {
                bail!("tb-cluster down failed ({status})");
            }
        }
        if paths.dir.exists() {
            fs::remove_dir_all(&paths.dir).with_context(|| format!("cannot remove {}", paths.dir.display()))?;
        }
        let env = paths.root.join(".local/env");
        if env.exists() && fs::read_to_string(&env)?.contains(&*paths.dir.to_string_lossy()) {
            fs::remove_file(env)?;
        }
        Ok(())
    }

    /// Path of the cluster-admin's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.paths.state().join("kubeconfig")
    }

    /// The binary that is kubectl when its first argument says so.
    #[must_use]
    pub fn kubectl_binary(&self) -> PathBuf {
        self.paths.cluster_binary()
    }

    /// A client with the cluster-admin's rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<kube::Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Starts the ledger's server again, without data.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_redis(&self) -> Result<()> {
        redis::serve(&self.paths, "redis", self.redis_port()?, &[]).map(drop)
    }

    /// Where the ledger's server listens.
    ///
    /// # Errors
    /// When the URL has no port.
    pub fn redis_port(&self) -> Result<u16> {
        port_of(&self.redis_url)
    }

    /// The provider's books.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn provider(&self) -> Result<Remote> {
        Remote::new(&self.provider_url)
    }
}

/// The port at the end of a URL.
pub(super) fn port_of(url: &str) -> Result<u16> {
    let port = url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    port.with_context(|| format!("no port in {url}"))
}

/// Creates an object.
///
/// # Errors
/// When the API server refuses it.
pub async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: kube::Resource + DeserializeOwned + serde::Serialize + Clone + std::fmt::Debug,
    K::DynamicType: Default,
{
    let object: K = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await.context("an object could not be created")
}
