use kube::CustomResourceExt;

use super::*;
use crate::api::TokenBudget;

fn problems(spec: &str) -> Vec<String> {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    let crd = serde_json::to_value(TokenBudget::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let found = faults(schema, "spec", &without_nulls(&spec));
    found.into_iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
}

#[test]
fn what_is_sound_has_no_faults() {
    assert_eq!(problems("{targetRefs: [{name: a, container: null}], redis: null, maxWait: 10s}"), [""; 0]);
    let limit = "{name: gpt, models: [{modelName: m}], tokensPerMinute: 1}";
    assert_eq!(problems(&format!("{{targetRefs: [{{name: a}}], limits: [{limit}]}}")), [""; 0]);
}

#[test]
fn each_kind_of_fault_names_its_field_and_the_way_out() {
    let limit =
        |fields: &str| format!("{{targetRefs: [{{name: a}}], limits: [{{name: g, models: [{{id: i}}], {fields}}}]}}");
    for (spec, expected) in [
        (
            "{}".to_owned(),
            "spec.targetRefs: missing: The Deployments of this namespace whose LiteLLM processes spend from this budget (1 to 16)",
        ),
        ("[]".to_owned(), "spec: must be a map, and is a list"),
        ("{targetRefs: []}".to_owned(), "spec.targetRefs: must have at least 1 entries, and has 0"),
        ("{targetRefs: [{nme: a}]}".to_owned(), "spec.targetRefs[0].nme: no such field; did you mean name?"),
        (limit("tokensPerMinut: 5"), "spec.limits[0].tokensPerMinut: no such field; did you mean tokensPerMinute?"),
        (
            limit("tpm: 5"),
            "spec.limits[0].tpm: no such field; there are models, name, requestsPerMinute, tokensPerMinute",
        ),
        (
            limit("tokensPerMinute: '5'"),
            "spec.limits[0].tokensPerMinute: must be a whole number, without quotes, and is the text \"5\"",
        ),
        (limit("tokensPerMinute: 0"), "spec.limits[0].tokensPerMinute: must be at least 1, and is 0"),
        (
            limit("requestsPerMinute: 2000000000"),
            "spec.limits[0].requestsPerMinute: must be at most 1000000000, and is 2000000000",
        ),
        (
            "{targetRefs: [{name: a}], mode: Watch}".to_owned(),
            "spec.mode: must be Enforce or Observe, and is \"Watch\"",
        ),
        (
            "{targetRefs: [{name: a}], maxWait: 1m}".to_owned(),
            "spec.maxWait: must match ^(0|[0-9]+(ms|s))$, and is \"1m\"",
        ),
        ("{targetRefs: [{name: a}], maxWait: 100000ms}".to_owned(), "spec.maxWait: maxWait must be at most 10s"),
        (
            "{targetRefs: [{name: a}, {name: a}]}".to_owned(),
            "spec.targetRefs: targetRefs: each Deployment may be named once",
        ),
    ] {
        let found = problems(&spec);
        assert!(found.iter().any(|problem| problem == expected), "{found:#?}\n{expected}");
    }
}

#[test]
fn rules_are_held_where_they_stand() {
    let two = "{targetRefs: [{name: a}], limits: [{name: g, models: [{id: i}], tokensPerMinute: 1},
        {name: g, models: [{}], requestsPerMinute: 1}, {name: h, models: [{id: i}]}]}";
    // The list's own rule is for a list whose entries are well formed.
    assert_eq!(
        problems(two),
        [
            "spec.limits[1].models[0]: give at least one of modelName, id, litellmModel, apiBase",
            "spec.limits[2]: a limit needs tokensPerMinute, requestsPerMinute, or both",
        ]
    );
    let twice = "{targetRefs: [{name: a}], limits: [{name: g, models: [{id: i}], tokensPerMinute: 1},
        {name: g, models: [{id: j}], requestsPerMinute: 1}]}";
    assert_eq!(problems(twice), ["spec.limits: limits: each name may be used once"]);
}
