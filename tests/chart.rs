//! The Helm chart, rendered by Helm itself.
//!
//! Helm is the binary that `TOKENBUDGET_HELM` names, else the one that `e2e/prepare helm` builds.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// Without it a Helm that was built from source takes the cluster for Kubernetes 1.20.
const KUBERNETES: [&str; 2] = ["--kube-version", "1.36.0"];
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/tokenbudget");

fn helm_path() -> PathBuf {
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

fn helm(args: &[&str]) -> Output {
    let path = helm_path();
    assert!(
        path.is_file(),
        "there is no Helm at {}: run `e2e/prepare helm`, or set TOKENBUDGET_HELM to a Helm 3 binary",
        path.display()
    );
    Command::new(path).args(args).output().unwrap()
}

fn render(values: &[&str]) -> String {
    let mut args = vec!["template", "tb", CHART, "--namespace", "ops"];
    args.extend(KUBERNETES);
    values.iter().for_each(|value| args.extend(["--set", value]));
    let output = helm(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(values: &[&str]) -> String {
    let mut args = vec!["template", "tb", CHART];
    args.extend(KUBERNETES);
    values.iter().for_each(|value| args.extend(["--set", value]));
    let output = helm(&args);
    assert!(!output.status.success(), "Helm accepts {values:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn objects(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

fn of_kind(objects: &[Value], kind: &str) -> Vec<Value> {
    objects.iter().filter(|object| object["kind"] == kind).cloned().collect()
}

fn only(objects: &[Value], kind: &str) -> Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0].clone()
}

fn args(objects: &[Value]) -> Vec<String> {
    let deployment = only(objects, "Deployment");
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
    args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
}

/// Every value that is off or empty by default.
const EVERYTHING: [&str; 12] = [
    "replicas=2",
    "watchNamespaces={a,b}",
    "redis.urlSecretRef.name=r",
    "redis.urlSecretRef.key=url",
    "podDisruptionBudget.enabled=true",
    "serviceMonitor.enabled=true",
    "serviceMonitor.labels.release=prom",
    "priorityClassName=high",
    "podAnnotations.x=y",
    "nodeSelector.disk=ssd",
    "serviceAccount.annotations.role=r",
    "imagePullSecrets[0].name=pull",
];

#[test]
fn lint_finds_nothing() {
    let output = helm(&["lint", "--strict", CHART]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_crd_is_the_generated_one_and_stays() {
    let generated = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/crds/tokenbudgets.yaml")).unwrap();
    let copy = std::fs::read_to_string(format!("{CHART}/files/tokenbudgets.yaml")).unwrap();
    assert_eq!(generated, copy, "run: make generate");

    let mut rendered = only(&objects(&render(&[])), "CustomResourceDefinition");
    let annotations = rendered["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
    assert_eq!(annotations["helm.sh/resource-policy"], "keep");
    assert_eq!(rendered, serde_saphyr::from_str::<Value>(&generated).unwrap());

    assert!(of_kind(&objects(&render(&["crds.install=false"])), "CustomResourceDefinition").is_empty());
}

#[test]
fn the_pod_is_restricted() {
    for values in [&[][..], &EVERYTHING] {
        let deployment = only(&objects(&render(values)), "Deployment");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for forbidden in ["hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"] {
            assert!(pod.get(forbidden).is_none(), "{forbidden}");
        }
        let container = &pod["containers"][0];
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert!(container["securityContext"].get("privileged").is_none());
        assert!(container["resources"]["requests"]["cpu"].is_string());
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            assert_eq!(container[probe]["httpGet"]["path"], path);
            assert_eq!(container[probe]["httpGet"]["port"], "http");
        }
        assert_eq!(container["ports"][0]["containerPort"], 8080);
    }
}

#[test]
fn rights_are_narrow_and_explained() {
    for values in [&[][..], &EVERYTHING] {
        let text = render(values);
        let objects = objects(&text);
        let roles = [of_kind(&objects, "ClusterRole"), of_kind(&objects, "Role")].concat();
        assert!(!roles.is_empty());
        for rule in roles.iter().flat_map(|role| role["rules"].as_array().unwrap()) {
            assert!(!rule.to_string().contains('*'), "{rule}");
            let resources = rule["resources"].to_string();
            let verbs = rule["verbs"].to_string();
            if resources.contains("secrets") {
                assert_eq!(verbs, r#"["get"]"#);
            }
            assert!(!resources.contains("roles") && !resources.contains("pods/"), "{rule}");
        }
        // Each rule has its reason above it, or belongs to the rule before.
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("- apiGroups:")) {
            let above = lines[at - 1].trim_start();
            assert!(above.starts_with('#') || lines[at - 1].contains("verbs: [create]"), "no reason above: {line}");
        }
    }
}

#[test]
fn namespaces_make_roles_and_flags() {
    let all = objects(&render(&[]));
    assert_eq!((of_kind(&all, "ClusterRole").len(), of_kind(&all, "Role").len()), (1, 1));
    let some = objects(&render(&["watchNamespaces={a,b}"]));
    assert_eq!((of_kind(&some, "ClusterRole").len(), of_kind(&some, "Role").len()), (0, 3));
    let text = args(&some).join(" ");
    assert!(text.contains("--namespace a --namespace b"), "{text}");
    assert!(!args(&all).contains(&"--namespace".to_owned()));
    let lease = only(&all, "Role")["rules"][1]["resourceNames"][0].clone();
    assert_eq!(lease, tokenbudget::leader::LEASE_NAME);
}

#[test]
fn the_command_line_follows_the_values() {
    assert_eq!(
        args(&objects(&render(&[]))),
        [
            "run",
            "--listen",
            "0.0.0.0:8080",
            "--leader-election",
            "true",
            "--lease-namespace",
            "$(POD_NAMESPACE)",
            "--identity",
            "$(POD_NAME)"
        ]
    );
    let text = args(&objects(&render(&[
        "redis.urlSecretRef.name=r",
        "redis.urlSecretRef.key=url",
        "listen=$(POD_IP):9090",
        "leaderElection=false",
    ])))
    .join(" ");
    for part in ["--default-redis-secret r/url", "--listen $(POD_IP):9090", "--leader-election false"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let off = objects(&render(&["leaderElection=false", "listen=$(POD_IP):9090"]));
    assert_eq!(only(&off, "Deployment")["spec"]["strategy"]["type"], "Recreate");
    assert_eq!(
        only(&off, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"],
        9090
    );
    assert!(of_kind(&off, "Role").is_empty());
}

#[test]
fn everything_on_is_there() {
    let objects = objects(&render(&EVERYTHING));
    for kind in ["PodDisruptionBudget", "ServiceMonitor", "Service", "ServiceAccount"] {
        only(&objects, kind);
    }
    for object in &objects {
        assert!(object["kind"] == "CustomResourceDefinition" || object["metadata"]["labels"].is_object());
    }
}

#[test]
fn the_version_is_the_crates() {
    let chart = std::fs::read_to_string(format!("{CHART}/Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&chart).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let deployment = only(&objects(&render(&[])), "Deployment");
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
    assert_eq!(image, format!("ghcr.io/tokenbudget/tokenbudget:{}", env!("CARGO_PKG_VERSION")));
    for example in ["artifacthub.io/crds", "artifacthub.io/crdsExamples", "artifacthub.io/changes"] {
        assert!(serde_saphyr::from_str::<Value>(chart["annotations"][example].as_str().unwrap()).unwrap().is_array());
    }
}

#[test]
fn unknown_and_wrong_values_are_refused() {
    for value in ["replicaCount=3", "image.name=x", "redis.url=x", "crds.create=true", "serviceMonitor.on=true"] {
        let text = refusal(&[value]);
        assert!(text.contains("not allowed") || text.contains("additional properties"), "{value}: {text}");
    }
    for value in ["replicas=many", "redis.urlSecretRef.name=r", "listen=everywhere", "image.digest=latest"] {
        assert!(refusal(&[value]).contains("values don't meet the specifications"), "{value}");
    }
    assert!(refusal(&["leaderElection=false", "replicas=2"]).contains("one replica at most"));
}
