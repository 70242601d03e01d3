//! `make chaos`: what breaks in production, broken on purpose while the demand is five times the budget; the provider's count
//! is the judge.

mod cluster;
mod faults;
mod hostile;
mod ledger;
mod page;
mod process;
mod relay;
mod row;
mod shapes;
mod soak;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

pub use faults::Fault;
use relay::Relay;
use row::Row;
pub use soak::run as soak;

use super::bench::{BUDGET, Bench, Step};
use super::checks;
use super::figures;
use super::fleet::{Fleet, name_of};
use super::rig::Rig;
use crate::clock::unix_ms;
use crate::judge::{self, Arrival};
use crate::load::LoadSpec;
use crate::plot::{self, Chart, Phase};

/// One run of a fault among many tests says little of its use: the load ends after one or two windows, and where in a window it
/// was struck is chance. `make test` fails when it is so much below what `make chaos` wants.
const CHANCE: f64 = 0.10;

/// So often more a fault is struck in `make test` when it used too little: a burst of the demand that falls into it costs most,
/// which is one time in four.
const AGAIN: u64 = 2;

/// The demand before a fault: the fleet is saturated by then, as the step before has filled the window.
const BEFORE: Duration = Duration::from_secs(15);

/// And after it: one whole window.
const AFTER: Duration = Duration::from_secs(65);

/// The first load fills the window.
const WARM: Duration = Duration::from_secs(70);

/// Runs these faults one after the other, on a rig that has just been started; answers with what each missed. All of them:
/// their table goes into `docs/faults.md`.
///
/// # Errors
/// When the fleet is not as it was after a fault. A fault that cannot be made and a figure that is missed are in the table.
pub async fn run(rig: &Rig, faults: &[Fault]) -> Result<Vec<String>> {
    let relay = Relay::start(rig).await?;
    checks::prepare(rig).await?;
    let commit = rig.paths.commit()?;
    let rows = strike(rig, Some(&relay), faults, false).await?;
    if faults == Fault::value_variants() {
        publish(rig, &row::table(&rows), &commit)?;
    }
    Ok(misses(&rows))
}

/// The same on a rig whose fleet enforces already, for faults that need nothing between it and Redis. One that used too little
/// is made once more.
///
/// # Errors
/// As [`run`].
pub async fn strike_all(rig: &Rig, faults: &[Fault]) -> Result<Vec<String>> {
    Ok(misses(&strike(rig, None, faults, true).await?))
}

fn misses(rows: &[Row]) -> Vec<String> {
    rows.iter().flat_map(Row::misses).collect()
}

fn publish(rig: &Rig, table: &str, commit: &str) -> Result<()> {
    let path = rig.paths.root.join("docs/faults.md");
    let cores = std::thread::available_parallelism()?.get();
    let page = page::with_table(&std::fs::read_to_string(&path)?, table, commit, cores);
    std::fs::write(&path, page.context("docs/faults.md has no marks of the table")?)?;
    println!("and to {}", path.display());
    Ok(())
}

async fn strike(rig: &Rig, relay: Option<&Relay>, faults: &[Fault], in_test: bool) -> Result<Vec<Row>> {
    // Nobody else moves the replicas.
    rig.kubectl(&["-n", "llm", "delete", "hpa", "litellm", "--ignore-not-found"])?;
    faults::settle(rig).await?;
    let bench = Bench::new(rig)?;
    let enforcing_ms = unix_ms();
    let spec = LoadSpec { progress: None, timeout: Duration::from_secs(45), ..bench.spec().await? };
    bench.run("warming up", LoadSpec { duration: WARM, ..spec.clone() }, Some(enforcing_ms)).await?;
    let mut rows = Vec::new();
    for (fault, seed) in faults.iter().zip(1000..) {
        let strike = async |seed| {
            let spec = LoadSpec { seed, ..spec.clone() };
            let least_use = fault.least_use().map(|least| if in_test { least - CHANCE } else { least });
            let row = one(rig, relay, &bench, *fault, least_use, spec, enforcing_ms).await;
            let row = row.unwrap_or_else(|error| Row::failed(*fault, &error));
            println!("{row}");
            faults::mend(rig, *fault).await.with_context(|| format!("after {}", fault.told().0))?;
            anyhow::Ok(row)
        };
        let mut row = strike(seed).await?;
        for again in 1..=AGAIN {
            if in_test && row.may_be_repeated() {
                row = strike(seed + 1000 * again).await?;
            }
        }
        rows.push(row);
    }
    let table = row::table(&rows);
    let path = rig.paths.root.join(".local/chaos.md");
    std::fs::write(&path, &table)?;
    println!("\n{table}\nwritten to {}", path.display());
    Ok(rows)
}

/// Ends the ledger's server without a word.
///
/// # Errors
/// When it is not there.
pub fn kill_redis(rig: &Rig) -> Result<()> {
    cluster::redis(rig)?.signal(process::Signal::Kill)
}

