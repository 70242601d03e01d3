//! What the faults do to the ledger's Redis.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::RedisResult;
use serde_json::{Value, json};
use tokenbudget::ledger::call_script;
use tokio::time::sleep;

use super::cluster::{budget, redis};
use super::process::Signal;
use crate::scenario::fleet::{Fleet, until};
use crate::scenario::operator::restarts;
use crate::scenario::ports::free_port;
use crate::scenario::redis::{Replica, ask, command, connect, serve};
use crate::scenario::rig::Rig;

/// What the replica lacks of what the primary wrote last.
const LAG: Duration = Duration::from_secs(2);

/// The Secret of the other Redis.
const MOVED: &str = "moved";

/// A ledger that has just learned lends all of the budget after this.
const LEARNED: Duration = Duration::from_secs(60);

/// A pass finds what was forged, and what was mended.
const SOON: Duration = Duration::from_secs(20);

/// The primary dies, and a replica that lacks the last 2 s takes its place.
///
/// # Errors
/// When there is no replica.
pub async fn fail_over(rig: &Rig) -> Result<()> {
    let primary = redis(rig)?;
    let mut replica = Replica::of(rig)?;
    replica.until_in_step(SOON).await?;
    replica.tell("REPLICAOF NO ONE").await?;
    sleep(LAG).await;
    primary.signal(Signal::Kill)?;
    replica.tell("SAVE").await?;
    replica.take_over(rig)
}

/// Names another Redis in the TokenBudget, and none again: each time the pods follow in a rolling update.
///
/// # Errors
/// When a rollout does not end.
pub async fn move_there_and_back(rig: &Rig) -> Result<()> {
    let port = free_port()?;
    let mut other = serve(&rig.paths, "moved", port, &[])?;
    rig.redis_secret_with_ca(MOVED, &format!("redis://127.0.0.1:{port}"), None)?;
    let moved = async {
        for to in [json!({"urlSecretRef": {"name": MOVED, "key": "url"}}), Value::Null] {
            budget(rig, &json!({ "redis": to }))?;
            until("the pod template has the other ledger", SOON, || {
                let template = Fleet::of(rig).get("deployment", "litellm")?["spec"]["template"].to_string();
                Ok(template.contains("TOKENBUDGET_REDIS_URL") != to.is_null())
            })
            .await?;
            rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/litellm", "--timeout=300s"])?;
            sleep(LEARNED).await;
        }
        anyhow::Ok(())
    };
    let moved = moved.await;
    other.kill()?;
    other.wait()?;
    rig.kubectl(&["-n", "llm", "delete", "secret", MOVED])?;
    moved
}

/// Writes into the ledger what no member ever would, and calls it as none would.
///
/// # Errors
/// When the operator or a LiteLLM process does not live on, or a call is taken that no member would make.
pub async fn forge(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    let (before, pods) = (restarts(rig)?, fleet.ready_pods()?.len());
    let books: Vec<String> = command(rig, "KEYS tokenbudget:*:book:*").await?;
    let book = books.first().context("the ledger has no book")?;
    let owner = book.split_once(":book:").map(|(owner, _)| owner).context("a key of another form")?;
    let (meta, members) = (format!("{owner}:meta"), format!("{owner}:members"));

    let mut to = connect(rig).await?;
    let huge = "x".repeat(1_000_000);
    let reports = ["", "no JSON", "[]", "{\"pod\": 5}", "{\"limits\": [{\"spent\": NaN}]}", &huge];
    for report in reports {
        redis::cmd("HSET")
            .arg(&members)
            .arg(format!("forged-{}", report.len()))
            .arg(report)
            .exec_async(&mut to)
            .await?;
    }
    for figure in ["-1", "NaN", "inf", "1e18", "1000000000000000000", "", "a b"] {
        for place in 0..7 {
            let mut figures = ["0", "1000", "0", "0", "0", "0", "0"];
            figures[place] = figure;
            let call = redis::cmd("EVAL")
                .arg(call_script())
                .arg(3)
                .arg(&[&meta, &members, book])
                .arg(&["forged", "1", "0", "", ""])
                .arg(&figures)
                .query_async::<redis::Value>(&mut to)
                .await;
            ensure!(is_refused(&call), "a call with {figures:?} was taken");
        }
    }
    let known: bool = ask(&mut to, &format!("HEXISTS {book} m:forged")).await?;
    ensure!(!known, "a call that was refused left a record");
    // What a silent member seems to hold, which was never lent; what cannot be read.
    for record in [
        "1 1000000000000000000 0 0 1 0 0 0 0 0 0 0",
        "1 60000 0 0 1 0 0 0 0 0 0 0",
        "1 -5 -5 NaN 1 0 0 0 0 0 0 0",
        "no record",
    ] {
        redis::cmd("HSET").arg(book).arg("m:forged").arg(record).exec_async(&mut to).await?;
        sleep(Duration::from_secs(10)).await;
    }
    let unreadable = || Ok(fleet.get("tokenbudget", "gpt-4o")?["status"].to_string().contains(book.as_str()));
    until("the status names the book that cannot be read", SOON, unreadable).await?;
    redis::cmd("HDEL").arg(book).arg("m:forged").exec_async(&mut to).await?;
    for length in reports.map(str::len) {
        redis::cmd("HDEL").arg(&members).arg(format!("forged-{length}")).exec_async(&mut to).await?;
    }
    fleet.until_condition("gpt-4o", "LedgerReachable", "True", None, SOON).await?;
    ensure!(restarts(rig)? == before, "the operator restarted");
    ensure!(fleet.ready_pods()?.len() == pods, "a LiteLLM process did not live on");
    Ok(())
}

fn is_refused(answer: &RedisResult<redis::Value>) -> bool {
    answer
        .as_ref()
        .is_err_and(|error| matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension))
}
