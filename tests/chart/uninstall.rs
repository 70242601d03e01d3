//! What runs when the release is uninstalled.

use serde_json::Value;

use crate::helm::{objects, of_kind, only, render, render_with_hooks};

fn hooks(values: &[&str]) -> Vec<Value> {
    let all = objects(&render_with_hooks(values));
    all.into_iter().filter(|object| !object["metadata"]["annotations"]["helm.sh/hook"].is_null()).collect()
}

#[test]
fn a_job_detaches_with_the_operators_rights() {
    let hooks = hooks(&[]);
    for object in &hooks {
        let annotations = &object["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/hook"], "post-delete", "{object}");
        let weight = if object["kind"] == "Job" { "1" } else { "0" };
        assert_eq!(annotations["helm.sh/hook-weight"], weight, "the Job comes after its rights");
    }
    let installed = objects(&render(&[]));
    for kind in ["ClusterRole", "Role"] {
        assert_eq!(only(&hooks, kind)["rules"], only(&installed, kind)["rules"]);
    }
    let pod = only(&hooks, "Job")["spec"]["template"]["spec"].clone();
    let operator = only(&installed, "Deployment")["spec"]["template"]["spec"].clone();
    assert_eq!(
        pod["containers"][0]["args"],
        serde_json::json!(["detach", "--lease-name", "tb-tokenbudget", "--all-namespaces"])
    );
    for field in ["image", "securityContext", "resources"] {
        assert_eq!(pod["containers"][0][field], operator["containers"][0][field]);
    }
    assert_eq!(pod["securityContext"], operator["securityContext"]);
    assert_eq!(pod["serviceAccountName"], only(&hooks, "ServiceAccount")["metadata"]["name"]);
    for binding in of_kind(&hooks, "RoleBinding").iter().chain(&of_kind(&hooks, "ClusterRoleBinding")) {
        assert_eq!(binding["subjects"][0]["name"], pod["serviceAccountName"]);
    }
}

#[test]
fn it_goes_where_the_operator_was() {
    let values = ["watchNamespaces={a,b}", "redis.urlSecretRef.name=r", "redis.urlSecretRef.key=url"];
    let job = only(&hooks(&values), "Job");
    let args = &job["spec"]["template"]["spec"]["containers"][0]["args"];
    assert_eq!(
        *args,
        serde_json::json!([
            "detach",
            "--lease-name",
            "tb-tokenbudget",
            "--namespace",
            "a",
            "--namespace",
            "b",
            "--default-redis-secret",
            "r/url"
        ])
    );
}

#[test]
fn its_pod_is_as_the_operators() {
    for (value, pointer) in [
        ("podLabels.x=y", "/metadata/labels/x"),
        ("podAnnotations.x=y", "/metadata/annotations/x"),
        ("priorityClassName=y", "/spec/priorityClassName"),
        ("affinity.podAffinity.x=y", "/spec/affinity/podAffinity/x"),
        ("nodeSelector.x=y", "/spec/nodeSelector/x"),
        ("tolerations[0].key=y", "/spec/tolerations/0/key"),
        ("imagePullSecrets[0].name=y", "/spec/imagePullSecrets/0/name"),
    ] {
        let pod = only(&hooks(&[value]), "Job")["spec"]["template"].clone();
        assert_eq!(pod.pointer(pointer).and_then(Value::as_str), Some("y"), "{value}");
    }
}

#[test]
fn it_may_reach_what_the_operator_may() {
    let values = ["networkPolicy.enabled=true", "networkPolicy.redis.ports={6380}"];
    let policy = only(&hooks(&values), "NetworkPolicy");
    let pod = only(&hooks(&values), "Job")["spec"]["template"]["metadata"]["labels"].clone();
    assert_eq!(policy["spec"]["podSelector"]["matchLabels"], pod);
    assert_eq!(policy["spec"]["egress"], only(&objects(&render(&values)), "NetworkPolicy")["spec"]["egress"]);
    assert_eq!(policy["spec"]["ingress"], Value::Null);
    assert!(of_kind(&hooks(&[]), "NetworkPolicy").is_empty());
}

#[test]
fn it_can_be_left_out() {
    assert!(hooks(&["uninstall.detach=false"]).is_empty());
}
