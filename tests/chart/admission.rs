//! The admission policy of `attach: Admission`. What it does to pods is checked on a real API server:
//! `e2e/src/scenario/admission.rs`.

use serde_json::{Value, json};
use tokenbudget::litellm::{
    AGENT_CONFIG_MAP, AGENT_FILE, AGENT_HOOK, ATTACH_LABEL, ATTACH_VALUE, ATTACHED_LABEL, ATTACHED_VALUE, STARTUP_HOOKS,
};

use super::helm::{args, objects, of_kind, only, render, render_for};

const ON: &str = "admission.enabled=true";
const POLICY: &str = "MutatingAdmissionPolicy";
const BINDING: &str = "MutatingAdmissionPolicyBinding";
const NAME: &str = "tb-tokenbudget-attach-ops";

#[test]
fn it_is_off_unless_asked_for() {
    let off = objects(&render(&[]));
    assert!(of_kind(&off, POLICY).is_empty() && of_kind(&off, BINDING).is_empty());
    assert!(!args(&off).contains(&"--admission-policy".to_owned()));
}

#[test]
fn the_operator_may_see_the_one_policy_that_it_is_told_of() {
    for values in [&[ON][..], &[ON, "watchNamespaces={a}"]] {
        let all = objects(&render(values));
        let policy = only(&all, POLICY);
        assert_eq!(policy["metadata"]["name"], NAME);
        assert_eq!(only(&all, BINDING)["spec"]["policyName"], NAME);
        let args = args(&all).join(" ");
        assert!(args.contains(&format!("--admission-policy {NAME}")), "{args}");
        let roles = of_kind(&all, "ClusterRole");
        let role = roles.iter().find(|role| role["metadata"]["name"] == NAME).unwrap();
        let rule = json!({"apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingadmissionpolicies"],
            "resourceNames": [NAME], "verbs": ["get"]});
        assert_eq!(role["rules"], json!([rule]));
        let bindings = of_kind(&all, "ClusterRoleBinding");
        let binding = bindings.iter().find(|binding| binding["metadata"]["name"] == NAME).unwrap();
        assert_eq!(binding["subjects"][0]["namespace"], "ops");
    }
}

#[test]
fn only_pods_and_config_maps_with_the_label_meet_it() {
    let all = objects(&render(&[ON]));
    let (policy, binding) = (only(&all, POLICY), only(&all, BINDING));
    let constraints = &policy["spec"]["matchConstraints"];
    let label = json!({"matchLabels": {ATTACH_LABEL: ATTACH_VALUE}});
    assert_eq!(constraints["objectSelector"], label);
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
    assert_eq!(constraints["resourceRules"], json!([rule]));
    assert_eq!(binding["spec"]["paramRef"], json!({"selector": label, "parameterNotFoundAction": "Allow"}));
    assert!(binding["spec"].get("matchResources").is_none());
    let some = only(&objects(&render(&[ON, "watchNamespaces={a,b}"])), BINDING);
    let selector = &some["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(*selector, json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}));
}

#[test]
fn a_failure_is_ignored_unless_the_values_say_otherwise() {
    let failure = |values: &[&str]| only(&objects(&render(values)), POLICY)["spec"]["failurePolicy"].clone();
    assert_eq!(failure(&[ON]), "Ignore");
    assert_eq!(failure(&[ON, "admission.failurePolicy=Fail"]), "Fail");
}

#[test]
fn it_names_things_as_the_operator_does() {
    let policy = only(&objects(&render(&[ON])), POLICY).to_string();
    for name in
        [AGENT_CONFIG_MAP, AGENT_FILE, AGENT_HOOK, STARTUP_HOOKS, ATTACHED_VALUE, &ATTACHED_LABEL.replace('/', "~1")]
    {
        assert!(policy.contains(&format!("'{name}'")) || policy.contains(&format!("/{name}'")), "{name}");
    }
}

#[test]
fn an_old_cluster_gets_no_policy_and_an_operator_that_says_so() {
    let old = objects(&render_for("1.35.4", &[ON]));
    assert!(of_kind(&old, POLICY).is_empty() && of_kind(&old, BINDING).is_empty());
    assert!(args(&old).contains(&"--admission-policy".to_owned()));
    for new in ["1.36.0", "v1.36.3-gke.100", "1.40.1"] {
        let found: Vec<Value> = of_kind(&objects(&render_for(new, &[ON])), POLICY);
        assert_eq!(found.len(), 1, "{new}");
    }
}
