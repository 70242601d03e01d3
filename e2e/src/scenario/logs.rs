//! What the operator logs can be changed while it runs.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::fleet::until;
use super::operator::{holder, pod_of, restarts};
use super::rig::{OPERATOR_NAMESPACE, Rig};

/// A kubelet shows a changed ConfigMap within a minute; the operator reads it every two seconds.
const SHOWN: Duration = Duration::from_secs(90);

const LED: Duration = Duration::from_secs(20);

/// Asks for each pass through the chart's ConfigMap, and looks for one.
///
/// # Errors
/// When no pass is logged, a line lacks what it should have, or the operator started anew.
pub async fn run(rig: &Rig) -> Result<()> {
    // The replica before this one may have given the lease back just now.
    until("a replica leads", LED, || Ok(!holder(rig)?.is_empty())).await?;
    let (leader, before) = (holder(rig)?, restarts(rig)?);
    filter(rig, "info,tokenbudget=debug")?;
    let mut line = Value::Null;
    let took = until("the leader logs each pass", SHOWN, || {
        let text = rig.kubectl(&["-n", OPERATOR_NAMESPACE, "logs", pod_of(&leader), "--tail=200"])?;
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        line = lines.find(|line| line["level"] == "DEBUG" && line["message"] == "pass").unwrap_or_default();
        Ok(!line.is_null())
    })
    .await?;
    filter(rig, "info")?;
    let told = line["generation"].is_u64() && line["outcome"].is_string() && line["duration_ms"].is_f64();
    ensure!(told && line["span"]["tokenbudget"].is_string(), "a pass is logged as {line}");
    ensure!(holder(rig)? == leader && restarts(rig)? == before, "the operator started anew");
    println!("check: another logLevel holds after {:.0} s, without a restart", took.as_secs_f32());
    Ok(())
}

fn filter(rig: &Rig, filter: &str) -> Result<()> {
    let patch = json!({"data": {"filter": filter}}).to_string();
    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "patch", "configmap", "tokenbudget-log", "-p", &patch])?;
    Ok(())
}
