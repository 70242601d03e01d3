//! The fleet's size over time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::fleet::Fleet;
use super::rig::Rig;
use crate::clock::unix_ms;

/// The fleet's size over time.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Ready replicas from each moment on, in Unix milliseconds.
    pub seen: Vec<(u64, u32)>,
}

impl Replicas {
    /// Notes the number of ready replicas; answers whether it changed.
    pub fn set(&mut self, ready: usize) -> bool {
        let ready = u32::try_from(ready).unwrap_or(u32::MAX);
        let changed = self.seen.last().is_none_or(|(_, last)| *last != ready);
        if changed {
            self.seen.push((unix_ms(), ready));
        }
        changed
    }
}

/// Follows the ready and the wanted replicas until they are as they should be; answers with the ready ones.
pub async fn watch(
    rig: &Rig,
    replicas: &mut Replicas,
    limit: Duration,
    done: impl Fn(usize, usize) -> bool,
) -> Result<usize> {
    let fleet = Fleet::of(rig);
    let started = Instant::now();
    loop {
        let deployment = fleet.get("deployment", "litellm")?;
        let count = |at: &str| usize::try_from(deployment["status"][at].as_u64().unwrap_or(0)).unwrap_or(0);
        let wanted = usize::try_from(deployment["spec"]["replicas"].as_u64().unwrap_or(0)).unwrap_or(0);
        let ready = count("readyReplicas");
        if replicas.set(ready) {
            let cpu = cpu(&fleet)?;
            println!("  {ready} of {wanted} replicas are ready ({:.0} s, {cpu})", started.elapsed().as_secs_f32());
        }
        if done(ready, wanted) && count("replicas") == wanted {
            return Ok(ready);
        }
        if started.elapsed() > limit {
            let hpa = rig.kubectl(&["-n", "llm", "describe", "hpa", "litellm"])?;
            bail!(
                "{hpa}\nthe HPA did not scale as it should within {} s ({ready} of {wanted} ready, {})",
                limit.as_secs(),
                cpu(&fleet)?
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What the HPA sees and wants: `cpu 63 % of 50 %`.
fn cpu(fleet: &Fleet<'_>) -> Result<String> {
    let hpa = fleet.get("hpa", "litellm")?;
    let percent = |of: &serde_json::Value, kind: &str| {
        of["resource"][kind]["averageUtilization"].as_u64().map_or_else(|| "?".to_owned(), |p| p.to_string())
    };
    let seen = percent(&hpa["status"]["currentMetrics"][0], "current");
    let wanted = percent(&hpa["spec"]["metrics"][0], "target");
    Ok(format!("cpu {seen} % of {wanted} %"))
}
