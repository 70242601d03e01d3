//! `helm uninstall` while a TokenBudget is still there: nothing hangs, nothing is left.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::checks::{apply_text, delete_within, manifest, untouched};
use super::fleet::{Fleet, until};
use super::rig::{OPERATOR_NAMESPACE, Rig};

const NAME: &str = "stays";

/// [`run`] on a rig that has just been started.
///
/// # Errors
/// As [`run`].
pub async fn alone(rig: &Rig) -> Result<()> {
    rig.kubectl(&[
        "-n",
        "llm",
        "create",
        "secret",
        "generic",
        "litellm",
        "--from-literal=LITELLM_MASTER_KEY=sk-local",
    ])?;
    rig.apply("plain.yaml")?;
    run(rig, &Fleet::of(rig)).await
}

/// Attaches Deployment `plain`, uninstalls the chart, and looks at what is left.
///
/// # Errors
/// What is left that should not be.
pub async fn run(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let spec =
        "targetRefs: [{name: plain}]\n  limits: [{name: a, models: [{modelName: gpt-4o}], tokensPerMinute: 600}]";
    let (accepted, answer) = apply_text(rig, &manifest(NAME, spec))?;
    ensure!(accepted, "{answer}");
    until("the pod of plain enforces", Duration::from_secs(90), || {
        let rows = fleet.get("tokenbudget", NAME)?["status"]["pods"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().any(|row| row["state"] == "Enforcing"))
    })
    .await?;
    ensure!(!keys(rig)?.is_empty(), "a TokenBudget that enforces has no key in Redis: the check below is void");

    let started = Instant::now();
    rig.helm(&["uninstall", "tokenbudget", "--namespace", OPERATOR_NAMESPACE, "--timeout", "120s"])?;
    println!("check: helm uninstall with a TokenBudget that enforces took {:.1} s", started.elapsed().as_secs_f32());
    let object = fleet.get("tokenbudget", NAME)?;
    ensure!(object["metadata"]["finalizers"].is_null(), "a finalizer is left: {}", object["metadata"]["finalizers"]);
    ensure!(object["status"].is_null(), "a status is left that nobody keeps: {}", object["status"]);
    untouched(fleet, "plain")?;
    let maps = rig.kubectl(&["-n", "llm", "get", "configmaps", "-o", "name"])?;
    ensure!(!maps.contains("tokenbudget-plain"), "a ConfigMap is left: {maps}");
    let keys = keys(rig)?;
    ensure!(keys.is_empty(), "keys are left in Redis: {keys:?}");
    for (namespaced, kinds) in [
        (true, "deployments,jobs,serviceaccounts,roles,rolebindings,services,networkpolicies,poddisruptionbudgets"),
        (false, "clusterroles,clusterrolebindings"),
    ] {
        let mut args = vec!["get", kinds, "-l", "app.kubernetes.io/instance=tokenbudget", "-o", "json"];
        if namespaced {
            args.extend(["-n", OPERATOR_NAMESPACE]);
        }
        let left: Value = serde_json::from_str(&rig.kubectl(&args)?)?;
        ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "of the release is left: {}", left["items"]);
    }
    delete_within(rig, NAME, Duration::from_secs(10))?;
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/plain", "--timeout=120s"])?;
    println!("check: no finalizer, status, entry, ConfigMap, key or object of the release is left; plain serves");
    Ok(())
}

/// Our keys in Redis, but for those that tell processes that they are detached and end by themselves.
fn keys(rig: &Rig) -> Result<Vec<String>> {
    let mut redis = Redis::connect(rig)?;
    let answer = redis.ask("KEYS tokenbudget:*")?;
    let names = answer.lines().filter(|line| line.starts_with("tokenbudget:"));
    let mut kept = Vec::new();
    for name in names {
        let mut closed = || -> Result<bool> {
            let (version, ends) = (redis.ask(&format!("HGET {name} version"))?, redis.ask(&format!("TTL {name}"))?);
            Ok(version.contains("detached") && ends.trim() != ":-1")
        };
        if !name.ends_with(":meta") || !closed()? {
            kept.push(format!(
                "{name}: {}, ends in {}",
                redis.ask(&format!("HGETALL {name}"))?,
                redis.ask(&format!("TTL {name}"))?
            ));
        }
    }
    Ok(kept)
}

/// Redis' inline protocol, which is enough for two questions.
struct Redis(TcpStream);

impl Redis {
    fn connect(rig: &Rig) -> Result<Self> {
        let address = rig.redis_url.strip_prefix("redis://").context("not redis://")?;
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Self(stream))
    }

    /// The answer as it came, which ends when nothing more comes.
    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        let mut part = [0; 65536];
        loop {
            match self.0.read(&mut part) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&part[..count]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) && !answer.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(String::from_utf8(answer)?)
    }
}
