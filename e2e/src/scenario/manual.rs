//! `attach: Manual`: the operator leaves the pod template alone, and what `tokenbudget attach` prints makes the fleet enforce.
//! Two TokenBudgets share the Deployment; one of them goes, and the other stays as it is.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::bench::MASTER_KEY;
use super::checks::{delete_within, manifest, untouched};
use super::fleet::{Fleet, message, until};
use super::rig::Rig;

const FIRST: &str = "by-hand";
const SECOND: &str = "by-hand-too";

/// A LiteLLM process has to start.
const BOOT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(20);

/// About a sixth of either budget.
const REQUEST: &str = r#"{"model": "gpt-4o", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}"#;

/// After so many at the latest the budget is spent.
const ENOUGH: usize = 20;

/// How soon a live process has its own limits back: a beat, and a busy machine.
const DETACHES: Duration = Duration::from_secs(5);

/// Runs all of it on Deployment `plain`.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    let generation = || Ok::<_, anyhow::Error>(fleet.get("deployment", "plain")?["metadata"]["generation"].clone());
    for (name, model) in [(FIRST, "gpt-4o-mini"), (SECOND, "gpt-4o")] {
        let spec = format!(
            "targetRefs: [{{name: plain}}]\n  attach: Manual\n  limits: [{{name: a, models: [{{modelName: {model}}}], tokensPerMinute: 600}}]"
        );
        rig.apply_text(&manifest(name, &spec))?;
        fleet.until_condition(name, "Attached", "False", Some("PartiallyAttached"), SOON).await?;
    }
    let object = fleet.get("tokenbudget", FIRST)?;
    ensure!(object["status"]["replicas"] == "0/1", "of one pod without agent it says {}", object["status"]["replicas"]);
    let message = message(&object, "Attached");
    ensure!(message.contains("when you add it to the pod template"), "Attached says: {message}");
    untouched(&fleet, "plain")?;

    let patch = rig.tokenbudget(&["attach", "-n", "llm", "--deployment", "plain", "-o", "json"])?;
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
    limits_are_litellms_again(rig, &fleet).await?;
    let left = fleet.get("deployment", "plain")?["spec"]["template"].to_string();
    ensure!(left.contains("tokenbudget"), "with attach: Manual the operator has changed the pod template");
    println!("check: one of two TokenBudgets of a Deployment goes without a rollout, and what was pasted stays");
    rig.kubectl(&["-n", "llm", "rollout", "undo", "deployment/plain"])?;
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/plain", "--timeout=120s"])?;
    untouched(&fleet, "plain")
}

/// What a live process refused it admits as soon as its last TokenBudget is gone, without a restart.
async fn limits_are_litellms_again(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let path = "jsonpath={.items[0].status.podIP}";
    let pod = rig.kubectl(&["-n", "llm", "get", "pods", "-l", "app=plain", "-o", path])?;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    let ask = async || -> Result<u16> {
        let request = client.post(format!("http://{pod}:4000/v1/chat/completions")).bearer_auth(MASTER_KEY);
        let answer = request.header("content-type", "application/json").body(REQUEST).send().await?;
        Ok(answer.status().as_u16())
    };
    let mut answers = Vec::new();
    while answers.last() != Some(&429) {
        ensure!(answers.len() < ENOUGH, "the budget is not enforced: {answers:?}");
        answers.push(ask().await?);
    }
    let before = fleet.get("tokenbudget", SECOND)?["status"]["pods"][0]["pod"].clone();
    let started = Instant::now();
    delete_within(rig, SECOND, Duration::from_secs(30))?;
    let gone = started.elapsed();
    while ask().await? != 200 {
        ensure!(started.elapsed() < gone + DETACHES, "the process still refuses after {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "check: a TokenBudget is gone after {:.1} s, and what pod {before} refused it admits {:.1} s after the deletion began",
        gone.as_secs_f32(),
        started.elapsed().as_secs_f32()
    );
    Ok(())
}
