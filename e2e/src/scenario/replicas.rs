//! The fleet's size over time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::fleet::{Fleet, name_of, text};
use super::rig::Rig;
use crate::clock::unix_ms;

/// The fleet's size over time, and which pods were in the ledger before they were Ready.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Ready replicas from each moment on, in Unix milliseconds.
    pub seen: Vec<(u64, u32)>,
    /// Pods that were seen in the ledger while they were not Ready. Their share may be 0: in a saturated fleet a newcomer
    /// without demand has none until its first refusal.
    in_time: BTreeSet<String>,
    /// Pods that were seen Ready.
    ready: BTreeSet<String>,
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

    /// Notes which pods are in the ledger, and which are Ready, now.
    fn note(&mut self, fleet: &Fleet<'_>) -> Result<()> {
        let rows = fleet.get("tokenbudget", "gpt-4o")?["status"]["pods"].as_array().cloned().unwrap_or_default();
        let ready: BTreeSet<String> = fleet.ready_pods()?.iter().map(name_of).collect();
        let recorded = rows.iter().map(|row| text(&row["pod"]).to_owned());
        self.in_time.extend(recorded.filter(|pod| !ready.contains(pod) && !self.ready.contains(pod)));
        self.ready.extend(ready);
        Ok(())
    }

    /// The late pods that were Ready before the ledger knew them.
    #[must_use]
    pub fn late_to_the_ledger(&self, early: &[String]) -> Vec<String> {
        let late = self.ready.iter().filter(|pod| !early.contains(pod));
        late.filter(|pod| !self.in_time.contains(*pod)).cloned().collect()
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
            println!("  {ready} of {wanted} replicas are ready ({:.0} s)", started.elapsed().as_secs_f32());
        }
        replicas.note(&fleet)?;
        if done(ready, wanted) && count("replicas") == wanted {
            return Ok(ready);
        }
        if started.elapsed() > limit {
            let hpa = rig.kubectl(&["-n", "llm", "describe", "hpa", "litellm"])?;
            bail!(
                "the HPA did not scale as it should within {} s ({ready} of {wanted} ready):\n{hpa}",
                limit.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
