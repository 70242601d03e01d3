//! Two replicas of the operator: who leads when one goes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::checks::{delete_within, manifest, until_attached, untouched};
use super::fleet::{Fleet, until};
use super::knobs::set;
use super::operator::{holder, pod_of, process_of};
use super::rig::{OPERATOR_NAMESPACE, Rig};

/// A replica that is told to go gives the lease back.
const TOLD: Duration = Duration::from_secs(5);

/// One that is killed cannot: the lease of 15 s has to end, and the other looks every 2 s.
const KILLED: Duration = Duration::from_secs(20);

const SOON: Duration = Duration::from_secs(20);

/// Runs it, and leaves one replica.
///
/// # Errors
/// When nobody leads in time.
pub async fn run(rig: &Rig) -> Result<()> {
    scale(rig, 2)?;
    let first = holder(rig)?;
    let started = Instant::now();
    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "delete", "pod", pod_of(&first), "--wait=false"])?;
    let second = until_another(rig, &first, TOLD).await?;
    println!("check: a leader that is told to go is followed after {:.1} s", started.elapsed().as_secs_f32());

    scale(rig, 2)?;
    let started = Instant::now();
    kill(&process_of(pod_of(&second))?)?;
    until_another(rig, &second, KILLED).await?;
    println!("check: a leader that is killed is followed after {:.1} s", started.elapsed().as_secs_f32());
    while_nobody_leads(rig).await
}

/// A Deployment is taken out of the spec while there is no operator: the next one takes the agent out. Leaves one replica.
async fn while_nobody_leads(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    // Its ledger is in the spec: one that only the former Deployment names is lost with it, and its keys stay for a day.
    let spec = "targetRefs: [{name: plain}]\n  redis: {urlSecretRef: {name: live-redis, key: url}}\n  \
                limits: [{name: a, models: [{modelName: gpt-4o}], tokensPerMinute: 600}]";
    rig.apply_text(&manifest("left", spec))?;
    until_attached(&fleet, "plain").await?;
    scale(rig, 0)?;
    set(rig, "left", r#"{"targetRefs": [{"name": "pair", "container": "one"}]}"#)?;
    scale(rig, 1)?;
    let took = until("the agent is out", SOON, || Ok(untouched(&fleet, "plain").is_ok())).await?;
    println!(
        "check: a Deployment that left targetRefs while no operator ran is without the agent {:.1} s after the next is ready",
        took.as_secs_f32()
    );
    delete_within(rig, "left", Duration::from_secs(30))
}

fn scale(rig: &Rig, replicas: u32) -> Result<()> {
    let count = format!("--replicas={replicas}");
    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "scale", "deployment/tokenbudget", &count])?;
    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment/tokenbudget", "--timeout=60s"])?;
    Ok(())
}

async fn until_another(rig: &Rig, old: &str, limit: Duration) -> Result<String> {
    let started = Instant::now();
    loop {
        let holder = holder(rig)?;
        if !holder.is_empty() && holder != old {
            return Ok(holder);
        }
        ensure!(started.elapsed() < limit, "{old} is followed by nobody after {limit:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn kill(process: &str) -> Result<()> {
    let status = std::process::Command::new("kill").args(["-KILL", process]).status()?;
    ensure!(status.success(), "process {process} could not be killed");
    Ok(())
}
