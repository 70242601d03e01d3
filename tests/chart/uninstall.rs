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
    assert_eq!(pod["containers"][0]["args"], serde_json::json!(["detach", "--all-namespaces"]));
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
        serde_json::json!(["detach", "--namespace", "a", "--namespace", "b", "--default-redis-secret", "r/url"])
    );
}

#[test]
fn it_can_be_left_out() {
    assert!(hooks(&["uninstall.detach=false"]).is_empty());
}
