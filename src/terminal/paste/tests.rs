use super::*;
use crate::api::SecretKeyRef;
use crate::litellm::{difference, is_attached};

const HELM: &str = include_str!("../../litellm/fixtures/litellm-helm.yaml");
const GATEWAY: &str = include_str!("../../litellm/fixtures/litellm-gateway.yaml");

fn read(yaml: &str) -> Deployment {
    let mut deployment: Deployment = serde_saphyr::from_str(yaml).unwrap();
    // A manifest has none.
    deployment.metadata.managed_fields = None;
    deployment
}

fn wanted() -> Wanted {
    Wanted { redis_secret: Some(SecretKeyRef { name: "r".to_owned(), key: "url".to_owned() }), ..Wanted::default() }
}

/// A strategic merge, as much of it as these patches need: lists by their merge keys.
fn merge(live: &mut Value, patch: &Value) {
    match (live, patch) {
        (Value::Object(live), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(live.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(live), Value::Array(patch)) => {
            let key = if patch.iter().all(|item| item.get("mountPath").is_some()) { "mountPath" } else { "name" };
            for item in patch {
                match live.iter_mut().find(|other| other[key] == item[key]) {
                    Some(other) => merge(other, item),
                    None => live.push(item.clone()),
                }
            }
        }
        (live, patch) => *live = patch.clone(),
    }
}

/// The Deployment as the pasted text makes it, by the way of its form.
fn pasted(deployment: &Deployment, text: &str, print: Print) -> Deployment {
    let parsed: Value = serde_saphyr::from_str(text).unwrap();
    let mut live = serde_json::to_value(deployment).unwrap();
    match print {
        Print::Yaml | Print::Json => merge(&mut live, &parsed),
        Print::Kustomize => {
            let patch = &parsed["patches"][0];
            assert_eq!(patch["target"]["name"], live["metadata"]["name"]);
            merge(&mut live, &serde_saphyr::from_str(patch["patch"].as_str().unwrap()).unwrap());
        }
        // The chart puts labels into labels, and each list behind its own (templates/deployment.yaml).
        Print::Helm => {
            let template = &mut live["spec"]["template"];
            merge(&mut template["metadata"]["labels"], &parsed["podLabels"]);
            let append = |list: &mut Value, more: &Value| {
                if list.is_null() {
                    *list = json!([]);
                }
                list.as_array_mut().unwrap().extend(more.as_array().unwrap().iter().cloned());
            };
            append(&mut template["spec"]["volumes"], &parsed["volumes"]);
            let container = &mut template["spec"]["containers"][0];
            append(&mut container["env"], &parsed["extraEnvVars"]);
            append(&mut container["volumeMounts"], &parsed["volumeMounts"]);
        }
    }
    serde_json::from_value(live).unwrap()
}

const ALL: [Print; 4] = [Print::Helm, Print::Kustomize, Print::Yaml, Print::Json];

#[test]
fn what_is_pasted_is_what_the_operator_takes_for_attached() {
    for (yaml, forms) in [(HELM, &ALL[..]), (GATEWAY, &ALL[1..])] {
        let deployment = read(yaml);
        assert!(!is_attached(&deployment));
        for &print in forms {
            let text = paste(&deployment, &wanted(), print).unwrap();
            let attached = pasted(&deployment, &text, print);
            assert!(is_attached(&attached), "{text}");
            // Nothing is left that the operator itself would add.
            let left = difference(&attached, &attachment(&attached, &wanted()).unwrap());
            assert!(left.is_empty(), "{print:?}: {left:?}\n{text}");
        }
    }
}

#[test]
fn hooks_of_the_user_are_kept_where_the_operator_would_refuse() {
    for (value, by_hand) in [("mine:start", "mine:start,tokenbudget_agent:start"), ("", "tokenbudget_agent:start")] {
        let mut deployment = read(HELM);
        let container = &mut deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0];
        let variable = serde_json::from_value(json!({"name": STARTUP_HOOKS, "value": value})).unwrap();
        container.env.as_mut().unwrap().push(variable);
        assert!(matches!(attachment(&deployment, &wanted()), Err(Refusal::HooksOwnedByUser { .. })));
        let text = paste(&deployment, &wanted(), Print::Yaml).unwrap();
        assert!(text.contains(by_hand), "{text}");
        let attached = pasted(&deployment, &text, Print::Yaml);
        assert!(difference(&attached, &attachment(&attached, &wanted()).unwrap()).is_empty());
    }
    let mut deployment = read(HELM);
    let container = &mut deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0];
    let from = json!({"name": STARTUP_HOOKS, "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
    container.env.as_mut().unwrap().push(serde_json::from_value(from).unwrap());
    let refused = paste(&deployment, &wanted(), Print::Yaml).unwrap_err().to_string();
    assert!(refused.contains("valueFrom") && refused.contains("tokenbudget_agent:start"), "{refused}");
}

#[test]
fn the_helm_values_are_these() {
    let mut deployment = read(HELM);
    let container = &mut deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0];
    container.env_from = None;
    let expected = "\
# Values of LiteLLM's chart (litellm-helm) that add TokenBudget's agent to Deployment llm-litellm.
# Helm replaces lists as a whole: append to those that your values have.
# Apply the TokenBudget with attach: Manual first: the operator makes the ConfigMap tokenbudget-agent when it has
# reached the ledger, and pods wait for it.
";
    let text = paste(&deployment, &Wanted::default(), Print::Helm).unwrap();
    assert!(text.starts_with(&format!("{expected}extraEnvVars:\n")), "{text}");
    let with = paste(&read(HELM), &Wanted::default(), Print::Helm).unwrap();
    assert!(with.contains("# The container has envFrom."), "{with}");
}
