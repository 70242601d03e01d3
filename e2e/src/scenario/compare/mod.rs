//! `make bench`: TokenBudget beside what LiteLLM has, on the same requests, judged by the provider's count.

mod arms;
mod kept;
mod published;
mod run;
mod table;

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::sleep;

pub use arms::{Arm, Demand};
use kept::Kept;
use published::Told;
use run::Run;

use super::bench::{BUDGET, Bench};
use super::fleet::{Fleet, until};
use super::redis::{command, figure};
use super::rig::Rig;
use crate::clock::{unix_ms, until_second};
use crate::load::{Burst, LoadSpec, Skew};

/// How long each demand lasts: over two edges of LiteLLM's minutes, and with [`EMPTY`] no more than three of them.
const LOAD: Duration = Duration::from_secs(115);

/// The window is empty after that.
const EMPTY: Duration = Duration::from_secs(62);

/// Five processes boot at once on two cores.
const BOOT: Duration = Duration::from_secs(240);

/// Requests of one burst, and how often.
const BURST: Burst = Burst { requests: 200, every: Duration::from_secs(40) };

/// Redis is there for so long in the demand without it.
const WITH_REDIS: Duration = Duration::from_secs(30);

/// Seconds of the clock's minute at which each load of the first, second and third round begins: no way has another edge than
/// the others, and no edge is in all rounds.
const PHASES: [u64; 3] = [30, 0, 45];

/// Answered by each process before anything counts, at the rate of the budget: the first answers of a process are slow.
const WARM: Duration = Duration::from_secs(15);

/// What is compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The ways.
    pub arms: Vec<Arm>,
    /// Under what.
    pub demands: Vec<Demand>,
    /// So many times all of it, one after the other.
    pub rounds: u32,
    /// Whether to go on where an earlier one stopped.
    pub resume: bool,
    /// Whether the rounds come to those that the documentation has.
    pub add: bool,
}

/// Runs all ways under all demands, and writes tables and a plot. A way that cannot be run does not keep the others from it.
///
/// # Errors
/// When something could not be run; the tables have the rest.
pub async fn run(rig: &Rig, of: &Comparison) -> Result<()> {
    for arm in &of.arms {
        let litellm = rig.paths.litellm(arm.version());
        ensure!(litellm.exists(), "{} is missing: run e2e/prepare litellm-all", litellm.display());
    }
    let docs = rig.paths.root.join("docs");
    let mut told = if of.add { published::read(&docs.join("benchmarks.json"))? } else { Vec::new() };
    let kept = Kept::at(&rig.paths.root, of.resume)?;
    rig.apply("litellm.yaml")?;
    let bench = Bench::new(rig)?;
    println!("each run is kept: after an interruption `target/release/scenario bench --resume` goes on");
    let (mut runs, mut failed) = (Vec::new(), Vec::new());
    let first = published::last_round(&told) + 1;
    let last = published::last_round(&told) + of.rounds;
    for round in first..=last {
        // What drifts in the machine meanwhile is not always to the same way's cost.
        let order: Vec<Arm> = if round % 2 == 0 { of.arms.iter().rev().copied().collect() } else { of.arms.clone() };
        for arm in &order {
            println!("\n== {} (round {round} of {last})", arm.told().1);
            if let Err(error) = way(rig, &bench, &kept, *arm, &of.demands, round).await {
                println!("FAILED: {error:#}");
                failed.push(format!("{} in round {round}: {error}", arm.told().0));
            }
            for demand in &of.demands {
                if let Some(run) = kept.get(round, *arm, *demand)? {
                    told.push(Told::new(round, *arm, *demand, &run));
                    runs.push((*demand, *arm, run));
                }
            }
        }
    }
    let text = table::document(BUDGET, &told, &bench.spec().await?, first);
    // A part of it is not for the documentation.
    let folder = if published::whole_rounds(&told).is_some() { docs } else { rig.paths.root.join(".local") };
    std::fs::write(folder.join("benchmarks.md"), &text)?;
    published::write(&folder.join("benchmarks.json"), &told)?;
    if let Some(svg) = table::plot(BUDGET, &runs) {
        std::fs::write(folder.join("benchmarks.svg"), svg)?;
    }
    println!("\n{text}\nwritten to {}/benchmarks.md, .json and .svg", folder.display());
    ensure!(failed.is_empty(), "not run: {}; `scenario bench --resume` goes on", failed.join("; "));
    Ok(())
}

