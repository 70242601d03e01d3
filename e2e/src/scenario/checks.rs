//! What users do wrong, and how they leave: on the real control plane, each with a message that says the way out.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::runtime::Handle;

use super::bench::Bench;
use super::fleet::{Fleet, message, name_of, text, until};
use super::ledgers::Ledgers;
use super::operator::{Passes, restarts};
use super::outsider::Outsider;
use super::rig::{OPERATOR_NAMESPACE, Rig};
use super::{
    admission, audit, exposition, failover, killed, knobs, logs, manners, manual, observed, refusals, releases, rights,
    schema, shapes, uninstall, unreached,
};
use crate::load::LoadSpec;

/// What only a condition can say: a name, a spec, the condition's type, its reason, and words of its message.
const ACCEPTED_FALSE: [(&str, &str, &str, &str, &str); 6] = [
    ("no-deployment", "targetRefs: [{name: missing}]", "Accepted", "TargetNotFound", "there is no Deployment missing"),
    ("no-container", "targetRefs: [{name: plain, container: nope}]", "Accepted", "NoContainer", "it has litellm"),
    ("two-containers", "targetRefs: [{name: pair}]", "Accepted", "AmbiguousContainer", "targetRefs[].container"),
    (
        "no-secret",
        "targetRefs: [{name: plain}]\n  redis: {urlSecretRef: {name: missing, key: url}}",
        "Accepted",
        "RedisSettingsMissing",
        "there is no Secret missing",
    ),
    (
        "no-key",
        "targetRefs: [{name: plain}]\n  redis: {urlSecretRef: {name: dead-redis, key: missing}}",
        "Accepted",
        "RedisSettingsMissing",
        "has no key missing",
    ),
    (
        "dead-redis",
        "targetRefs: [{name: plain}]\n  redis: {urlSecretRef: {name: dead-redis, key: url}}",
        "LedgerReachable",
        "LedgerUnreachable",
        "cannot be reached",
    ),
];

/// The most passes that a TokenBudget may cost in a second, while pods of its Deployment come and go.
const MOST_PASSES: f64 = 5.0;

/// How soon the operator adds the agent to a Deployment.
const ATTACHED: Duration = Duration::from_secs(20);

/// How long an idle fleet is left alone.
const IDLE: Duration = Duration::from_secs(25);

/// Runs all checks on a rig with the fleet of the demo.
///
/// # Errors
/// The first check that fails.
pub async fn run(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    rig.apply("plain.yaml")?;
    schema::run(rig)?;
    // These start the operator anew, which then knows less of what it has seen.
    unreached::run(rig, &fleet).await?;
    knobs::one_namespace(rig, &fleet).await?;
    bad_input(rig, &fleet).await?;

    // What takes minutes to be seen goes on beside the rest.
    let vanished = killed::vanish(rig).await?;
    let lost = killed::lose_node(rig).await?;
    releases::run(rig).await?;
    manual::run(rig).await?;
    quiet(rig).await?;
    knobs::run(rig).await?;

    // A pause would have spoiled a minute of LiteLLM's counters.
    let outsider = Outsider::start(rig).await?;
    let ledgers = Ledgers::start(rig).await?;
    // It waits for kubectl most of the time, which holds up its thread.
    let refused = tokio::task::spawn_blocking({
        let rig = rig.clone();
        move || Handle::current().block_on(refusals::run(&rig))
    });
    manners::run(rig).await?;
    logs::run(rig).await?;
    ledgers.until_enforced().await?;
    observed::run(rig).await?;
    shapes::run(rig).await?;
    exposition::run(rig)?;
    terminal(rig)?;
    refused.await??;
    outsider.until_seen().await?;
    lost.until_given_up(rig).await?;
    vanished.until_given_up(rig).await?;

    admission::run(rig).await?;
    failover::run(rig).await?;
    killed::run(rig, &fleet).await?;
    leaves_no_trace(rig, &fleet).await?;
    rights::run(rig)?;
    uninstall::run(rig, &fleet).await
}

