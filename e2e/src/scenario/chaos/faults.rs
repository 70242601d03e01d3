//! The faults: what each does, and what is promised meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde_json::json;
use tokio::time::sleep;

use super::cluster::{
    a_pod, api_server, ask_for, budget, frozen, leader, operators, process_of, provider_fails, redis, roll, scale,
    strategy, without_redis,
};
use super::hostile;
use super::ledger::{fail_over, forge, move_there_and_back};
use super::process::Signal;
use super::relay::{Relay, name_redis};
use super::shapes::{self, Shape};
use crate::clock::unix_ms;
use crate::load::Skew;
use crate::scenario::bench::BUDGET;
use crate::scenario::fleet::{Fleet, until};
use crate::scenario::ports::free_port;
use crate::scenario::redis::command;
use crate::scenario::rig::Rig;

/// The pods of the fleet before and after each fault.
pub(super) const PODS: usize = 3;

/// A cut holds when the last token that was spent before it has left the window.
const CUT: Duration = Duration::from_secs(65);

const NO_RELAY: &str = "there is no relay before Redis";

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Scaled 2 -> 6 -> 2 in one step each.
    Steps,
    /// A fourth pod joins a saturated fleet.
    Joins,
    /// Rolling update with maxSurge 100 %.
    Rollout,
    /// `kill -9` of a LiteLLM process every 20 s for 3 minutes, every third time with its pod.
    Kills,
    /// A LiteLLM process frozen for 45 s.
    Frozen,
    /// A LiteLLM process frozen for 120 s.
    FrozenLong,
    /// No operator for 2 minutes.
    OperatorAway,
    /// No operator for 2 minutes, and 3 -> 4 pods meanwhile.
    OperatorAwayScaleOut,
    /// Leader killed, with a standby.
    LeaderKilled,
    /// Redis killed for 15 s, then empty.
    RedisRestart,
    /// Redis killed for 3 minutes, then empty; 3 -> 4 pods meanwhile.
    RedisAway,
    /// Redis hangs for 60 s.
    RedisHangs,
    /// Redis refuses writes for 60 s.
    RedisFull,
    /// Redis answers 200 ms late for 60 s.
    RedisSlow,
    /// One pod cut off from Redis for 90 s.
    CutOff,
    /// A fourth pod that never reaches Redis, in a fleet that may have 24 once it has started.
    Orphan,
    /// Redis dies, and a replica that lacks the last 2 s takes over.
    RedisFailover,
    /// Ledger moved to another Redis, and back, by spec.redis; the pods follow one by one.
    Moved,
    /// Ledger entries and calls that no member would make.
    Forged,
    /// 10,000 requests that are malformed or huge.
    Hostile,
    /// API server away for 2 minutes, 3 -> 4 pods after it.
    ApiServerAway,
    /// Budget cut to 40 % for 2 minutes.
    BudgetCut,
    /// Limits get other names under load, and their first ones again.
    Renamed,
    /// Demand jumps to another pod every 10 s.
    Hopping,
    /// Provider fails half of the requests for 60 s.
    ProviderFails,
    /// Provider takes 30 s to answer, for 60 s.
    ProviderSlow,
    /// Two worker processes in each pod.
    TwoWorkers,
    /// Two Deployments in one budget.
    TwoDeployments,
    /// Three limits on one fleet.
    ThreeLimits,
}

/// A time in which another budget holds.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// From here on, in Unix milliseconds.
    pub from_ms: u64,
    /// Until here.
    pub to_ms: u64,
    /// Tokens per minute.
    pub budget: u64,
}

impl Fault {
    /// The short half, for `make test`.
    pub const QUICK: [Self; 3] = [Self::RedisRestart, Self::Frozen, Self::LeaderKilled];

    /// Its name on the command line, and what is broken, as `--help` has them.
    #[must_use]
    pub fn told(self) -> (String, String) {
        let value = self.to_possible_value().unwrap_or_default();
        (value.get_name().to_owned(), value.get_help().map(ToString::to_string).unwrap_or_default())
    }

