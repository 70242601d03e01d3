//! `scenario soak`: small faults drawn from a seed, one after the other, and what is left of them afterwards.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tokio::time::sleep;

use super::cluster::{a_pod, frozen, leader, operators, provider_fails, redis, scale, without_redis};
use super::faults::{PODS, settle};
use super::process::Signal;
use super::relay::Relay;
use crate::clock::unix_ms;
use crate::judge;
use crate::load::LoadSpec;
use crate::scenario::bench::{BUDGET, Bench};
use crate::scenario::checks;
use crate::scenario::fleet::Fleet;
use crate::scenario::open_files;
use crate::scenario::operator::Footprint;
use crate::scenario::redis::{command, figure};
use crate::scenario::rig::{Rig, port_of};
use crate::size::SplitMix64;

/// Demand as a multiple of the budget.
const DEMAND: f64 = 2.0;

/// The first load fills caches and pools, so that what is compared is at rest twice.
const WARM: Duration = Duration::from_secs(70);

/// How much more may be held after the soak than before it.
const MORE_OPERATOR_MB: f64 = 15.0;
const MORE_PROCESS_MB: f64 = 100.0;
const MORE_FILES: usize = 20;
/// LiteLLM's pools keep as many connections as there were calls at once, to Redis also dead ones after it was killed: 18 of a
/// process without the agent. Fewer than the 50 faults, so that what leaks with each is seen.
const MORE_DEAD: usize = 30;

/// One small fault.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Blow {
    Killed,
    Frozen,
    LeaderKilled,
    RedisKilled,
    RedisFrozen,
    RedisLate,
    CutOff,
    More,
    Fewer,
    ProviderFails,
}

/// What the parts hold at rest.
#[derive(Clone, Debug)]
struct Held {
    operator: Footprint,
    /// The largest of the fleet; its files are those without dead connections.
    process: Footprint,
    /// Dead connections of a process, at most.
    dead: usize,
    keys: usize,
    redis_mb: f64,
    redis_clients: f64,
    rows: usize,
}

/// Breaks small things for so long, on a rig that has just been started; answers with what was missed.
///
/// # Errors
/// When the fleet does not stand up again.
pub async fn run(rig: &Rig, time: Duration, seed: u64) -> Result<Vec<String>> {
    let relay = Relay::start(rig).await?;
    checks::prepare(rig).await?;
    operators(rig, 2)?;
    let bench = Bench::new(rig)?;
    let enforcing_ms = unix_ms();
    let spec = LoadSpec { progress: None, timeout: Duration::from_secs(45), seed, ..bench.spec().await? };
    let spec = spec.tokens_per_minute(BUDGET as f64 * DEMAND);
    bench.run("warming up", LoadSpec { duration: WARM, ..spec.clone() }, Some(enforcing_ms)).await?;
    let before = at_rest(rig, &relay).await?;
    println!("at rest before: {before}");

    let from_ms = unix_ms();
    let (report, blows) = bench.meanwhile(spec, strike_for(rig, &relay, time, seed)).await?;
    let step = bench.measure("soak", report, from_ms, enforcing_ms).await?;
    println!("{blows} blows in {:.0} minutes of seed {seed}", time.as_secs_f64() / 60.0);
    settle(rig).await?;
    let after = at_rest(rig, &relay).await?;
    println!("at rest after: {after}");

    let mut missed = after.more_than(&before);
    if step.worst > BUDGET {
        missed.push(format!("the worst 60 s were {} ({})", judge::percent_up(step.worst, BUDGET), step.worst));
    }
    Ok(missed)
}

async fn strike_for(rig: &Rig, relay: &Relay, time: Duration, seed: u64) -> Result<usize> {
    let (began, mut dice, mut blows) = (Instant::now(), SplitMix64::new(seed), 0);
    while began.elapsed() < time {
        sleep(Duration::from_secs(15 + dice.below(20) as u64)).await;
        let blow = Blow::value_variants()[dice.below(Blow::value_variants().len())];
        println!("{:5.0} s  {blow:?}", began.elapsed().as_secs_f64());
        strike(rig, relay, blow, dice.below(PODS)).await.with_context(|| format!("{blow:?}"))?;
        blows += 1;
    }
    Ok(blows)
}

