//! What Kubernetes does to a fleet, on one small Deployment with a TokenBudget of its own: it scales to zero, rolls over,
//! gets stuck, is evicted, loses a pod without a word, and is deleted and made again.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokenbudget::litellm::AGENT_HOOK;

use super::checks::{delete_within, manifest};
use super::fleet::{Fleet, text, until};
use super::rig::Rig;

const NAME: &str = "shaped";
const BUDGET: i64 = 60_000;
/// A LiteLLM process has to start.
const BOOT: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(20);

/// Runs all of it on Deployment `plain`.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    let spec = format!(
        "targetRefs: [{{name: plain}}]\n  limits: [{{name: a, models: [{{modelName: gpt-4o}}], tokensPerMinute: {BUDGET}}}]"
    );
    rig.apply_text(&manifest(NAME, &spec))?;
    let case = Case { rig, fleet };
    case.until_whole(1).await?;

    case.autoscaled().await?;
    case.kubectl(&["scale", "deployment/plain", "--replicas=0"])?;
    until("no member is left", SOON, || Ok(case.members()?.is_empty())).await?;
    case.kubectl(&["scale", "deployment/plain", "--replicas=1"])?;
    let back = case.until_whole(1).await?;
    println!("check: scaled to zero and back, the fleet enforces again after {:.0} s", back.as_secs_f32());

    case.surge().await?;
    case.stuck().await?;

    let pod = case.pod()?;
    case.evict(&pod)?;
    let back = case.until_replaced(&pod).await?;
    println!("check: an evicted pod's successor enforces after {:.0} s", back.as_secs_f32());
    let pod = case.pod()?;
    case.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"])?;
    let back = case.until_replaced(&pod).await?;
    println!("check: a pod that is gone without a word is followed after {:.0} s", back.as_secs_f32());

    case.kubectl(&["delete", "deployment", "plain"])?;
    case.fleet.until_condition(NAME, "Accepted", "False", Some("TargetNotFound"), SOON).await?;
    rig.apply("plain.yaml")?;
    let back = case.until_whole(1).await?;
    println!("check: a Deployment that is deleted and made again is attached after {:.0} s", back.as_secs_f32());
    delete_within(rig, NAME, Duration::from_secs(30))?;
    case.kubectl(&["rollout", "status", "deployment/plain", "--timeout=120s"])?;
    Ok(())
}

struct Case<'a> {
    rig: &'a Rig,
    fleet: Fleet<'a>,
}

