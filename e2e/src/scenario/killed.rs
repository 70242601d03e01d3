//! A LiteLLM process that is killed: the kubelet's word of its end reaches the ledger, which gives back what it held.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokenbudget::ledger::{BookId, Ledger, RedisLedger, Timeouts, Unit};

use super::chaos;
use super::fleet::{Fleet, text};
use super::rig::Rig;

/// The kubelet says it at once, the operator passes each second.
const SOON: Duration = Duration::from_secs(10);

/// The container starts again.
const BOOT: Duration = Duration::from_secs(120);

/// Kills a process of the fleet.
///
/// # Errors
/// When the ledger does not come to know of it, or the pod does not come back.
pub async fn run(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let ready = fleet.ready_pods()?.len();
    let budget = fleet.get("tokenbudget", "gpt-4o")?;
    let limit = text(&budget["status"]["limits"][0]["name"]);
    let (uid, book) = (text(&budget["metadata"]["uid"]), BookId::new(limit, Unit::Tokens));
    let pod = chaos::kill_process(rig)?;
    let killed = Instant::now();
    let list = fleet.get("pod", &pod)?;
    let pod_uid = text(&list["metadata"]["uid"]);
    let ledger = RedisLedger::connect(&rig.redis_url, Timeouts::default())?;
    loop {
        let seen = ledger.observe(uid, std::slice::from_ref(&book)).await?;
        let state = seen.books.get(&book).context("the fleet has no book")?;
        if state.members.iter().any(|(id, member)| id.starts_with(pod_uid) && member.ended_ms.is_some()) {
            break;
        }
        ensure!(killed.elapsed() < SOON, "the ledger does not know after {SOON:?} that a process of {pod} was killed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("check: the ledger knows of a killed process after {:.1} s", killed.elapsed().as_secs_f32());
    fleet.until_ready(ready, BOOT).await.map(drop)
}