/// One way under all demands that it was not run under yet.
async fn way(rig: &Rig, bench: &Bench<'_>, kept: &Kept, arm: Arm, demands: &[Demand], round: u32) -> Result<()> {
    let mut left = Vec::new();
    for demand in demands.iter().filter(|demand| demand.is_for(arm)) {
        if kept.get(round, arm, *demand)?.is_none() {
            left.push(*demand);
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    prepare(rig, bench, arm).await?;
    for demand in left {
        let run = one(rig, bench, demand, round).await?;
        println!(
            "{}, {}: worst 60 s {}, {:.1}% used, {} lost",
            arm.told().0,
            demand.told(),
            crate::judge::percent_up(run.figures.worst_60s, BUDGET),
            run.figures.used * 100.0,
            run.figures.lost
        );
        kept.put(round, arm, demand, &run)?;
    }
    Ok(())
}

/// Starts five processes anew with the configuration of this way, and an empty Redis.
async fn prepare(rig: &Rig, bench: &Bench<'_>, arm: Arm) -> Result<()> {
    let fleet = Fleet::of(rig);
    let deployment = |args: &[&str]| rig.kubectl(&[&["-n", "llm"], args].concat());
    deployment(&["delete", "tb", "gpt-4o", "--ignore-not-found"])?;
    deployment(&["scale", "deployment/litellm", "--replicas=0"])?;
    fleet.until_ready(0, Duration::from_secs(90)).await?;
    deployment(&["wait", "--for=delete", "pod", "-l", "app=litellm", "--timeout=90s"])?;
    command::<()>(rig, "FLUSHALL").await?;
    let spec = bench.spec().await?;
    let input = spec.prompt_tokens.mean / spec.mean_tokens();
    let config = serde_json::json!({"data": {"config.yaml": arm.config(input).to_string()}}).to_string();
    deployment(&["patch", "configmap", "litellm-config", "-p", &config])?;
    let redis = if arm.has_redis() {
        serde_json::json!({"REDIS_HOST": "127.0.0.1", "REDIS_PORT": rig.redis_port()?.to_string()})
    } else {
        serde_json::json!({"REDIS_HOST": null, "REDIS_PORT": null})
    };
    deployment(&["patch", "configmap", "local", "-p", &serde_json::json!({"data": redis}).to_string()])?;
    let image = format!("litellm=ghcr.io/berriai/litellm:v{}", arm.version());
    deployment(&["set", "image", "deployment/litellm", &image])?;
    if arm == Arm::TokenBudget {
        rig.apply("tokenbudget.yaml")?;
        until("the pod template has the agent", Duration::from_secs(30), || {
            Ok(fleet.get("deployment", "litellm")?["spec"]["template"].to_string().contains("tokenbudget"))
        })
        .await?;
    }
    deployment(&["scale", "deployment/litellm", &format!("--replicas={}", arms::REPLICAS)])?;
    fleet.until_ready(usize::try_from(arms::REPLICAS)?, BOOT).await?;
    if arm == Arm::TokenBudget {
        fleet.until_condition("gpt-4o", "Ready", "True", None, Duration::from_secs(120)).await?;
    }
    let warm = LoadSpec { duration: WARM, progress: None, ..spec };
    bench.offer(warm.tokens_per_minute(BUDGET as f64)).await?;
    Ok(())
}

/// Offers one demand to a fleet whose window is empty.
async fn one(rig: &Rig, bench: &Bench<'_>, demand: Demand, round: u32) -> Result<Run> {
    sleep(EMPTY).await;
    sleep(until_second(unix_ms(), phase(round))).await;
    let spec = LoadSpec {
        seed: u64::from(round),
        stream: demand.streamed(),
        skew: Skew::Zipf(1.1),
        duration: LOAD,
        progress: None,
        burst: (demand == Demand::Burst).then_some(BURST),
        ..bench.spec().await?
    }
    .tokens_per_minute(BUDGET as f64 * demand.multiple());
    let from_ms = unix_ms();
    let before = commands(rig).await?;
    let loses_redis = async {
        if demand == Demand::WithoutRedis {
            sleep(WITH_REDIS).await;
            super::chaos::kill_redis(rig)?;
        }
        anyhow::Ok(())
    };
    let (report, gone) = tokio::join!(bench.offer(spec), loses_redis);
    if demand == Demand::WithoutRedis {
        // First of all: the next way needs it.
        rig.start_redis()?;
    }
    gone?;
    let report = report?;
    let after = if demand == Demand::WithoutRedis { None } else { Some(commands(rig).await?) };
    let admitted = bench.admitted_since(from_ms).await?;
    let ran = after.map(|after| after.saturating_sub(before));
    Ok(Run::new(&report, admitted, BUDGET, ran, &rig.paths.commit()?))
}

/// The second of the clock's minute at which the loads of a round, from 1, begin.
fn phase(round: u32) -> u64 {
    PHASES[(round as usize + PHASES.len() - 1) % PHASES.len()]
}

/// The commands that Redis has run.
async fn commands(rig: &Rig) -> Result<u64> {
    let info: String = command(rig, "INFO stats").await?;
    let count = figure(&info, "total_commands_processed")? as u64;
    ensure!(count > 0, "Redis has run no command");
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_its_phase() {
        assert_eq!((phase(1), phase(2), phase(3), phase(4)), (30, 0, 45, 30));
    }
}
