//! Fleets of another shape than one Deployment with one process a pod and one limit: nothing is broken, all is promised.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::cluster::{BOOT, budget};
use crate::scenario::bench::BUDGET;
use crate::scenario::fleet::{Fleet, conditions, until};
use crate::scenario::rig::Rig;

/// A ledger with new books lends nothing for up to 95 s.
const LEARNED: Duration = Duration::from_secs(180);

/// The pods of the second Deployment.
pub const SECOND: usize = 2;

/// How the fleet looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `--num_workers 2`.
    TwoWorkers,
    /// Another Deployment with pods of the same labels, in the same TokenBudget.
    TwoDeployments,
    /// Two limits on tokens and one on requests, all of which match all requests.
    ThreeLimits,
}

/// Gives the fleet a shape, and waits until it is governed.
///
/// # Errors
/// When it does not become so.
pub async fn take(rig: &Rig, shape: Shape) -> Result<()> {
    match shape {
        Shape::TwoWorkers => workers(rig, 2)?,
        Shape::TwoDeployments => {
            rig.apply_text(&second(rig)?)?;
            let before = Fleet::of(rig).ready_pods()?.len();
            budget(rig, &json!({"targetRefs": [{"name": "litellm"}, {"name": "second"}]}))?;
            Fleet::of(rig).until_ready(before + SECOND, BOOT).await?;
            rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/second", "--timeout=240s"])?;
        }
        Shape::ThreeLimits => budget(
            rig,
            &json!({"limits": [
                {"name": "group", "models": [{"modelName": "gpt-4o"}], "tokensPerMinute": BUDGET},
                {"name": "account", "models": [{"litellmModel": "openai/gpt-4o"}], "tokensPerMinute": BUDGET},
                {"name": "calls", "models": [{"modelName": "gpt-4o"}], "requestsPerMinute": 600},
            ]}),
        )?,
    }
    governed(rig).await
}

/// Gives it back its first shape.
///
/// # Errors
/// When it does not become so.
pub async fn leave(rig: &Rig, shape: Shape) -> Result<()> {
    match shape {
        Shape::TwoWorkers => workers(rig, 1)?,
        Shape::TwoDeployments => {
            budget(rig, &json!({"targetRefs": [{"name": "litellm"}]}))?;
            rig.kubectl(&["-n", "llm", "delete", "deployment", "second", "--timeout=120s"])?;
            until("the pods of the second Deployment are gone", BOOT, || {
                let left = rig.kubectl(&["-n", "llm", "get", "pods", "-l", "part=second", "-o", "name"])?;
                Ok(left.trim().is_empty())
            })
            .await?;
        }
        Shape::ThreeLimits => budget(rig, &json!({"limits": null}))?,
    }
    governed(rig).await
}

/// Waits until the status is of the spec as it is now, every process has its share, and the ledger lends.
async fn governed(rig: &Rig) -> Result<()> {
    until("the TokenBudget is Ready", LEARNED, || {
        let object = Fleet::of(rig).get("tokenbudget", "gpt-4o")?;
        let generation = &object["metadata"]["generation"];
        Ok(conditions(&object)
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True" && c["observedGeneration"] == *generation))
    })
    .await
    .map(drop)
}

fn workers(rig: &Rig, count: u32) -> Result<()> {
    let args = ["--config", "/etc/litellm/config.yaml", "--port", "4000", "--num_workers", &count.to_string()];
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "litellm", "args": args}]}}}});
    rig.kubectl(&["-n", "llm", "patch", "deployment", "litellm", "-p", &patch.to_string()])?;
    rig.kubectl(&["-n", "llm", "rollout", "status", "deployment/litellm", "--timeout=300s"]).map(drop)
}

/// The Deployment of the manifest once more, by another name.
fn second(rig: &Rig) -> Result<String> {
    let manifest = rig.paths.manifest("litellm.yaml");
    let objects = rig.kubectl(&["create", "--dry-run=client", "-o", "json", "-f", &manifest.to_string_lossy()])?;
    let mut deployments = serde_json::Deserializer::from_str(&objects).into_iter::<Value>().filter_map(Result::ok);
    let found = deployments.find(|object| object["kind"] == "Deployment");
    let Some(mut deployment) = found else { anyhow::bail!("{} has no Deployment", manifest.display()) };
    let labels = json!({"app": "litellm", "part": "second"});
    deployment["metadata"]["name"] = json!("second");
    deployment["spec"]["replicas"] = json!(SECOND);
    deployment["spec"]["selector"]["matchLabels"] = labels.clone();
    deployment["spec"]["template"]["metadata"]["labels"] = labels;
    Ok(deployment.to_string())
}