/// It is answered, the operator lives, the pods serve.
async fn bad_input(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let before = restarts(rig)?;
    for (name, spec, kind, reason, words) in ACCEPTED_FALSE {
        said(rig, name, spec, (kind, reason, words)).await?;
        // At once, or it would be an older claim on the next one's Deployment.
        delete_within(rig, name, Duration::from_secs(30))?;
    }
    untouched(fleet, "plain")?;
    no_secret_is_told(rig)?;

    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/plain", "--timeout=120s"])?;
    said(rig, "nothing-declared", "targetRefs: [{name: plain}]", ("Accepted", "NoLimits", "spec.limits is empty"))
        .await?;
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/plain", "--timeout=120s"])?;
    delete_within(rig, "nothing-declared", Duration::from_secs(30))?;
    untouched(fleet, "plain")?;
    ensure!(restarts(rig)? == before, "the operator restarted on bad input");
    println!("check: bad input is answered, the operator lives, the pods serve");
    Ok(())
}

/// Brings the fleet and its TokenBudget to where the demo leaves them, without the load.
///
/// # Errors
/// When the fleet does not come up.
pub async fn prepare(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    rig.apply("litellm.yaml")?;
    fleet.until_ready(3, Duration::from_secs(180)).await?;
    rig.apply("tokenbudget.yaml")?;
    fleet.until_condition("gpt-4o", "Attached", "True", None, Duration::from_secs(240)).await?;
    Ok(())
}

pub(super) fn manifest(name: &str, spec: &str) -> String {
    let targets = if spec.contains("targetRefs") { "" } else { "targetRefs: [{name: litellm}]\n  " };
    format!(
        "apiVersion: tokenbudget.dev/v1alpha1\nkind: TokenBudget\nmetadata: {{name: {name}, namespace: llm}}\nspec:\n  {targets}{spec}\n"
    )
}

/// Nothing is written about a fleet that does nothing.
async fn quiet(rig: &Rig) -> Result<()> {
    Fleet::of(rig).until_idle("gpt-4o", Duration::from_secs(150)).await?;
    // A process that has just started has a window behind it.
    Fleet::of(rig).until_condition("gpt-4o", "Enforcing", "True", None, Duration::from_secs(120)).await?;
    // The last whole minute with traffic is compared with LiteLLM's counters later.
    let compared =
        || Ok(Fleet::of(rig).get("tokenbudget", "gpt-4o")?["status"]["limits"][0]["observed"]["tokens"] == 0);
    until("the last minute that is compared is idle", Duration::from_secs(150), compared).await?;
    tokio::time::sleep(IDLE).await;
    // The last figures are written within a second.
    let writes = audit::status_writes_a_minute(rig, "gpt-4o", IDLE - Duration::from_secs(3))?;
    ensure!(writes == 0.0, "the status of an idle fleet is written {writes:.1} times a minute");
    println!("check: the status of an idle fleet is not written");
    Ok(())
}

