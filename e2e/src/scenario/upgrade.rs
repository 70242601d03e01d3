//! `helm upgrade` from an earlier commit's operator to this one under load, new agents by `agentUpdatePolicy`, and
//! `helm rollback`, after which the older agents come back by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::bench::{Bench, LOAD};
use super::fleet::{Fleet, name_of, text, until};
use super::knobs::set;
use super::operator::{holder, pod_of};
use super::paths::PREVIOUS_TAG;
use super::rig::{OPERATOR_NAMESPACE, Rig};
use crate::clock::unix_ms;
use crate::load::LoadSpec;

/// What is used while the operator is replaced, and while every LiteLLM process is.
const LEAST_USE: f64 = 0.95;
const LEAST_USE_ROLLOUT: f64 = 0.90;

/// A new operator leads by then.
const LEADS: Duration = Duration::from_secs(60);

/// Installs the operator of `PREVIOUS_COMMIT` by its own chart.
///
/// # Errors
/// When it has not been built, or Helm fails.
pub fn install_previous(rig: &Rig) -> Result<()> {
    let previous = rig.paths.previous();
    ensure!(previous.exists(), "{} is missing: run e2e/prepare previous", previous.display());
    rig.helm_install_from(&previous, &[&format!("image.tag={PREVIOUS_TAG}")])
}

/// Upgrades, rolls LiteLLM over, and rolls back; answers with what did not reach its figure.
///
/// # Errors
/// When a step cannot be done, or costs LiteLLM a pod.
pub async fn run(rig: &Rig) -> Result<Vec<String>> {
    let bench = Bench::new(rig)?;
    let fleet = Fleet::of(rig);
    println!("\n== 3 LiteLLM replicas with the operator and the agent of the earlier commit");
    rig.apply("litellm.yaml")?;
    rig.apply("tokenbudget.yaml")?;
    fleet.until_condition("gpt-4o", "Enforcing", "True", None, Duration::from_secs(300)).await?;
    rolled_out(rig)?;
    let case = Case { rig, bench: &bench, spec: bench.spec().await?, since_ms: unix_ms() };

    let mut missed = Vec::new();
    case.judged("before", 1, LEAST_USE, &mut missed, async { Ok(()) }).await?;
    let upgrade = case.replaces("helm upgrade", || rig.helm_install(&[]));
    case.judged("helm upgrade", 2, LEAST_USE, &mut missed, upgrade).await?;
    let old = case.agents()?;
    let rollout = case.rolls_by_itself(|| set(rig, "gpt-4o", r#"{"agentUpdatePolicy": "RollingUpdate"}"#));
    case.judged("agentUpdatePolicy RollingUpdate", 3, LEAST_USE_ROLLOUT, &mut missed, rollout).await?;
    let new = case.agents()?;
    ensure!(
        old != new,
        "the two commits have the same agent, {old:?}: name another PREVIOUS_COMMIT in e2e/versions.env"
    );
    let rollback = case.rolls_by_itself(|| {
        rig.helm(&["rollback", "tokenbudget", "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "60s"])
    });
    case.judged("helm rollback", 4, LEAST_USE_ROLLOUT, &mut missed, rollback).await?;
    let back = case.agents()?;
    ensure!(back == old, "after the rollback the agents are {back:?}, and were {old:?}");
    println!("agents: {old:?}, rolled to {new:?} by the policy, and back by the rollback");
    Ok(missed)
}

fn rolled_out(rig: &Rig) -> Result<()> {
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/litellm", "--timeout=240s"]).map(drop)
}

struct Case<'a> {
    rig: &'a Rig,
    bench: &'a Bench<'a>,
    spec: LoadSpec,
    since_ms: u64,
}

impl Case<'_> {
    /// Offers five times the budget while something is done and for a window and more after it.
    async fn judged(
        &self,
        name: &str,
        seed: u64,
        least: f64,
        missed: &mut Vec<String>,
        work: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        println!("\n== {name}");
        let from_ms = unix_ms();
        let spec = LoadSpec { seed, ..self.spec.clone() };
        let work = async {
            work.await?;
            tokio::time::sleep(LOAD).await;
            Ok(())
        };
        let (report, ()) = self.bench.meanwhile(spec, work).await?;
        let step = self.bench.measure(name, report, from_ms, self.since_ms).await?;
        self.rig.show(&["-n", "llm", "get", "tb"])?;
        missed.extend(step.failures(least));
        Ok(())
    }

    /// Another operator leads after it, and LiteLLM has noticed nothing: the same pods, the same template.
    async fn replaces(&self, what: &str, done: impl FnOnce() -> Result<()>) -> Result<()> {
        let fleet = Fleet::of(self.rig);
        let (before, led) = (self.litellm()?, holder(self.rig)?);
        done()?;
        let took = until("another operator leads", LEADS, || {
            let leads = holder(self.rig)?;
            Ok(!leads.is_empty() && pod_of(&leads) != pod_of(&led))
        })
        .await?;
        println!("{what}: another operator leads {:.1} s after Helm was done", took.as_secs_f32());
        for kind in ["Attached", "Enforcing", "LedgerReachable", "Ready"] {
            fleet.until_condition("gpt-4o", kind, "True", None, LEADS).await?;
        }
        let after = self.litellm()?;
        ensure!(before == after, "{what} touched LiteLLM:\n{before:?}\n{after:?}");
        Ok(())
    }

    /// With `agentUpdatePolicy: RollingUpdate` another agent is a rollout, and nobody has to ask for it.
    async fn rolls_by_itself(&self, done: impl FnOnce() -> Result<()>) -> Result<()> {
        let revision = || Fleet::of(self.rig).rollouts("litellm");
        let before = revision()?;
        done()?;
        let took = until("LiteLLM rolls over", LEADS, || Ok(revision()? != before)).await?;
        println!("the rollout begins after {:.1} s", took.as_secs_f32());
        rolled_out(self.rig)
    }

    /// The agents of the processes, by their own reports.
    fn agents(&self) -> Result<BTreeSet<String>> {
        let object = Fleet::of(self.rig).get("tokenbudget", "gpt-4o")?;
        let rows = object["status"]["pods"].as_array().into_iter().flatten();
        Ok(rows.filter(|row| row["state"] == "Enforcing").map(|row| text(&row["agent"]).to_owned()).collect())
    }

    /// Of each pod how often it restarted, and the Deployment's generation.
    fn litellm(&self) -> Result<(BTreeMap<String, Value>, Value)> {
        let fleet = Fleet::of(self.rig);
        let restarts = |pod: &Value| (name_of(pod), pod["status"]["containerStatuses"][0]["restartCount"].clone());
        let pods = fleet.ready_pods()?.iter().map(restarts).collect();
        Ok((pods, fleet.get("deployment", "litellm")?["metadata"]["generation"].clone()))
    }
}