    /// The least part of what an ideal bucket would admit; `None` where nothing is promised.
    #[must_use]
    pub const fn least_use(self) -> Option<f64> {
        match self {
            Self::Steps
            | Self::Joins
            | Self::Rollout
            | Self::OperatorAway
            | Self::OperatorAwayScaleOut
            | Self::LeaderKilled
            | Self::RedisRestart
            | Self::RedisFailover
            | Self::ApiServerAway
            | Self::BudgetCut
            | Self::TwoWorkers
            | Self::TwoDeployments
            | Self::ThreeLimits => Some(0.95),
            Self::Hopping => Some(0.9),
            Self::Kills
            | Self::Frozen
            | Self::FrozenLong
            | Self::RedisSlow
            | Self::CutOff
            | Self::RedisHangs
            | Self::RedisFull => Some(0.8),
            Self::RedisAway | Self::Orphan => Some(0.6),
            Self::ProviderFails | Self::ProviderSlow | Self::Moved | Self::Forged | Self::Hostile | Self::Renamed => {
                None
            }
        }
    }

    /// The least part of its fair share that a pod has to have answered which was not there before, within 65 s of the fault's
    /// end; `None` where nothing is promised.
    #[must_use]
    pub fn least_share(self) -> Option<f64> {
        (self == Self::Joins).then_some(0.9)
    }

    /// The shape of the fleet meanwhile, where it is another.
    const fn shape(self) -> Option<Shape> {
        match self {
            Self::TwoWorkers => Some(Shape::TwoWorkers),
            Self::TwoDeployments => Some(Shape::TwoDeployments),
            Self::ThreeLimits => Some(Shape::ThreeLimits),
            _ => None,
        }
    }

    /// Where the load goes, at so many requests per second.
    #[must_use]
    pub fn skew(self, rate: f64) -> Skew {
        if self == Self::Hopping { Skew::Hopping((rate * 10.0) as usize) } else { Skew::Even }
    }
}

/// What has to be so before the load begins.
///
/// # Errors
/// When it does not become so.
pub async fn prepare(rig: &Rig, fault: Fault) -> Result<()> {
    match fault.shape() {
        Some(shape) => shapes::take(rig, shape).await,
        None => Ok(()),
    }
}

/// Breaks it, for as long as the fault lasts.
///
/// # Errors
/// When it cannot be broken.
pub async fn strike(rig: &Rig, relay: Option<&Relay>, fault: Fault) -> Result<Vec<Span>> {
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    match fault {
        Fault::Steps => {
            for replicas in [2, 6, 2] {
                scale(rig, replicas).await?;
                sleep(20 * second).await;
            }
        }
        Fault::Joins => scale(rig, PODS + 1).await?,
        Fault::Rollout => {
            strategy(rig, "100%", "0%")?;
            roll(rig).await?;
        }
        Fault::Kills => {
            for index in 0..9 {
                let (pod, process) = a_pod(rig, index)?;
                process.signal(Signal::Kill)?;
                if index % 3 == 2 {
                    rig.kubectl(&["-n", "llm", "delete", "pod", &pod, "--grace-period=0", "--force"])?;
                }
                sleep(20 * second).await;
            }
            Fleet::of(rig).until_ready(PODS, 3 * minute).await?;
        }
        Fault::Frozen => frozen(a_pod(rig, 0)?.1, 45 * second).await?,
        Fault::FrozenLong => frozen(a_pod(rig, 0)?.1, 2 * minute).await?,
        Fault::OperatorAway => {
            without_operator(rig)?;
            sleep(2 * minute).await;
            operators(rig, 1)?;
        }
        Fault::OperatorAwayScaleOut => {
            without_operator(rig)?;
            sleep(minute / 2).await;
            scale(rig, PODS + 1).await?;
            sleep(minute).await;
            operators(rig, 1)?;
        }
        Fault::LeaderKilled => {
            operators(rig, 2)?;
            leader(rig)?.signal(Signal::Kill)?;
            sleep(minute / 2).await;
        }
        Fault::RedisRestart => without_redis(rig, 15 * second).await?,
        Fault::RedisAway => {
            // Room for one process more is set aside already when the fleet may have one more.
            redis(rig)?.signal(Signal::Kill)?;
            sleep(minute).await;
            ask_for(rig, PODS + 1)?;
            sleep(2 * minute).await;
            rig.start_redis()?;
        }
        Fault::RedisHangs => frozen(redis(rig)?, minute).await?,
        Fault::RedisFull => {
            command::<()>(rig, "CONFIG SET maxmemory 1").await?;
            sleep(minute).await;
            command::<()>(rig, "CONFIG SET maxmemory 0").await?;
        }
        Fault::RedisSlow => relay.context(NO_RELAY)?.late(minute).await,
        Fault::CutOff => relay.context(NO_RELAY)?.cut_off(a_pod(rig, 0)?.1, minute + minute / 2).await,
        Fault::Orphan => orphan(rig, relay.context(NO_RELAY)?).await?,
        Fault::RedisFailover => fail_over(rig).await?,
        Fault::Moved => move_there_and_back(rig).await?,
        Fault::Forged => forge(rig).await?,
        Fault::Hostile => hostile::send(rig).await?,
        Fault::ApiServerAway => {
            frozen(api_server(rig)?, 2 * minute).await?;
            scale(rig, PODS + 1).await?;
        }
        Fault::BudgetCut => {
            budget(rig, &json!({"headroomPercent": 60}))?;
            let cut_ms = unix_ms();
            sleep(CUT + minute).await;
            let from_ms = cut_ms + u64::try_from(CUT.as_millis()).unwrap_or(0);
            let held = Span { from_ms, to_ms: unix_ms(), budget: BUDGET * 4 / 10 };
            budget(rig, &json!({"headroomPercent": 0}))?;
            return Ok(vec![held]);
        }
        Fault::Renamed => {
            shapes::take(rig, Shape::ThreeLimits).await?;
            sleep(minute).await;
            shapes::leave(rig, Shape::ThreeLimits).await?;
        }
        Fault::Hopping => sleep(2 * minute).await,
        Fault::TwoWorkers | Fault::TwoDeployments | Fault::ThreeLimits => sleep(minute).await,
        Fault::ProviderFails => provider_fails(rig, minute).await?,
        Fault::ProviderSlow => {
            let before = rig.provider()?.settings().await?;
            rig.provider()?.set(&json!({"latency_ms": "30000"})).await?;
            sleep(minute).await;
            rig.provider()?.set(&json!({ "latency_ms": before.latency_ms })).await?;
        }
    }
    Ok(Vec::new())
}

