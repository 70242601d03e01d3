//! Helm itself: the binary that `TOKENBUDGET_HELM` names, else the one that `e2e/prepare helm` builds.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// Without it a Helm that was built from source takes the cluster for Kubernetes 1.20.
const KUBERNETES: [&str; 2] = ["--kube-version", "1.36.0"];
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/tokenbudget");

pub fn helm_path() -> PathBuf {
    if let Some(path) = std::env::var_os("TOKENBUDGET_HELM") {
        return PathBuf::from(path);
    }
    let cache = std::env::var_os("TOKENBUDGET_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        base.unwrap_or_else(home).join("tokenbudget")
    });
    cache.join("helm-v3.22.0/helm")
}

pub fn helm(args: &[&str]) -> Output {
    let path = helm_path();
    assert!(
        path.is_file(),
        "there is no Helm at {}: run `e2e/prepare helm`, or set TOKENBUDGET_HELM to a Helm binary",
        path.display()
    );
    Command::new(path).args(args).output().unwrap()
}

/// What is installed.
pub fn render(values: &[&str]) -> String {
    render_for(KUBERNETES[1], values)
}

/// For this version of Kubernetes.
pub fn render_for(kubernetes: &str, values: &[&str]) -> String {
    template(kubernetes, values, &["--no-hooks"])
}

/// What is installed, and what Helm makes only at certain moments.
pub fn render_with_hooks(values: &[&str]) -> String {
    template(KUBERNETES[1], values, &[])
}

fn template(kubernetes: &str, values: &[&str], more: &[&str]) -> String {
    let mut args = vec!["template", "tb", CHART, "--namespace", "ops", KUBERNETES[0], kubernetes];
    args.extend(more);
    values.iter().for_each(|value| args.extend(["--set", value]));
    let output = helm(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn refusal(values: &[&str]) -> String {
    let mut args = vec!["template", "tb", CHART];
    args.extend(KUBERNETES);
    values.iter().for_each(|value| args.extend(["--set", value]));
    let output = helm(&args);
    assert!(!output.status.success(), "Helm accepts {values:?}");
    String::from_utf8(output.stderr).unwrap()
}

pub fn objects(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

pub fn of_kind(objects: &[Value], kind: &str) -> Vec<Value> {
    objects.iter().filter(|object| object["kind"] == kind).cloned().collect()
}

pub fn only(objects: &[Value], kind: &str) -> Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0].clone()
}

/// The only ConfigMap whose name ends so.
pub fn config_map(objects: &[Value], suffix: &str) -> Value {
    let maps = of_kind(objects, "ConfigMap");
    let named = |map: &&Value| map["metadata"]["name"].as_str().is_some_and(|name| name.ends_with(suffix));
    let found: Vec<&Value> = maps.iter().filter(named).collect();
    assert_eq!(found.len(), 1, "{suffix}");
    found[0].clone()
}

pub fn args(objects: &[Value]) -> Vec<String> {
    let deployment = only(objects, "Deployment");
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
    args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
}

/// Every value that is off or empty by default.
pub const EVERYTHING: [&str; 20] = [
    "replicas=2",
    "admission.enabled=true",
    "watchNamespaces={a,b}",
    "redis.urlSecretRef.name=r",
    "redis.urlSecretRef.key=url",
    "podDisruptionBudget.enabled=true",
    "serviceMonitor.enabled=true",
    "serviceMonitor.labels.release=prom",
    "prometheusRule.enabled=true",
    "dashboard.enabled=true",
    "networkPolicy.enabled=true",
    "affinity.nodeAffinity.x=y",
    "tolerations[0].key=gpu",
    "priorityClassName=high",
    "podAnnotations.x=y",
    "nodeSelector.disk=ssd",
    "serviceAccount.annotations.role=r",
    "imagePullSecrets[0].name=pull",
    "rbac.secretNames={r}",
    "rbac.nodes=true",
];
