//! What the fields of a TokenBudget do to a fleet that runs, and what they do not: no field but `attach` and
//! `agentUpdatePolicy` is a rollout.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tokenbudget::litellm::AGENT_HOOK;

use super::checks::{delete_within, manifest, untouched};
use super::fleet::{Fleet, message, until};
use super::rig::Rig;

const SOON: Duration = Duration::from_secs(20);

/// Runs all of it beside the fleet of the demo and its TokenBudget `gpt-4o`.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    let generation = generation(&fleet, "litellm")?;
    overlap(rig, &fleet).await?;
    headroom_and_pause(rig, &fleet).await?;
    ensure!(self::generation(&fleet, "litellm")? == generation, "a field that is no rollout changed the Deployment");
    rolling_update(rig, &fleet).await
}

fn generation(fleet: &Fleet<'_>, deployment: &str) -> Result<Value> {
    Ok(fleet.get("deployment", deployment)?["metadata"]["generation"].clone())
}

pub(super) fn set(rig: &Rig, budget: &str, spec: &str) -> Result<()> {
    rig.kubectl(&["-n", "llm", "patch", "tb", budget, "--type=merge", "-p", &format!("{{\"spec\": {spec}}}")])?;
    Ok(())
}

/// The budgets of its limits, by its status.
fn budgets(fleet: &Fleet<'_>, budget: &str) -> Result<Vec<i64>> {
    let rows = fleet.get("tokenbudget", budget)?["status"]["limits"].as_array().cloned().unwrap_or_default();
    Ok(rows.iter().filter_map(|row| row["budget"].as_i64()).collect())
}

pub(super) async fn until_budget(fleet: &Fleet<'_>, wanted: i64) -> Result<Duration> {
    let started = Instant::now();
    while budgets(fleet, "gpt-4o")? != [wanted] {
        if started.elapsed() > SOON {
            bail!("the budgets are {:?}, not {wanted}, after {SOON:?}", budgets(fleet, "gpt-4o")?);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(started.elapsed())
}

async fn overlap(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    rig.apply_text(&manifest("younger", "mode: Observe"))?;
    fleet.until_condition("younger", "Accepted", "False", Some("Overlap"), SOON).await?;
    let message = message(&fleet.get("tokenbudget", "younger")?, "Accepted");
    ensure!(message.contains("TokenBudget gpt-4o"), "{message:?} names no other");
    ensure!(budgets(fleet, "younger")?.is_empty(), "the younger keeps a limit");
    fleet.until_condition("gpt-4o", "Accepted", "True", None, SOON).await?;
    delete_within(rig, "younger", Duration::from_secs(30))?;
    let template = fleet.get("deployment", "litellm")?["spec"]["template"].to_string();
    ensure!(template.contains(AGENT_HOOK), "the end of the younger took the agent out");
    println!("check: a second TokenBudget for the same deployments: Overlap: {message}");
    Ok(())
}

async fn headroom_and_pause(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    until_budget(fleet, 60_000).await?;
    set(rig, "gpt-4o", r#"{"headroomPercent": 10}"#)?;
    let took = until_budget(fleet, 54_000).await?;
    println!("check: headroomPercent 10 is a budget of 54000 after {:.1} s", took.as_secs_f32());
    set(rig, "gpt-4o", r#"{"paused": true}"#)?;
    fleet.until_condition("gpt-4o", "Ready", "False", Some("Paused"), SOON).await?;
    set(rig, "gpt-4o", r#"{"headroomPercent": 50}"#)?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(budgets(fleet, "gpt-4o")? == [54_000], "a paused TokenBudget was planned");
    set(rig, "gpt-4o", r#"{"paused": null, "headroomPercent": null}"#)?;
    until_budget(fleet, 60_000).await?;
    println!("check: a paused TokenBudget keeps what there is, and goes on when it is not paused any more");
    Ok(())
}

async fn rolling_update(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let spec = "targetRefs: [{name: plain}]\n  paused: true\n  agentUpdatePolicy: RollingUpdate\n  \
                limits: [{name: a, models: [{modelName: gpt-4o}], tokensPerMinute: 600}]";
    rig.apply_text(&manifest("rolling", spec))?;
    fleet.until_condition("rolling", "Ready", "False", Some("Paused"), SOON).await?;
    untouched(fleet, "plain")?;
    set(rig, "rolling", r#"{"paused": false}"#)?;
    let annotation = |fleet: &Fleet<'_>| -> Result<Value> {
        let annotations = &fleet.get("deployment", "plain")?["spec"]["template"]["metadata"]["annotations"];
        Ok(annotations["tokenbudget.dev/agent-digest"].clone())
    };
    let started = Instant::now();
    while annotation(fleet)?.is_null() {
        ensure!(started.elapsed() < SOON, "the template does not name the agent's digest");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let before = generation(fleet, "plain")?;
    set(rig, "rolling", r#"{"agentUpdatePolicy": "OnPodRestart", "mode": "Observe", "maxWait": "1s"}"#)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(generation(fleet, "plain")? == before, "a change of mind, mode or wait was a rollout");
    println!(
        "check: agentUpdatePolicy RollingUpdate names the agent's digest in the template, and nothing rolls twice"
    );
    set(rig, "rolling", r#"{"targetRefs": [{"name": "pair", "container": "one"}]}"#)?;
    let took =
        until("the agent is out of a Deployment that is named no more", SOON, || Ok(untouched(fleet, "plain").is_ok()))
            .await?;
    println!(
        "check: a Deployment that targetRefs names no more is without the agent after {:.1} s",
        took.as_secs_f32()
    );
    delete_within(rig, "rolling", Duration::from_secs(30))?;
    untouched(fleet, "pair")
}

/// With a Role in one namespace instead of a ClusterRole the operator does the same; what it is refused, `rights` finds.
///
/// # Errors
/// The first that is not as it should be.
pub async fn one_namespace(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    for name in ["named-redis", "other-redis"] {
        rig.redis_secret(name, &rig.redis_url)?;
    }
    rig.helm_install(&["watchNamespaces={llm}", "rbac.secretNames={named-redis,litellm}"])?;
    let roles = rig.kubectl(&["get", "clusterroles", "-l", "app.kubernetes.io/name=tokenbudget", "-o", "name"])?;
    ensure!(roles.trim().is_empty(), "with watchNamespaces there is still {roles}");
    set(rig, "gpt-4o", r#"{"headroomPercent": 20}"#)?;
    until_budget(fleet, 48_000).await?;
    set(rig, "gpt-4o", r#"{"headroomPercent": 0}"#)?;
    let took = until_budget(fleet, 60_000).await?;
    for (name, accepted) in [("named-redis", "True"), ("other-redis", "False")] {
        let spec = format!(
            "targetRefs: [{{name: pair, container: one}}]\n  paused: true\n  redis: {{urlSecretRef: {{name: {name}, key: url}}}}\n  \
             limits: [{{name: a, models: [{{modelName: m}}], tokensPerMinute: 600}}]"
        );
        rig.apply_text(&manifest(name, &spec))?;
        fleet.until_condition(name, "Accepted", accepted, None, SOON).await?;
        delete_within(rig, name, Duration::from_secs(30))?;
        rig.kubectl(&["-n", "llm", "delete", "secret", name])?;
    }
    println!("check: with rbac.secretNames another Secret is not read");
    rig.helm_install(&[])?;
    println!("check: with watchNamespaces={{llm}} and no ClusterRole a change holds after {:.1} s", took.as_secs_f32());
    Ok(())
}