async fn strike(rig: &Rig, relay: &Relay, blow: Blow, pod: usize) -> Result<()> {
    let second = Duration::from_secs(1);
    match blow {
        Blow::Killed => {
            let count = Fleet::of(rig).ready_pods()?.len();
            a_pod(rig, pod)?.1.signal(Signal::Kill)?;
            // The kubelet has to notice first.
            sleep(2 * second).await;
            Fleet::of(rig).until_ready(count, 180 * second).await?;
        }
        Blow::Frozen => frozen(a_pod(rig, pod)?.1, 10 * second).await?,
        Blow::LeaderKilled => {
            leader(rig)?.signal(Signal::Kill)?;
            sleep(20 * second).await;
        }
        Blow::RedisKilled => without_redis(rig, 5 * second).await?,
        Blow::RedisFrozen => frozen(redis(rig)?, 10 * second).await?,
        Blow::RedisLate => relay.late(15 * second).await,
        Blow::CutOff => relay.cut_off(a_pod(rig, pod)?.1, 20 * second).await,
        Blow::More => scale(rig, PODS + 1).await?,
        Blow::Fewer => scale(rig, PODS - 1).await?,
        Blow::ProviderFails => provider_fails(rig, 15 * second).await?,
    }
    Ok(())
}

/// Looks at all parts when nothing is left in any window.
async fn at_rest(rig: &Rig, relay: &Relay) -> Result<Held> {
    Fleet::of(rig).until_idle("gpt-4o", Duration::from_secs(240)).await?;
    let (mut process, mut dead) = (Footprint { cpu_s: 0.0, rss_mb: 0.0, files: 0 }, 0);
    let servers = [("to Redis", relay.port), ("to the provider", port_of(&rig.provider_url)?)];
    for index in 0..Fleet::of(rig).ready_pods()?.len() {
        let (pod, one) = a_pod(rig, index)?;
        let one = one.id().to_string();
        let open = open_files::of(&one, &servers)?;
        println!("  {pod} has open: {open:?}");
        let gone: usize = open_files::DEAD.iter().filter_map(|kind| open.get(kind)).sum();
        dead = dead.max(gone);
        process.files = process.files.max(open.values().sum::<usize>() - gone);
        process.rss_mb = process.rss_mb.max(Footprint::of_process(&one)?.rss_mb);
    }
    let info: String = command(rig, "INFO").await?;
    Ok(Held {
        operator: Footprint::of_leader(rig)?,
        process,
        dead,
        keys: command::<Vec<String>>(rig, "KEYS tokenbudget:*").await?.len(),
        redis_mb: figure(&info, "used_memory")? / 1e6,
        redis_clients: figure(&info, "connected_clients")?,
        rows: Fleet::of(rig).get("tokenbudget", "gpt-4o")?["status"]["pods"].as_array().map_or(0, Vec::len),
    })
}

impl Held {
    fn more_than(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        let mut most = |what: &str, now: f64, then: f64, room: f64| {
            if now > then + room {
                more.push(format!("{what}: {now:.0} after the soak, {then:.0} before"));
            }
        };
        let files = MORE_FILES as f64;
        most("MB of the operator", self.operator.rss_mb, before.operator.rss_mb, MORE_OPERATOR_MB);
        most("open files of the operator", self.operator.files as f64, before.operator.files as f64, files);
        most("MB of a LiteLLM process", self.process.rss_mb, before.process.rss_mb, MORE_PROCESS_MB);
        most("open files of a LiteLLM process", self.process.files as f64, before.process.files as f64, files);
        most("dead connections of a LiteLLM process", self.dead as f64, before.dead as f64, MORE_DEAD as f64);
        most("keys in Redis", self.keys as f64, before.keys as f64, 0.0);
        most("MB of Redis", self.redis_mb, before.redis_mb, 5.0);
        most("clients of Redis", self.redis_clients, before.redis_clients, files);
        most("pods in the status", self.rows as f64, before.rows as f64, 0.0);
        more
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "operator {:.0} MB, {} files; LiteLLM at most {:.0} MB, {} files, {} dead connections; Redis {} keys, {:.1} MB, {} clients; {} pods",
            self.operator.rss_mb,
            self.operator.files,
            self.process.rss_mb,
            self.process.files,
            self.dead,
            self.keys,
            self.redis_mb,
            self.redis_clients,
            self.rows
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_named() {
        let small = Footprint { cpu_s: 0.0, rss_mb: 30.0, files: 20 };
        let before =
            Held { operator: small, process: small, dead: 0, keys: 3, redis_mb: 1.0, redis_clients: 5.0, rows: 3 };
        assert!(before.more_than(&before).is_empty());
        let leaks = Footprint { rss_mb: 46.0, ..small };
        let after = Held { operator: leaks, dead: 31, keys: 4, ..before.clone() };
        let more = after.more_than(&before);
        assert_eq!(
            more,
            [
                "MB of the operator: 46 after the soak, 30 before",
                "dead connections of a LiteLLM process: 31 after the soak, 0 before",
                "keys in Redis: 4 after the soak, 3 before"
            ]
        );
    }
}