/// `kubectl tokenbudget`, as kubectl's plugin, beside a real operator.
fn terminal(rig: &Rig) -> Result<()> {
    let bin = rig.paths.dir.join("bin");
    let run = |args: &[&str]| -> Result<String> {
        let mut command = Command::new(bin.join("kubectl"));
        // kubectl looks for its plugins there.
        command.arg("tokenbudget").args(args).env("KUBECONFIG", rig.kubeconfig()).env("PATH", &bin);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "tokenbudget {}: {said}", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let picture = run(&["top", "--once", "-n", "llm"])?;
    ensure!(picture.contains("llm/gpt-4o  Enforce") && picture.contains("of 60,000 tokens per minute"), "{picture}");
    println!("$ kubectl tokenbudget top --once -n llm\n{picture}");
    let rows: Value = serde_json::from_str(&run(&["top", "-o", "json", "-n", "llm"])?)?;
    ensure!(rows["items"][0]["limits"][0]["budget"] == 60_000, "{rows}");
    let pasted = run(&["attach", "-n", "llm", "--deployment", "plain", "--print", "kustomize"])?;
    ensure!(pasted.contains("tokenbudget_agent:start"), "{pasted}");
    Ok(())
}

/// Applies a TokenBudget that cannot work, and waits for what is said about it.
async fn said(rig: &Rig, name: &str, spec: &str, (kind, reason, words): (&str, &str, &str)) -> Result<()> {
    rig.apply_text(&manifest(name, spec))?;
    let fleet = Fleet::of(rig);
    let limit = if reason == "NoLimits" { Duration::from_secs(90) } else { Duration::from_secs(20) };
    fleet.until_condition(name, kind, "False", Some(reason), limit).await?;
    let object = fleet.get("tokenbudget", name)?;
    let message = message(&object, kind);
    ensure!(message.contains(words), "{name}: expected {words:?} in: {message}");
    ensure!(!serde_json::to_string(&object)?.contains("hunter2"), "{name}: the password is in the object");

    let before = Passes::so_far(rig)?;
    let started = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let rate = Passes::so_far(rig)?.since(&before).count / started.elapsed().as_secs_f64();
    let known = rig.kubectl(&["get", "tb", "-A", "-o", "name"])?.lines().count();
    ensure!(rate <= MOST_PASSES * known as f64, "{name}: {rate:.1} passes a second with {known} TokenBudgets");
    told_once(rig, &object, reason)?;
    println!("check: {name}: {reason}: {message}");
    Ok(())
}

/// However many passes came since, the API server has one event of this reason about the object, and it was told once.
pub(super) fn told_once(rig: &Rig, object: &Value, reason: &str) -> Result<()> {
    let of = format!("involvedObject.uid={},reason={reason}", text(&object["metadata"]["uid"]));
    let events = rig.kubectl(&["-n", "llm", "get", "events", "--field-selector", &of, "-o", "json"])?;
    let events: Value = serde_json::from_str(&events)?;
    let once = |event: &Value| event["series"].is_null() && event["count"].as_i64().unwrap_or(1) <= 1;
    let told = events["items"].as_array().is_some_and(|all| all.len() == 1 && all.iter().all(once));
    ensure!(told, "{}: event {reason} was not told once: {}", name_of(object), events["items"]);
    Ok(())
}

/// The password of `dead-redis` is in no event and no line of the log.
fn no_secret_is_told(rig: &Rig) -> Result<()> {
    let log = rig.kubectl(&["-n", OPERATOR_NAMESPACE, "logs", "deployment/tokenbudget", "--tail=-1"])?;
    let events = rig.kubectl(&["-n", "llm", "get", "events", "-o", "json"])?;
    ensure!(log.contains("dead-redis"), "the operator's log does not name dead-redis: this check is void");
    ensure!(!log.contains("hunter2") && !events.contains("hunter2"), "a password is in the log or in an event");
    Ok(())
}

/// The Deployment's pod template does not name us.
pub(super) fn untouched(fleet: &Fleet<'_>, deployment: &str) -> Result<()> {
    let object = fleet.get("deployment", deployment)?;
    let template = serde_json::to_string(&object["spec"]["template"])?;
    ensure!(!template.contains("tokenbudget"), "Deployment {deployment} still carries our entries: {template}");
    Ok(())
}

/// Waits until the pod template has the agent.
pub(super) async fn until_attached(fleet: &Fleet<'_>, deployment: &str) -> Result<Duration> {
    let attached = || Ok(untouched(fleet, deployment).is_err());
    until(&format!("Deployment {deployment} has the agent"), ATTACHED, attached).await
}

pub(super) fn delete_within(rig: &Rig, budget: &str, limit: Duration) -> Result<()> {
    let timeout = format!("--timeout={}s", limit.as_secs());
    rig.kubectl(&["-n", "llm", "delete", "tb", budget, &timeout])?;
    Ok(())
}

/// The last TokenBudget goes: the fleet rolls back to what it was, and the finalizer does not hang.
async fn leaves_no_trace(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let bench = Bench::new(rig)?;
    let light = LoadSpec { rate: 2.0, progress: None, ..bench.spec().await? };
    let leave = async {
        // The load has begun before.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let started = Instant::now();
        delete_within(rig, "gpt-4o", Duration::from_secs(30))?;
        let gone = started.elapsed();
        untouched(fleet, "litellm")?;
        rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/litellm", "--timeout=180s"])?;
        Ok(gone)
    };
    let (report, gone) = bench.meanwhile(light, leave).await?;
    let counts = report.summary().counts;
    ensure!(counts.ok > 0 && counts.lost == 0, "{} requests were lost while the TokenBudget went", counts.lost);
    println!(
        "check: the TokenBudget was gone after {:.1} s, {} requests were answered while the fleet rolled back, none was lost",
        gone.as_secs_f32(),
        counts.ok
    );
    ensure!(!fleet.ready_pods()?.is_empty(), "no pod is ready after the TokenBudget was removed");
    let maps = rig.kubectl(&["-n", "llm", "get", "configmaps", "-o", "name"])?;
    ensure!(!maps.contains("tokenbudget-litellm"), "a ConfigMap is left: {maps}");
    println!("check: the pod template is as it was, and the pods serve");
    Ok(())
}
