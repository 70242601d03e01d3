//! `attach: Manual`: the operator leaves the pod template alone, and what `tokenbudget attach` prints makes the fleet enforce.
//! Two TokenBudgets share the Deployment; one of them goes, and the other stays as it is.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::checks::{apply_text, delete_within, manifest, untouched};
use super::fleet::{Fleet, conditions, text, until};
use super::rig::Rig;

const FIRST: &str = "by-hand";
const SECOND: &str = "by-hand-too";

/// A LiteLLM process has to start.
const BOOT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(20);

/// Runs all of it on Deployment `plain`.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    let generation = || Ok::<_, anyhow::Error>(fleet.get("deployment", "plain")?["metadata"]["generation"].clone());
    for (name, model) in [(FIRST, "gpt-4o"), (SECOND, "gpt-4o-mini")] {
        let spec = format!(
            "targetRefs: [{{name: plain}}]\n  attach: Manual\n  limits: [{{name: a, models: [{{modelName: {model}}}], tokensPerMinute: 600}}]"
        );
        let (accepted, answer) = apply_text(rig, &manifest(name, &spec))?;
        ensure!(accepted, "{answer}");
        fleet.until_condition(name, "Attached", "False", Some("PartiallyAttached"), SOON).await?;
    }
    let object = fleet.get("tokenbudget", FIRST)?;
    ensure!(object["status"]["replicas"] == "0/1", "of one pod without agent it says {}", object["status"]["replicas"]);
    let found = conditions(&object);
    let message = found.iter().find(|c| c["type"] == "Attached").map(|c| text(&c["message"])).unwrap_or_default();
    ensure!(message.contains("when you add it to the pod template"), "Attached says: {message}");
    untouched(&fleet, "plain")?;

    let mut command = Command::new(rig.paths.built("tokenbudget"));
    let output = command
        .args(["attach", "-n", "llm", "--deployment", "plain", "-o", "json"])
        .env("KUBECONFIG", rig.kubeconfig())
        .output()?;
    ensure!(output.status.success(), "tokenbudget attach: {}", String::from_utf8_lossy(&output.stderr));
    let patch = String::from_utf8_lossy(&output.stdout).into_owned();
    rig.kubectl(&["-n", "llm", "patch", "deployment", "plain", "--patch", &patch])?;
    let enforces = |name: &str| -> Result<bool> {
        let status = fleet.get("tokenbudget", name)?["status"].clone();
        let enforcing = |rows: &Vec<Value>| rows.len() == 1 && rows[0]["state"] == "Enforcing";
        Ok(status["replicas"] == "1/1" && status["pods"].as_array().is_some_and(enforcing))
    };
    let took =
        until("the pod with the pasted patch enforces", BOOT, || Ok(enforces(FIRST)? && enforces(SECOND)?)).await?;
    println!("check: what attach prints makes a pod enforce two TokenBudgets after {:.0} s", took.as_secs_f32());

    let (before, pod) = (generation()?, fleet.get("tokenbudget", SECOND)?["status"]["pods"][0]["pod"].clone());
    delete_within(rig, FIRST, Duration::from_secs(30))?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(enforces(SECOND)?, "the end of one TokenBudget has ended another: {}", fleet.get("tokenbudget", SECOND)?);
    let now = fleet.get("tokenbudget", SECOND)?["status"]["pods"][0]["pod"].clone();
    ensure!(generation()? == before && now == pod, "the end of one of two TokenBudgets was a rollout");
    delete_within(rig, SECOND, Duration::from_secs(30))?;
    let left = fleet.get("deployment", "plain")?["spec"]["template"].to_string();
    ensure!(left.contains("tokenbudget"), "with attach: Manual the operator has changed the pod template");
    println!("check: one of two TokenBudgets of a Deployment goes without a rollout, and what was pasted stays");
    rig.kubectl(&["-n", "llm", "rollout", "undo", "deployment/plain"])?;
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/plain", "--timeout=120s"])?;
    untouched(&fleet, "plain")
}
