//! The operator's rights are what it was seen to use while the scenario did all that users do: no rule is missing, and none
//! is there for nothing.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::audit::{self, Right};
use super::fleet::text;
use super::rig::{OPERATOR_NAMESPACE, Rig};

/// Rights that no request shows: who asks for them, instead.
const ASKED_BY_OTHERS: [(&str, &str, &str, &str); 1] =
    [("", "configmaps", "create", "a server-side apply of an object that is not there yet, whose verb is patch")];

/// What a check has the API server refuse, by the object's name: `knobs` narrows the Secrets.
const REFUSED_ON_PURPOSE: [&str; 1] = ["other-redis"];

/// Compares the rules of the chart's ServiceAccount with the audit log.
///
/// # Errors
/// What was refused, and what was granted for nothing.
pub fn run(rig: &Rig) -> Result<()> {
    let (used, refused) = audit::used(rig, "tokenbudget", &REFUSED_ON_PURPOSE)?;
    ensure!(refused.is_empty(), "the operator was refused {}", list(&refused));
    let of_release = ["-l", "app.kubernetes.io/instance=tokenbudget", "-o", "json"];
    let granted: BTreeSet<Right> = [
        rules(rig, &[&["get", "clusterroles"][..], &of_release].concat())?,
        rules(rig, &[&["-n", OPERATOR_NAMESPACE, "get", "roles"][..], &of_release].concat())?,
    ]
    .concat()
    .into_iter()
    .collect();
    let admission = Right::of("admissionregistration.k8s.io", "mutatingadmissionpolicies", "get");
    ensure!(granted.contains(&admission), "the role of attach: Admission is not looked at");
    let excused = |right: &Right| ASKED_BY_OTHERS.iter().any(|(g, r, v, _)| *right == Right::of(g, r, v));
    let idle: BTreeSet<Right> =
        granted.iter().filter(|right| !used.contains(right) && !excused(right)).cloned().collect();
    ensure!(idle.is_empty(), "the operator never used its right to {}", list(&idle));
    for (_, resource, verb, who) in ASKED_BY_OTHERS {
        println!("check: {verb} {resource} is asked for by {who}");
    }
    println!("check: each of the {} rights of the operator was used, and nothing was refused", granted.len());
    Ok(())
}

fn rules(rig: &Rig, get: &[&str]) -> Result<Vec<Right>> {
    let roles: Value = serde_json::from_str(&rig.kubectl(get)?)?;
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|item| text(item).to_owned()).collect()
    };
    let mut rights = Vec::new();
    let roles = roles["items"].as_array().into_iter().flatten();
    for rule in roles.flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                rights.extend(strings(&rule["verbs"]).iter().map(|verb| Right::of(&group, &resource, verb)));
            }
        }
    }
    Ok(rights)
}

fn list(rights: &BTreeSet<Right>) -> String {
    rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
