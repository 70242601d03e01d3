//! What the faults do to the cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::process::{Process, Signal};
use crate::scenario::fleet::{Fleet, text};
use crate::scenario::knobs::set;
use crate::scenario::operator::{holder, pod_of};
use crate::scenario::rig::{OPERATOR_NAMESPACE, Rig};

/// A LiteLLM process has to start, several at once on two cores.
pub const BOOT: Duration = Duration::from_secs(240);

/// Scales the fleet and waits for it.
pub async fn scale(rig: &Rig, replicas: usize) -> Result<()> {
    ask_for(rig, replicas)?;
    Fleet::of(rig).until_ready(replicas, BOOT).await?;
    Ok(())
}

/// Scales the fleet.
pub fn ask_for(rig: &Rig, replicas: usize) -> Result<()> {
    rig.kubectl(&["-n", "llm", "scale", "deployment/litellm", &format!("--replicas={replicas}")]).map(drop)
}

/// Makes all pods anew, and waits for them.
pub async fn roll(rig: &Rig) -> Result<()> {
    rig.kubectl(&["-n", "llm", "rollout", "restart", "deployment/litellm"])?;
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/litellm", "--timeout=240s"])?;
    Ok(())
}

/// How a rollout goes.
pub fn strategy(rig: &Rig, surge: &str, unavailable: &str) -> Result<()> {
    let patch = serde_json::json!({"spec": {"strategy": {"rollingUpdate":
        {"maxSurge": surge, "maxUnavailable": unavailable}}}});
    rig.kubectl(&["-n", "llm", "patch", "deployment", "litellm", "-p", &patch.to_string()]).map(drop)
}

/// Patches the spec of the fleet's TokenBudget.
pub fn budget(rig: &Rig, spec: &serde_json::Value) -> Result<()> {
    set(rig, "gpt-4o", &spec.to_string())
}

/// A Ready pod of the fleet and its process.
pub fn a_pod(rig: &Rig, index: usize) -> Result<(String, Process)> {
    let pods = Fleet::of(rig).ready_pods()?;
    let pod = pods.get(index % pods.len().max(1)).context("no pod is Ready")?;
    Ok((text(&pod["metadata"]["name"]).to_owned(), process_of(pod)?))
}

/// The process of a pod's first container.
pub fn process_of(pod: &serde_json::Value) -> Result<Process> {
    Process::of_container(text(&pod["status"]["containerStatuses"][0]["containerID"]))
}

/// Sets the replicas of the operator, and waits for them.
pub fn operators(rig: &Rig, replicas: u32) -> Result<()> {
    let count = format!("--replicas={replicas}");
    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "scale", "deployment/tokenbudget", &count])?;
    if replicas > 0 {
        rig.kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment/tokenbudget", "--timeout=60s"])?;
    }
    Ok(())
}

/// The operator's process that leads.
pub fn leader(rig: &Rig) -> Result<Process> {
    let leader = holder(rig)?;
    let pod = rig.kubectl(&["-n", OPERATOR_NAMESPACE, "get", "pod", pod_of(&leader), "-o", "json"])?;
    process_of(&serde_json::from_str(&pod)?)
}

/// The ledger's server.
pub fn redis(rig: &Rig) -> Result<Process> {
    let server = rig.paths.redis_server();
    let program = server.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Process::with_arguments(&program, &rig.paths.dir)
}

/// The API server.
pub fn api_server(rig: &Rig) -> Result<Process> {
    Process::with_arguments("kube-apiserver", &rig.paths.dir)
}

/// A process stands still for so long.
pub async fn frozen(process: Process, time: Duration) -> Result<()> {
    process.signal(Signal::Stop)?;
    sleep(time).await;
    process.signal(Signal::Continue)
}

/// Redis is killed, and started again empty after so long.
pub async fn without_redis(rig: &Rig, time: Duration) -> Result<()> {
    redis(rig)?.signal(Signal::Kill)?;
    sleep(time).await;
    rig.start_redis()
}

/// The provider fails half of the requests for so long.
pub async fn provider_fails(rig: &Rig, time: Duration) -> Result<()> {
    let provider = rig.provider()?;
    provider.set(&serde_json::json!({"failures": {"probability": 0.5, "status": 500}})).await?;
    sleep(time).await;
    provider.set(&serde_json::json!({"failures": {"probability": 0.0}})).await.map(drop)
}
