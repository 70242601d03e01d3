//! Mode Observe, by which everybody begins: under a demand above the budget nothing is refused and it is shown what would have
//! been; Enforce is one field later, without a rollout.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::bench::Bench;
use super::fleet::{Fleet, until};
use super::knobs::{set, until_budget};
use super::rig::Rig;
use crate::load::{Counts, LoadSpec};

const SOON: Duration = Duration::from_secs(20);

/// Five times what `headroomPercent: 90` leaves of the budget, and half of what LiteLLM itself allows each process.
const DEMAND: f64 = 30_000.0;

/// Runs it on the fleet of the demo and its TokenBudget `gpt-4o`.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let (fleet, bench) = (Fleet::of(rig), Bench::new(rig)?);
    let rollouts = fleet.rollouts("litellm")?;
    set(rig, "gpt-4o", r#"{"mode": "Observe", "headroomPercent": 90}"#)?;
    until_budget(&fleet, 6_000).await?;
    until_all(&fleet, "Observing").await?;
    let watched = offer(&bench, 21).await?;
    ensure!(watched.limited == 0, "in mode Observe {} requests were refused", watched.limited);
    let limit = || Ok::<_, anyhow::Error>(fleet.get("tokenbudget", "gpt-4o")?["status"]["limits"][0].clone());
    until("the status shows what would have been refused", SOON, || Ok(limit()?["denied"].as_i64() > Some(0))).await?;
    let row = limit()?;
    set(rig, "gpt-4o", r#"{"mode": "Enforce"}"#)?;
    let took = until_all(&fleet, "Enforcing").await?;
    let enforced = offer(&bench, 22).await?;
    ensure!(enforced.limited > 0, "in mode Enforce nothing was refused");
    ensure!(watched.lost + enforced.lost == 0, "requests were lost: {watched:?}, {enforced:?}");
    println!(
        "check: in mode Observe none of {} requests was refused, and the status says {} used and {} denied of {}; Enforce holds \
         {:.1} s later and refuses {} of {}",
        watched.ok,
        row["spent"],
        row["denied"],
        row["budget"],
        took.as_secs_f32(),
        enforced.limited,
        enforced.limited + enforced.ok
    );
    set(rig, "gpt-4o", r#"{"headroomPercent": null}"#)?;
    until_budget(&fleet, 60_000).await?;
    ensure!(fleet.rollouts("litellm")? == rollouts, "a change of mode was a rollout");
    Ok(())
}

async fn offer(bench: &Bench<'_>, seed: u64) -> Result<Counts> {
    let spec = LoadSpec { seed, duration: Duration::from_secs(15), progress: None, ..bench.spec().await? };
    Ok(bench.offer(spec.tokens_per_minute(DEMAND)).await?.summary().counts)
}

/// All processes are in this state.
async fn until_all(fleet: &Fleet<'_>, state: &str) -> Result<Duration> {
    until(&format!("all processes are {state}"), SOON, || {
        let rows = fleet.get("tokenbudget", "gpt-4o")?["status"]["pods"].as_array().cloned().unwrap_or_default();
        Ok(!rows.is_empty() && rows.iter().all(|row: &Value| row["state"] == state))
    })
    .await
}
