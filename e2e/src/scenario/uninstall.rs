//! `helm uninstall` while a TokenBudget is still there: nothing hangs, nothing is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::checks::{manifest, untouched};
use super::fleet::{Fleet, text, until};
use super::operator::restarts;
use super::redis::{ask, connect};
use super::rig::{OPERATOR_NAMESPACE, Rig};

const NAME: &str = "stays";

/// One that is deleted while there is no operator.
const LEAVING: &str = "leaving";

/// What Redis answers to TTL when there is no such key.
const GONE: i64 = -2;

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
    rig.apply_text(&manifest(NAME, spec))?;
    enforces(fleet).await?;
    ensure!(!keys(rig).await?.is_empty(), "a TokenBudget that enforces has no key in Redis: the check below is void");

    would_detach(rig, fleet)?;
    let started = Instant::now();
    rig.helm(&["uninstall", "tokenbudget", "--namespace", OPERATOR_NAMESPACE, "--timeout", "120s"])?;
    println!("check: helm uninstall with a TokenBudget that enforces took {:.1} s", started.elapsed().as_secs_f32());
    nothing_is_left(rig, fleet).await?;
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
    println!("check: no finalizer, status, entry, ConfigMap, key or object of the release is left; plain serves");
    again_without_helm(rig, fleet).await
}

async fn enforces(fleet: &Fleet<'_>) -> Result<Duration> {
    until("the pod of plain enforces", Duration::from_secs(90), || {
        let rows = fleet.get("tokenbudget", NAME)?["status"]["pods"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().any(|row| row["state"] == "Enforcing"))
    })
    .await
}

/// Installed again at once it goes on with the TokenBudget that stayed; here by `kubectl apply` of what `make install-yaml`
/// writes. And removed by hand, as docs/operations.md says, it leaves nothing either.
async fn again_without_helm(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let chart = rig.chart();
    let template = ["template", "tokenbudget", &chart, "--namespace", OPERATOR_NAMESPACE, "--kube-version", "1.36.0"];
    let rendered = rig.helm_output(&[&template[..], &["--no-hooks", "--set", "listen=$(POD_IP):8080"]].concat())?;
    let file = rig.paths.dir.join("install.yaml");
    std::fs::write(&file, rendered)?;
    let file = file.to_string_lossy().into_owned();
    rig.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file])?;
    let took = enforces(fleet).await?;
    let spec = "targetRefs: [{name: plain}]\n  limits: [{name: b, models: [{modelName: other}], tokensPerMinute: 600}]";
    rig.apply_text(&manifest(LEAVING, spec))?;
    // The other strategy of the Deployment may not have the fields of the one that is there.
    let alone = rig.helm_output(&[&template[..], &["--no-hooks", "--set", "leaderElection=false"]].concat())?;
    let (accepted, said) = rig.try_apply(&["--server-side", "--dry-run=server"], &alone)?;
    ensure!(accepted, "leaderElection=false over what is there: {said}");
    let has = |fleet: &Fleet<'_>| Ok(!fleet.get("tokenbudget", LEAVING)?["metadata"]["finalizers"].is_null());
    until("it has the finalizer", Duration::from_secs(20), || has(fleet)).await?;
    println!(
        "check: installed again by kubectl apply, it serves the TokenBudget that stayed after {:.0} s",
        took.as_secs_f32()
    );

    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "delete", "deployment", "tokenbudget", "--cascade=foreground"])?;
    // Deleted while nobody is there to clean up: `detach` lets it go.
    rig.kubectl(&["-n", "llm", "delete", "tb", LEAVING, "--wait=false"])?;
    ensure!(
        !fleet.get("tokenbudget", LEAVING)?.is_null(),
        "without an operator a TokenBudget went: this check is void"
    );
    let started = Instant::now();
    let detach = ["detach", "--all-namespaces", "--lease-namespace", OPERATOR_NAMESPACE, "-o", "json"];
    let answer: Value = serde_json::from_str(&rig.tokenbudget(&detach)?)?;
    let taken = serde_json::json!([format!("llm/{LEAVING}"), format!("llm/{NAME}")]);
    ensure!(answer["detached"] == taken && answer["dryRun"] == false, "detach -o json: {answer}");
    nothing_is_left(rig, fleet).await?;
    ensure!(fleet.get("tokenbudget", LEAVING)?.is_null(), "TokenBudget {LEAVING} still hangs in Terminating");
    println!(
        "check: detach by hand took {:.0} s, a TokenBudget that hung in Terminating is gone, and nothing is left either",
        started.elapsed().as_secs_f32()
    );
    rig.kubectl(&["delete", "-f", &file, "--ignore-not-found", "--timeout=60s"])?;
    ensure!(rig.kubectl(&["get", "tb", "-A"]).is_err(), "the CustomResourceDefinition is left");
    waits_for_its_crd(rig, &chart).await
}

