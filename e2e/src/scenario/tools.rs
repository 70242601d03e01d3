//! The programs that users have: kubectl, Helm and our own, on the rig's cluster.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::rig::{OPERATOR_NAMESPACE, Rig};

impl Rig {
    /// Runs kubectl and answers with what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(self.paths.cluster_binary())
            .arg("kubectl")
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies a manifest of `e2e/manifests`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl(&["apply", "-f", &self.paths.manifest(manifest).to_string_lossy()])
    }

    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// When it is not accepted, with the answer.
    pub fn apply_text(&self, manifest: &str) -> Result<()> {
        let (accepted, answer) = self.try_apply(&[], manifest)?;
        ensure!(accepted, "{answer}");
        Ok(())
    }

    /// [`Self::apply_text`] with more options: whether it was accepted, and what was said.
    ///
    /// # Errors
    /// When kubectl cannot be run.
    pub fn try_apply(&self, options: &[&str], manifest: &str) -> Result<(bool, String)> {
        let mut child = Command::new(self.paths.cluster_binary())
            .args(["kubectl", "apply", "-f", "-"])
            .args(options)
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("kubectl has no stdin")?.write_all(manifest.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Makes a Secret of namespace `llm` whose key `url` is the URL of a Redis.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn redis_secret(&self, name: &str, url: &str) -> Result<()> {
        self.redis_secret_with_ca(name, url, None)
    }

    /// [`Self::redis_secret`] with the certificate (PEM) of a CA in key `ca.crt`, if there is one.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn redis_secret_with_ca(&self, name: &str, url: &str, ca: Option<&str>) -> Result<()> {
        let url = format!("--from-literal=url={url}");
        let ca = ca.map(|ca| format!("--from-literal=ca.crt={ca}"));
        let mut args = vec!["-n", "llm", "create", "secret", "generic", name, &url];
        args.extend(ca.as_deref());
        self.kubectl(&args).map(drop)
    }

    /// Runs our binary as the cluster-admin, and answers with what it printed on standard output.
    ///
    /// # Errors
    /// When it fails, with all that it said.
    pub fn tokenbudget(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.paths.built("tokenbudget"));
        let output = command.args(args).env("KUBECONFIG", self.kubeconfig()).output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("tokenbudget {}: {}", args.join(" "), String::from_utf8_lossy(&said).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command as a user would, shown with what it prints.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn show(&self, args: &[&str]) -> Result<()> {
        println!("$ kubectl {}", args.join(" "));
        let text = self.kubectl(args)?;
        println!("{}", if text.trim().is_empty() { "No resources found" } else { text.trim_end() });
        Ok(())
    }

    /// The folder of our chart.
    #[must_use]
    pub fn chart(&self) -> String {
        chart_of(&self.paths.root)
    }

    /// Runs Helm.
    ///
    /// # Errors
    /// When it fails, with the state of the operator's pods and what it said.
    pub fn helm(&self, args: &[&str]) -> Result<()> {
        self.helm_output(args).map(|_| ())
    }

    /// Runs Helm and answers with what it printed.
    ///
    /// # Errors
    /// As [`Self::helm`].
    pub fn helm_output(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(self.paths.helm()).args(args).env("KUBECONFIG", self.kubeconfig()).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let pods = self.kubectl(&["-n", OPERATOR_NAMESPACE, "describe", "pods"]).unwrap_or_default();
            bail!("{pods}\nhelm {}: {}", args.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Installs or upgrades the operator by its chart, with these values.
    ///
    /// # Errors
    /// When Helm fails, with what it said.
    pub fn helm_install(&self, values: &[&str]) -> Result<()> {
        self.helm_install_from(&self.paths.root, values)
    }

    /// [`Self::helm_install`] with the chart of another checkout.
    ///
    /// # Errors
    /// As [`Self::helm_install`].
    pub fn helm_install_from(&self, checkout: &Path, values: &[&str]) -> Result<()> {
        let chart = chart_of(checkout);
        let mut args = vec!["upgrade", "--install", "tokenbudget", &chart, "--namespace", OPERATOR_NAMESPACE];
        args.extend(["--wait", "--timeout", "60s"]);
        // On this machine all pods share one network, and each has an address of its own.
        args.extend(["--set", "listen=$(POD_IP):8080"]);
        args.extend(values.iter().flat_map(|value| ["--set", value]));
        self.helm(&args)
    }
}

fn chart_of(checkout: &Path) -> String {
    checkout.join("charts/tokenbudget").to_string_lossy().into_owned()
}