/// Kills a LiteLLM process of the fleet, and answers with its pod.
///
/// # Errors
/// When none is Ready.
pub fn kill_process(rig: &Rig) -> Result<String> {
    let (pod, process) = cluster::a_pod(rig, 0)?;
    process.signal(process::Signal::Kill)?;
    Ok(pod)
}

/// Kills one of these worker processes of a pod of namespace `llm`; its supervisor starts another.
///
/// # Errors
/// When the pod has none of them.
pub fn kill_worker(rig: &Rig, pod: &str, workers: &[u32]) -> Result<()> {
    let supervisor = cluster::process_of(&Fleet::of(rig).get("pod", pod)?)?;
    let worker = supervisor.children()?.into_iter().find(|child| workers.contains(&child.id()));
    worker.context("none of the workers is a child of the pod's process")?.signal(process::Signal::Kill)
}

/// Stops the process of a pod of namespace `llm`, which stays stopped.
///
/// # Errors
/// When the pod has none.
pub fn freeze(rig: &Rig, pod: &str) -> Result<()> {
    cluster::process_of(&Fleet::of(rig).get("pod", pod)?)?.signal(process::Signal::Stop)
}

async fn one(
    rig: &Rig,
    relay: Option<&Relay>,
    bench: &Bench<'_>,
    fault: Fault,
    least_use: Option<f64>,
    spec: LoadSpec,
    enforcing_ms: u64,
) -> Result<Row> {
    let (name, title) = fault.told();
    println!("\n== {title}");
    faults::prepare(rig, fault).await?;
    let early: Vec<String> = Fleet::of(rig).ready_pods()?.iter().map(name_of).collect();
    let from_ms = unix_ms();
    let spec = LoadSpec { skew: fault.skew(spec.rate), ..spec };
    let (report, struck) = bench
        .meanwhile(spec, async {
            tokio::time::sleep(BEFORE).await;
            let began_ms = unix_ms();
            let spans = faults::strike(rig, relay, fault).await?;
            let ended_ms = unix_ms();
            tokio::time::sleep(AFTER).await;
            Ok((began_ms, ended_ms, spans))
        })
        .await?;
    let (began_ms, ended_ms, spans) = struck;
    // Tokens of the step before are in the first windows, and were promised too.
    let step = bench.measure(&name, report, from_ms, enforcing_ms.max(from_ms - judge::WINDOW_MS)).await?;
    let admitted = bench.admitted_since(from_ms - judge::WINDOW_MS).await?;
    draw(rig, &name, &title, &step, &admitted, (began_ms, ended_ms))?;
    let row = Row::new(fault, least_use, &step, &admitted, BUDGET, (began_ms, ended_ms), &spans);
    let Some(least) = fault.least_share() else { return Ok(row) };
    let mut newcomers = figures::best_minute_by_pod(&step.report, ended_ms, step.to_ms);
    newcomers.retain(|pod, _| !early.contains(pod));
    let equal = BUDGET / u64::try_from(early.len() + newcomers.len()).unwrap_or(1).max(1);
    // In a burst of some seconds a pod may be sent less than its share.
    let ideal = figures::ideal_minute_by_pod(&step.report, &admitted, BUDGET, ended_ms, step.to_ms);
    let fair = |pod: &String| ideal.get(pod).map_or(equal, |tokens| equal.min(*tokens));
    let of_fair: Vec<(u64, u64)> = newcomers.iter().map(|(pod, tokens)| (*tokens, fair(pod))).collect();
    Ok(row.with_newcomers(&of_fair, least))
}

/// Draws what the last 60 s held before, while and after something was broken.
fn draw(
    rig: &Rig,
    name: &str,
    title: &str,
    step: &Step,
    admitted: &[Arrival],
    (began_ms, ended_ms): (u64, u64),
) -> Result<()> {
    // A curve that looks 60 s back begins with a whole window.
    let start_ms = step.from_ms - judge::WINDOW_MS;
    let phase = |label: &str, from_ms, to_ms| Phase { label: label.to_owned(), from_ms, to_ms, governed: true };
    let chart = Chart {
        title: title.to_owned(),
        subtitle: "Tokens that the provider admitted in the last 60 s; demand five times the budget".to_owned(),
        budget_tokens: BUDGET,
        start_ms,
        admitted: judge::slots(admitted, start_ms, step.to_ms),
        offered: judge::slots(&step.report.arrivals(), start_ms, step.to_ms),
        phases: vec![
            phase("before", start_ms, began_ms),
            phase("fault", began_ms, ended_ms),
            phase("after", ended_ms, step.to_ms),
        ],
        ..Chart::default()
    };
    let folder = rig.paths.root.join(".local/chaos-plots");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name).with_extension("svg"), plot::svg(&chart))?;
    Ok(())
}
