//! `make install-yaml`: the chart in one file.

use std::process::Command;

use super::helm::{helm_path, objects, of_kind, only};

#[test]
fn one_file_has_all_that_kubectl_needs() {
    let path = std::env::temp_dir().join(format!("tokenbudget-install-{}.yaml", std::process::id()));
    let made = Command::new("make")
        .args([
            "-s",
            "install-yaml",
            &format!("INSTALL_YAML={}", path.display()),
            &format!("HELM={}", helm_path().display()),
            "HELM_ARGS=--set image.repository=REGISTRY/tokenbudget,image.tag=abc",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let objects = objects(&text);
    assert_eq!(objects[0]["kind"], "Namespace");
    assert_eq!(objects[0]["metadata"]["name"], "tokenbudget-system");
    assert_eq!(objects[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    let at = |kind: &str| objects.iter().position(|object| object["kind"] == kind).unwrap();
    assert!(at("CustomResourceDefinition") < at("Deployment"));
    let deployment = only(&objects, "Deployment");
    assert_eq!(deployment["metadata"]["name"], "tokenbudget");
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], "REGISTRY/tokenbudget:abc");
    let mut namespaced = objects.iter().filter_map(|object| object["metadata"].get("namespace"));
    assert!(namespaced.all(|namespace| namespace == "tokenbudget-system"));
    let subject = &of_kind(&objects, "ClusterRoleBinding")[0]["subjects"][0];
    assert_eq!(subject["namespace"], "tokenbudget-system");
}
