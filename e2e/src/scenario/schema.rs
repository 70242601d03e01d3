//! What the API server itself takes and refuses, by the schema and the CEL rules of the CRD: each rule on both of its sides.

use anyhow::{Result, ensure};

use super::checks::manifest;
use super::rig::Rig;

/// What is refused at once: a spec, and words of the answer.
const REFUSED: [(&str, &str, &str); 15] = [
    ("a negative limit", "limits: [{name: a, models: [{modelName: m}], tokensPerMinute: -5}]", "tokensPerMinute"),
    ("a zero limit", "limits: [{name: a, models: [{modelName: m}], requestsPerMinute: 0}]", "requestsPerMinute"),
    (
        "a limit of more than 10^12 tokens",
        "limits: [{name: a, models: [{modelName: m}], tokensPerMinute: 1000000000001}]",
        "tokensPerMinute",
    ),
    ("a limit without a figure", "limits: [{name: a, models: [{modelName: m}]}]", "a limit needs tokensPerMinute"),
    ("a limit without a model", "limits: [{name: a, models: [], tokensPerMinute: 5}]", "limits[0].models"),
    (
        "a limit with a name of its own kind",
        "limits: [{name: A_b, models: [{id: one}], tokensPerMinute: 5}]",
        "limits[0].name",
    ),
    (
        "a selector without a field",
        "limits: [{name: a, models: [{}], tokensPerMinute: 5}]",
        "give at least one of modelName",
    ),
    (
        "two limits of one name",
        "limits: [{name: a, models: [{id: one}], tokensPerMinute: 5}, {name: a, models: [{id: two}], tokensPerMinute: 5}]",
        "each name may be used once",
    ),
    ("no Deployment", "targetRefs: []", "spec.targetRefs"),
    ("a Deployment twice", "targetRefs: [{name: a}, {name: a}]", "each Deployment may be named once"),
    ("an unknown field", "tokensPerMinuteee: 5", "unknown field \"spec.tokensPerMinuteee\""),
    ("an unknown mode", "mode: Refuse", "supported values: \"Enforce\", \"Observe\""),
    ("no headroom left", "headroomPercent: 95", "headroomPercent"),
    ("a wait that is too long", "maxWait: 20s", "at most 10s"),
    ("a wait that is no duration", "maxWait: soon", "spec.maxWait"),
];

/// What is taken, at the border of what is.
const TAKEN: [&str; 11] = [
    "limits: []",
    "limits: [{name: a, models: [{modelName: m}], tokensPerMinute: 1}]",
    "limits: [{name: a, models: [{modelName: m}], tokensPerMinute: 1000000000000, requestsPerMinute: 1000000000}]",
    "limits: [{name: a.b-c, models: [{id: one}, {litellmModel: azure/gpt-4o, apiBase: 'https://a.example'}], requestsPerMinute: 1}]",
    "limits: [{name: a, models: [{id: one}], tokensPerMinute: 5}, {name: b, models: [{id: one}], tokensPerMinute: 5}]",
    "targetRefs: [{name: a}, {name: b, container: proxy}]",
    "mode: Observe\n  reserve: Estimate\n  onLedgerLoss: Open\n  attach: Manual\n  agentUpdatePolicy: RollingUpdate",
    "attach: Admission\n  paused: true",
    "headroomPercent: 90",
    "maxWait: 10s",
    "maxWait: '0'\n  redis: {urlSecretRef: {name: redis, key: url}}",
];

/// Asks the API server about all of them; none is kept.
///
/// # Errors
/// The first that is not answered as it should be.
pub fn run(rig: &Rig) -> Result<()> {
    let ask = |name: &str, spec: &str| rig.try_apply(&["--dry-run=server"], &manifest(name, spec));
    for (what, spec, words) in REFUSED {
        let (accepted, said) = ask("refused", spec)?;
        ensure!(!accepted, "{what} was accepted");
        ensure!(said.contains(words), "{what}: expected {words:?} in: {said}");
        println!("check: {what} is refused: {}", said.lines().last().unwrap_or_default().trim());
    }
    let (accepted, said) = ask(&"n".repeat(53), "paused: true")?;
    ensure!(!accepted && said.contains("at most 52 characters long"), "a name of 53 characters: {said}");
    for spec in TAKEN {
        let (accepted, said) = ask(&"n".repeat(52), spec)?;
        ensure!(accepted, "{spec} was refused: {said}");
    }
    let examples = rig.paths.root.join("crds/examples").to_string_lossy().into_owned();
    let taken = rig.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", &examples])?;
    println!("check: the {} examples of crds/examples are taken", taken.lines().count());
    let explained = rig.kubectl(&["explain", "tokenbudget.spec"])?;
    ensure!(
        explained.contains("targetRefs") && !explained.contains("<no description>"),
        "kubectl explain: {explained}"
    );
    println!("check: {} specs at the border of what is valid are taken", TAKEN.len());
    Ok(())
}
