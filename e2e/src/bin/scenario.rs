//! Starts the local cluster and runs what users do on it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use rig::clock::interrupted;
use rig::scenario::chaos::{self, Fault};
use rig::scenario::compare::{self, Arm, Comparison, Demand};
use rig::scenario::{Paths, Rig, checks, demo, footprint, older, scale, uninstall, upgrade};

/// The local cluster and the scenarios on it. `make up`, `make down`, `make demo` and `make test` call it.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a local cluster and leave it running.
    Up,
    /// Stop it; leaves no process behind, also after a crash.
    Down,
    /// The main job, on a cluster of its own.
    Demo,
    /// Only what users do wrong, and how they leave.
    Checks,
    /// The main job, three faults, and then the checks.
    Test,
    /// Only `helm uninstall` while a TokenBudget is there (a minute).
    Uninstall,
    /// What is said on a cluster that is too old for `attach: Admission` (20 seconds).
    Older,
    /// The operator of an earlier commit upgraded to this one under load, and back (8 minutes).
    Upgrade,
    /// What breaks in production, broken on purpose under load, and judged by the provider's count (105 minutes).
    Chaos {
        /// Only these faults, in this order.
        #[arg(long, value_delimiter = ',', conflicts_with = "quick")]
        only: Vec<Fault>,
        /// Only the three of `make test`.
        #[arg(long)]
        quick: bool,
    },
    /// Small faults drawn from a seed, one after the other under load, and what is left of them afterwards.
    Soak {
        /// For how long.
        #[arg(long, value_parser = rig::load::duration, default_value = "30m")]
        time: Duration,
        /// Which faults, and when.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// TokenBudget beside what LiteLLM has, on the same requests, with tables and a plot (15 minutes a way and round).
    Bench {
        /// Only these ways.
        #[arg(long, value_delimiter = ',')]
        arms: Vec<Arm>,
        /// Only these demands.
        #[arg(long, value_delimiter = ',')]
        demands: Vec<Demand>,
        /// How often, one way after the other each time.
        #[arg(long, default_value_t = 1)]
        rounds: u32,
        /// Goes on where an interrupted comparison was.
        #[arg(long)]
        resume: bool,
        /// Adds the rounds to those in docs/benchmarks.json.
        #[arg(long)]
        add: bool,
    },
    /// What the operator costs in memory, CPU and requests: one TokenBudget, 1,000, and 5,000 pods of others (12 minutes).
    Footprint,
    /// Fleets larger than this machine could run: pods that are only objects, members by a load program (25 minutes).
    Scale {
        /// Only these parts.
        #[arg(long, value_delimiter = ',')]
        parts: Vec<scale::Part>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    // The last line of a long run says what failed: a CI shows its end, which a backtrace would fill.
    run(Cli::parse().command).await.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up => up().await,
        Command::Down => {
            for paths in Paths::all()? {
                Rig::down(&paths)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo => on_a_cluster("demo", work(true, false)).await,
        Command::Checks => on_a_cluster("checks", work(false, true)).await,
        Command::Test => on_a_cluster("test", work(true, true)).await,
        Command::Chaos { only, quick } => {
            let faults = if quick { Fault::QUICK.to_vec() } else { or_all(only) };
            on_a_cluster("chaos", async |rig: &Rig| none_missed(&chaos::run(rig, &faults).await?)).await
        }
        Command::Soak { time, seed } => {
            on_a_cluster("soak", async |rig: &Rig| none_missed(&chaos::soak(rig, time, seed).await?)).await
        }
        Command::Bench { arms, demands, rounds, resume, add } => {
            let of = Comparison { arms: or_all(arms), demands: or_all(demands), rounds, resume, add };
            on_a_cluster("bench", async |rig: &Rig| compare::run(rig, &of).await).await
        }
        Command::Uninstall => on_a_cluster("uninstall", async |rig: &Rig| uninstall::alone(rig).await).await,
        Command::Older => on_a_cluster_by("older", older::up, async |rig: &Rig| older::run(rig).await).await,
        Command::Upgrade => {
            let up = async |paths: &Paths| Rig::up_with(paths, &[], upgrade::install_previous).await;
            on_a_cluster_by("upgrade", up, async |rig: &Rig| none_missed(&upgrade::run(rig).await?)).await
        }
        Command::Scale { parts } => {
            let parts = or_all(parts);
            on_a_cluster("scale", async |rig: &Rig| scale::run(rig, &parts).await).await
        }
        Command::Footprint => on_a_cluster("footprint", async |rig: &Rig| footprint::run(rig).await).await,
    }
}

/// What was asked for, or everything there is.
fn or_all<T: ValueEnum>(asked: Vec<T>) -> Vec<T> {
    if asked.is_empty() { T::value_variants().to_vec() } else { asked }
}

/// Runs something on a cluster that is stopped afterwards whatever happens.
async fn on_a_cluster(name: &str, work: impl AsyncFnOnce(&Rig) -> Result<()>) -> Result<ExitCode> {
    on_a_cluster_by(name, Rig::up, work).await
}

/// [`on_a_cluster`] that is started in this way.
async fn on_a_cluster_by(
    name: &str,
    up: impl AsyncFnOnce(&Paths) -> Result<Rig>,
    work: impl AsyncFnOnce(&Rig) -> Result<()>,
) -> Result<ExitCode> {
    let paths = Paths::new(name)?;
    let outcome = tokio::select! {
        outcome = async { work(&up(&paths).await?).await } => outcome,
        _ = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    if outcome.is_err() && paths.dir.exists() {
        eprintln!("logs are kept in {}", paths.keep_logs()?.display());
    }
    Rig::down(&paths)?;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn up() -> Result<ExitCode> {
    let rig = Rig::up(&Paths::new("up")?).await?;
    println!(
        "
A cluster is running. Next:
  source .local/env                                  # kubectl, helm, tokenbudget and load on your PATH
  kubectl apply -f e2e/manifests/litellm.yaml        # three LiteLLM replicas, tpm 60,000
  kubectl -n llm get pods -w                         # ready after half a minute
  load --namespace llm --deployment litellm --key sk-local --tokens-per-minute 300000 --duration 75s --provider-url $PROVIDER_URL
  curl -s $PROVIDER_URL/usage?series=false           # what the provider counted: worst_60s
  kubectl apply -f e2e/manifests/tokenbudget.yaml    # five lines
  kubectl -n llm get tb -w
  make down                                          # leaves nothing behind
The operator's log: kubectl -n tokenbudget-system logs deploy/tokenbudget -f
The provider: {}",
        rig.provider_url
    );
    Ok(ExitCode::SUCCESS)
}

/// The demo, the checks, or both with the short half of the faults between them.
fn work(with_demo: bool, with_checks: bool) -> impl AsyncFnOnce(&Rig) -> Result<()> {
    async move |rig| {
        let mut missed = Vec::new();
        if with_demo {
            let outcome = demo::run(rig).await?;
            outcome.failures.iter().for_each(|failure| println!("FAILED: {failure}"));
            outcome.lines.iter().for_each(|line| println!("{line}"));
            missed = outcome.failures;
        } else {
            checks::prepare(rig).await?;
        }
        if with_demo && with_checks {
            missed.extend(chaos::strike_all(rig, &Fault::QUICK).await?);
        }
        if with_checks {
            checks::run(rig).await?;
        }
        none_missed(&missed)
    }
}

/// Says again what was missed, as the last thing of a long run.
fn none_missed(missed: &[String]) -> Result<()> {
    anyhow::ensure!(missed.is_empty(), "{} figures were missed: {}", missed.len(), missed.join("; "));
    Ok(())
}