/// Without the CustomResourceDefinition the operator waits, alive and not ready, and begins when it comes.
async fn waits_for_its_crd(rig: &Rig, chart: &str) -> Result<()> {
    let install = ["install", "tokenbudget", chart, "--namespace", OPERATOR_NAMESPACE];
    rig.helm(&[&install[..], &["--set", "crds.install=false", "--set", "listen=$(POD_IP):8080"]].concat())?;
    let get = |path: &str| rig.kubectl(&["-n", OPERATOR_NAMESPACE, "get", "deployment,pods", "-o", path]);
    let (phase, ready) = ("jsonpath={.items[1].status.phase}", "jsonpath={.items[0].status.readyReplicas}");
    until("the operator runs", Duration::from_secs(30), || Ok(get(phase).is_ok_and(|phase| phase == "Running")))
        .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(get(ready)?.is_empty(), "the operator is ready without the CustomResourceDefinition");
    let crd = rig.paths.root.join("crds/tokenbudgets.yaml").to_string_lossy().into_owned();
    rig.kubectl(&["apply", "--server-side", "-f", &crd])?;
    let took = until("the operator is ready", Duration::from_secs(60), || Ok(get(ready)? == "1")).await?;
    ensure!(restarts(rig)? == 0, "the operator restarted without the CustomResourceDefinition: {}", restarts(rig)?);
    println!("check: without the CRD the operator waits, and is ready {:.0} s after it came", took.as_secs_f32());
    rig.helm(&["uninstall", "tokenbudget", "--namespace", OPERATOR_NAMESPACE, "--timeout", "120s"])
}

/// Neither in the API server nor in Redis, and the Deployment's pods are there.
async fn nothing_is_left(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let object = fleet.get("tokenbudget", NAME)?;
    ensure!(object["metadata"]["finalizers"].is_null(), "a finalizer is left: {}", object["metadata"]["finalizers"]);
    ensure!(object["status"].is_null(), "a status is left that nobody keeps: {}", object["status"]);
    untouched(fleet, "plain")?;
    let maps = rig.kubectl(&["-n", "llm", "get", "configmaps", "-o", "name"])?;
    ensure!(!maps.contains("tokenbudget-plain"), "a ConfigMap is left: {maps}");
    let keys = keys(rig).await?;
    ensure!(keys.is_empty(), "keys are left in Redis: {keys:?}");
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/plain", "--timeout=120s"]).map(drop)
}

/// `detach --dry-run` names the TokenBudget and the cluster, and changes nothing.
fn would_detach(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let generation = || Ok::<_, anyhow::Error>(fleet.get("deployment", "plain")?["metadata"]["generation"].clone());
    let before = generation()?;
    let said: Value = serde_json::from_str(&rig.tokenbudget(&["detach", "-A", "--dry-run", "-o", "json"])?)?;
    let named = said["left"] == serde_json::json!([format!("llm/{NAME}")]) && said["dryRun"] == true;
    ensure!(named && text(&said["cluster"]).contains("https://127.0.0.1"), "detach --dry-run: {said}");
    ensure!(generation()? == before, "detach --dry-run changed the Deployment");
    let finalizers = fleet.get("tokenbudget", NAME)?["metadata"]["finalizers"].clone();
    ensure!(!finalizers.is_null(), "detach --dry-run took the finalizer");
    println!("check: detach --dry-run names what it would take out, and changes nothing");
    Ok(())
}

/// Our keys in Redis, but for those that tell processes that they are detached and end by themselves.
async fn keys(rig: &Rig) -> Result<Vec<String>> {
    let mut redis = connect(rig).await?;
    let mut kept = Vec::new();
    for name in ask::<Vec<String>>(&mut redis, "KEYS tokenbudget:*").await? {
        let kind: String = ask(&mut redis, &format!("TYPE {name}")).await?;
        let says: BTreeMap<String, String> = match kind.as_str() {
            "hash" => ask(&mut redis, &format!("HGETALL {name}")).await?,
            _ => BTreeMap::new(),
        };
        // Asked last, since a key may end between two questions. In its last half second the answer is 0.
        let ttl: i64 = ask(&mut redis, &format!("TTL {name}")).await?;
        let closed = name.ends_with(":meta") && ttl >= 0 && says.get("version").is_some_and(|v| v == "detached");
        if ttl != GONE && !closed {
            kept.push(format!("{name}, which ends in {ttl} s: {says:?}"));
        }
    }
    Ok(kept)
}