impl Case<'_> {
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.rig.kubectl(&[&["-n", "llm"], args].concat())
    }

    fn limit(&self) -> Result<Value> {
        Ok(self.fleet.get("tokenbudget", NAME)?["status"]["limits"][0].clone())
    }

    /// The pods that the ledger has as members, by the status.
    fn members(&self) -> Result<Vec<String>> {
        let object = self.fleet.get("tokenbudget", NAME)?;
        let rows = object["status"]["pods"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().filter(|row| row["state"] == "Enforcing").map(|row| text(&row["pod"]).to_owned()).collect())
    }

    fn pods(&self) -> Result<Vec<String>> {
        let names = self.kubectl(&["get", "pods", "-l", "app=plain", "-o", "jsonpath={.items[*].metadata.name}"])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    fn pod(&self) -> Result<String> {
        self.pods()?.into_iter().next().context("plain has no pod")
    }

    /// The rollout is over and exactly its pods are members that enforce.
    async fn until_whole(&self, replicas: usize) -> Result<Duration> {
        until(&format!("exactly the {replicas} pods of plain are members"), BOOT, || {
            let template = self.fleet.get("deployment", "plain")?["spec"]["template"].to_string();
            let (mut members, mut pods) = (self.members()?, self.pods()?);
            members.sort();
            pods.sort();
            Ok(template.contains(AGENT_HOOK) && members == pods && pods.len() == replicas)
        })
        .await
    }

    async fn until_replaced(&self, pod: &str) -> Result<Duration> {
        until(&format!("{pod} is followed by another member"), BOOT, || {
            let members = self.members()?;
            Ok(members.len() == 1 && members[0] != pod)
        })
        .await
    }

    /// The safe share follows an HPA's maximum (and the surge, a quarter of it), as it is edited, and goes back with it.
    async fn autoscaled(&self) -> Result<()> {
        let share = |wanted: i64| {
            until("the safe share is that of the HPA's maximum", SOON, move || Ok(self.limit()?["safeShare"] == wanted))
        };
        share(BUDGET / 2).await?;
        self.kubectl(&["autoscale", "deployment/plain", "--min=1", "--max=4", "--cpu=80%"])?;
        share(BUDGET / 5).await?;
        self.kubectl(&["patch", "hpa", "plain", "-p", r#"{"spec": {"maxReplicas": 8}}"#])?;
        let took = share(BUDGET / 10).await?;
        self.kubectl(&["delete", "hpa", "plain"])?;
        share(BUDGET / 2).await?;
        println!("check: an HPA's new maximum is in the safe share after {:.1} s", took.as_secs_f32());
        Ok(())
    }

    /// A rollout with maxSurge 100 %: old and new together never hold more than the budget.
    async fn surge(&self) -> Result<()> {
        self.kubectl(&["scale", "deployment/plain", "--replicas=2"])?;
        self.until_whole(2).await?;
        let strategy = r#"{"spec": {"strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}}}}"#;
        self.kubectl(&["patch", "deployment", "plain", "-p", strategy])?;
        until("the safe share is that of four", SOON, || Ok(self.limit()?["safeShare"] == BUDGET / 4)).await?;
        let old = self.pods()?;
        self.kubectl(&["rollout", "restart", "deployment/plain"])?;
        let mut most = 0;
        until("both pods were replaced", BOOT, || {
            let (limit, members) = (self.limit()?, self.members()?);
            let granted = self.granted()?;
            ensure!(granted <= BUDGET, "the members' grants come to {granted} of {BUDGET}");
            most = most.max(limit["members"].as_i64().unwrap_or_default());
            Ok(members.len() == 2 && !members.iter().any(|pod| old.contains(pod)))
        })
        .await?;
        println!("check: a rollout with maxSurge 100 % had up to {most} members, who never held more than the budget");
        Ok(())
    }

    fn granted(&self) -> Result<i64> {
        let object = self.fleet.get("tokenbudget", NAME)?;
        Ok(object["status"]["pods"].as_array().into_iter().flatten().filter_map(|row| row["grant"].as_i64()).sum())
    }

    /// A rollout whose new pods never become ready: the old ones go on as they were.
    async fn stuck(&self) -> Result<()> {
        let before = self.members()?;
        self.kubectl(&["set", "image", "deployment/plain", "litellm=ghcr.io/berriai/litellm:missing"])?;
        until("the new pods are there", SOON, || Ok(self.pods()?.len() > before.len())).await?;
        // Not by their grants: what an idle process holds swings, and is no news for the status.
        ensure!(
            self.limit()?["safeShare"] == BUDGET / 4,
            "a stuck rollout has changed the safe share: {}",
            self.limit()?
        );
        ensure!(self.members()? == before, "a stuck rollout has changed the members: {:?}", self.members()?);
        self.kubectl(&["rollout", "undo", "deployment/plain"])?;
        self.kubectl(&["scale", "deployment/plain", "--replicas=1"])?;
        self.until_whole(1).await?;
        println!("check: a stuck rollout leaves the old pods as members, with the same safe share");
        Ok(())
    }

    fn evict(&self, pod: &str) -> Result<()> {
        let path = self.rig.paths.dir.join("eviction.json");
        let eviction = serde_json::json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "llm"}
        });
        std::fs::File::create(&path)?.write_all(eviction.to_string().as_bytes())?;
        let url = format!("/api/v1/namespaces/llm/pods/{pod}/eviction");
        self.rig.kubectl(&["create", "--raw", &url, "-f", &path.to_string_lossy()])?;
        Ok(())
    }
}
