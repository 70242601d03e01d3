//! How many processes a fleet may come to by its manifests, and the safe share that follows. The arithmetic is the
//! operator's ([`FleetSize`], [`plan_book`]).

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;

use super::super::manifests::Document;
use crate::api::TargetRef;
use crate::litellm::{Refusal, choose_container, surge, workers};
use crate::plan::{BookDemand, FleetSize, Target, plan_book};

/// Most replicas of a ScaledObject that names none (KEDA's default).
const KEDA_MOST: i64 = 100;

/// `maxReplicas` of the autoscaler that scales this Deployment, if there is one (the largest, if there are several): an
/// HPA, or the ScaledObject that KEDA makes one of.
#[must_use]
pub fn most_replicas<'a>(documents: impl Iterator<Item = &'a Document>, deployment: &str) -> Option<u32> {
    let most = |document: &Document| {
        if document.text("/spec/scaleTargetRef/name") != deployment {
            return None;
        }
        let kind = document.text("/spec/scaleTargetRef/kind");
        let number = |pointer: &str| document.value.pointer(pointer).and_then(Value::as_i64);
        let found = match (document.group(), document.kind()) {
            ("autoscaling", "HorizontalPodAutoscaler") if kind == "Deployment" => number("/spec/maxReplicas"),
            ("keda.sh", "ScaledObject") if kind.is_empty() || kind == "Deployment" => {
                Some(number("/spec/maxReplicaCount").unwrap_or(KEDA_MOST))
            }
            _ => None,
        };
        found.map(|most| u32::try_from(most.max(0)).unwrap_or(u32::MAX))
    };
    documents.filter_map(most).max()
}

/// The size of one Deployment.
///
/// # Errors
/// [`Refusal`] where LiteLLM's container is not found.
pub fn target(reference: &TargetRef, deployment: &Deployment, most_replicas: Option<u32>) -> Result<Target, Refusal> {
    let container = choose_container(deployment, reference.container.as_deref())?;
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let replicas = u32::try_from(replicas).unwrap_or(0);
    let most = replicas.max(most_replicas.unwrap_or(0));
    Ok(Target { replicas, most_replicas, surge: surge(deployment, most), workers: workers(container, |_| None) })
}

/// What a process may spend when it has lost the ledger.
#[must_use]
pub fn safe_share(budget: u64, fleet: FleetSize) -> u64 {
    let demand =
        BookDemand { budget, most_processes: fleet.most_processes, unrecorded: 0, owed: 0, members: Vec::new() };
    plan_book(&demand).safe
}

/// The size in words: `(6 replicas + 2 in a rollout) x 4 workers`.
#[must_use]
pub fn words(target: &Target) -> String {
    let most = target.replicas.max(target.most_replicas.unwrap_or(0));
    let workers = if target.workers == 1 { "1 worker".to_owned() } else { format!("{} workers", target.workers) };
    format!("({most} replicas + {} in a rollout) x {workers}", target.surge)
}