/// Puts the fleet back as it was, without a load.
///
/// # Errors
/// When it does not become so.
pub async fn mend(rig: &Rig, fault: Fault) -> Result<()> {
    match fault {
        Fault::Rollout | Fault::Orphan => strategy(rig, "25%", "25%")?,
        Fault::LeaderKilled => operators(rig, 1)?,
        _ => {}
    }
    if let Some(shape) = fault.shape() {
        shapes::leave(rig, shape).await?;
    }
    settle(rig).await
}

/// As many pods as each fault begins with, all of which enforce.
///
/// # Errors
/// When they do not become so.
pub async fn settle(rig: &Rig) -> Result<()> {
    if Fleet::of(rig).ready_pods()?.len() != PODS {
        scale(rig, PODS).await?;
    }
    Fleet::of(rig).until_condition("gpt-4o", "Ready", "True", None, Duration::from_secs(120)).await.map(drop)
}

/// A pod starts with the address of no Redis. When its process has its policy file, the fleet may become so large that the safe
/// share is a fifth of what that says; 95 s after its start it goes by its safe share.
async fn orphan(rig: &Rig, relay: &Relay) -> Result<()> {
    let pods = || Fleet::of(rig).pods();
    let before: BTreeSet<String> = pods()?.iter().map(|pod| pod["metadata"]["name"].to_string()).collect();
    name_redis(rig, free_port()?)?;
    ask_for(rig, PODS + 1)?;
    until("the new pod has a process", Duration::from_secs(60), || {
        let new = pods()?.into_iter().find(|pod| !before.contains(&pod["metadata"]["name"].to_string()));
        Ok(new.is_some_and(|pod| process_of(&pod).is_ok()))
    })
    .await?;
    name_redis(rig, relay.port)?;
    sleep(Duration::from_secs(10)).await;
    strategy(rig, "500%", "25%")?;
    sleep(Duration::from_secs(180)).await;
    Ok(())
}

/// The operator ends without a word, and none is started.
fn without_operator(rig: &Rig) -> Result<()> {
    let leader = leader(rig)?;
    operators(rig, 0)?;
    // SIGTERM is on its way, too; whichever is first, no pass runs after it.
    let _ = leader.signal(Signal::Kill);
    Ok(())
}
