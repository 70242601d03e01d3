//! `make scale`: the real operator, API server and Redis with fleets that this machine could not run: the pods are only
//! objects, and the members are a load program that speaks the agent's protocol.

pub(super) mod members;
pub(super) mod pods;
mod shifted;
mod table;

use std::time::Duration;

use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use members::Members;
use pods::{Made, NAMESPACE};
use table::{Costs, Row};

use super::rig::Rig;

/// The limit of each TokenBudget.
pub(super) const LIMIT: &str = "gpt";

/// Tokens per minute for each member.
const PER_MEMBER: u64 = 6_000;

/// TokenBudgets of 20 pods each; how it grows is seen in three sizes.
const MANY: [usize; 3] = [100, 300, 1_000];
const PODS: usize = 20;

/// Pods of one TokenBudget.
const LARGE: [usize; 3] = [500, 2_000, 5_000];

/// So many pods of the largest one are replaced at once.
const REPLACED: usize = 200;

/// TokenBudgets are made side by side.
const AT_ONCE: usize = 16;

/// Until the shares have settled, before and after a shift.
const SETTLES: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(60);

/// Which part is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// One TokenBudget of 500, 2,000 and 5,000 pods.
    Large,
    /// 200 of one TokenBudget's 5,000 pods are replaced at once.
    Replaced,
    /// Last, as they stay: 100, 300 and 1,000 TokenBudgets of 20 pods each.
    Many,
}

/// Measures these parts and prints a table.
///
/// # Errors
/// When something cannot be made or measured.
pub async fn run(rig: &Rig, parts: &[Part]) -> Result<()> {
    let client = rig.client().await?;
    pods::namespace(&client, &rig.redis_url).await?;
    let lease = pods::node(&client).await?;
    let work = async {
        let mut rows = Vec::new();
        for part in parts {
            match part {
                Part::Many => many(rig, &client, &mut rows).await?,
                Part::Large => large(rig, &client, &mut rows).await?,
                Part::Replaced => replaced(rig, &client).await?,
            }
        }
        anyhow::Ok(rows)
    };
    let rows = tokio::select! {
        rows = work => rows?,
        lost = lease => bail!("the node's Lease could not be renewed: {lost:?}"),
    };
    let text = table::text(&rows);
    let path = rig.paths.root.join(".local/scale.md");
    std::fs::write(&path, &text)?;
    println!("\n{text}\nwritten to {}", path.display());
    Ok(())
}

async fn many(rig: &Rig, client: &Client, rows: &mut Vec<Row>) -> Result<()> {
    let mut members = Members::new(&rig.redis_url)?;
    let mut there = 0;
    for size in MANY {
        let began = Instant::now();
        let make = |index: usize| pods::make(client, format!("many-{index}"), PODS as u64 * PER_MEMBER, PODS);
        let new: Vec<Made> = stream::iter(there..size).map(make).buffer_unordered(AT_ONCE).try_collect().await?;
        there = size;
        println!("up: {size} TokenBudgets of {PODS} pods ({} s)", began.elapsed().as_secs());
        for made in &new {
            started(&mut members, made, &made.pods).await?;
        }
        rows.push(measure(rig, &members, format!("{size} TokenBudgets of {PODS} pods")).await?);
    }
    Ok(())
}

async fn large(rig: &Rig, client: &Client, rows: &mut Vec<Row>) -> Result<()> {
    for size in LARGE {
        let (members, made) = one(rig, client, size).await?;
        rows.push(measure(rig, &members, format!("one TokenBudget of {size} pods")).await?);
        remove(rig, client, &made).await?;
    }
    Ok(())
}

/// A TokenBudget of so many pods, each with a member.
async fn one(rig: &Rig, client: &Client, size: usize) -> Result<(Members, Made)> {
    let mut members = Members::new(&rig.redis_url)?;
    let began = Instant::now();
    let made = pods::make(client, format!("large-{size}"), size as u64 * PER_MEMBER, size).await?;
    println!("up: a TokenBudget of {size} pods ({} s)", began.elapsed().as_secs());
    started(&mut members, &made, &made.pods).await?;
    Ok((members, made))
}

async fn remove(rig: &Rig, client: &Client, made: &Made) -> Result<()> {
    rig.kubectl(&["-n", NAMESPACE, "delete", "tb", &made.name, "--timeout=60s"])?;
    rig.kubectl(&["-n", NAMESPACE, "delete", "deployment", &made.name, "--timeout=60s"])?;
    // kubectl deletes them one by one, some a second.
    let (now, all) = (DeleteParams::default().grace_period(0), ListParams::default());
    Api::<Pod>::namespaced(client.clone(), NAMESPACE).delete_collection(&now, &all).await.map(drop)?;
    Ok(())
}

/// Starts members, once the operator has made their book.
///
/// # Errors
/// When it does not in a minute.
pub(super) async fn started(members: &mut Members, made: &Made, pods: &[(String, String)]) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = members.start(made, pods).await {
        if began.elapsed() > Duration::from_secs(60) {
            return Err(error);
        }
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn measure(rig: &Rig, members: &Members, what: String) -> Result<Row> {
    sleep(SETTLES).await;
    let before = Costs::so_far(rig).await?;
    members.seen();
    sleep(WINDOW).await;
    let (after, seen) = (Costs::so_far(rig).await?, members.seen());
    members.shift();
    sleep(SETTLES).await;
    let row = Row { what, members: members.count(), costs: after.since(&before), seen, shifted: members.shifted() };
    println!("{}", row.told());
    Ok(row)
}

/// Ends 200 pods at once, and looks how soon after their first request their successors are lent tokens.
async fn replaced(rig: &Rig, client: &Client) -> Result<()> {
    let (mut members, mut made) = one(rig, client, LARGE[LARGE.len() - 1]).await?;
    sleep(SETTLES + WINDOW).await;
    members.forget_first();
    members.kill(&made.pods[..REPLACED]);
    pods::replace(client, &mut made, REPLACED).await?;
    let new = made.pods[made.pods.len() - REPLACED..].to_vec();
    started(&mut members, &made, &new).await?;
    // Those that are not busy send their first request after half a minute.
    sleep(WINDOW).await;
    let (count, within) = members.first(0.99);
    let within = within.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"));
    println!(
        "{REPLACED} of {} pods replaced at once: {count} successors were lent tokens, 99 % of them within {within} of their first request",
        made.pods.len()
    );
    remove(rig, client, &made).await
}
