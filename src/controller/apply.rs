//! Step 4, apply: the plan goes to the ledger, the policy to the pods' ConfigMap, the agent to the Deployments.

use std::time::Instant;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use super::arrange::Intent;
use super::context::Context;
use super::memory::Memory;
use super::observe::Observed;
use super::validate::{Problem, Target, Validated};
use super::writes::Failed;
use super::{Error, World};
use super::{admission, config_maps, moved};
use crate::api::{AttachPolicy, FIELD_MANAGER, Reason, TokenBudget};
use crate::ledger::{Ledger, LedgerError, Planned, PlannedBook};
use crate::litellm::{attachment, difference, is_attached};

/// What came of it. The status is made from this, so that it never shows what was not applied.
pub struct Applied {
    /// The books after the plan; none where there is no ledger to write to.
    pub ledger: Option<Result<Planned, LedgerError>>,
    /// Why the agent is not in a Deployment, by its name.
    pub unattached: Vec<(String, Problem)>,
}

/// Applies the plan.
///
/// # Errors
/// When the API server is not to be written to. What a user has to mend, a write without answer, and a ledger that fails, are
/// part of the outcome.
pub async fn apply(
    tb: &TokenBudget,
    ctx: &Context,
    world: &World,
    memory: &mut Memory,
    observed: &Observed,
    valid: &Validated,
    intent: &Intent,
) -> Result<Applied, Error> {
    moved::withdraw(tb, &mut memory.ledger).await;
    let ledger = match &observed.ledger {
        Some(Ok(seen)) => Some(write_ledger(tb, memory, seen.policy_version.as_deref(), intent).await),
        _ => None,
    };
    if matches!(ledger, Some(Ok(_))) {
        memory.ledger.books.wrote(intent.writes.iter().map(|w| w.book.clone()).collect(), Instant::now());
        memory.ledger.books.booted.clone_from(&intent.booted);
        memory.targets.old_files = valid.targets.iter().map(Target::name).collect();
        memory.ledger.planned = true;
        memory.ledger.planned_now = true;
        ctx.ensure_leads()?;
        ctx.publish_policy(tb, &intent.policy);
    }
    let mut unattached = Vec::new();
    let is_unknown = matches!(observed.redis, Some(Err(_)));
    for target in &valid.targets {
        if is_unknown && is_attached(&target.deployment) {
            // Which Redis the agents are to use cannot be read just now: what the Deployment has stays, or its pods would
            // start anew without their ledger.
            continue;
        }
        let planned = matches!(ledger, Some(Ok(_)));
        let serves = planned || is_attached(&target.deployment);
        if serves && let Err(problem) = keep_config_maps(tb, ctx, world, memory, target).await? {
            unattached.push((target.name(), problem));
            continue;
        }
        if tb.spec.attach != AttachPolicy::Automatic {
            // Whatever happens to the entries now is no removal that counts against somebody.
            memory.targets.attached.remove(&target.name());
        }
        let attached = match tb.spec.attach {
            AttachPolicy::Automatic => attach(tb, ctx, memory, target, observed, planned).await?,
            AttachPolicy::Admission => {
                admission::leave_to_policy(tb, ctx, world, memory, observed, target, planned).await?
            }
            AttachPolicy::Manual => Ok(()),
        };
        if let Err(problem) = attached {
            unattached.push((target.name(), problem));
        }
    }
    Ok(Applied { ledger, unattached })
}

/// Keeps what the pods mount.
async fn keep_config_maps(
    tb: &TokenBudget,
    ctx: &Context,
    world: &World,
    memory: &mut Memory,
    target: &Target,
) -> Result<Result<(), Problem>, Error> {
    let targets = &mut memory.targets;
    if let Some(failed) = targets.maps_failed.get(&target.name()).filter(|failed| failed.stands()) {
        return Ok(Err(failed.problem()));
    }
    let kept = targets.writes.answer(config_maps::keep(tb, ctx, world, target)).await;
    if let Some(failed) = Failed::of(&kept, "the agent's ConfigMaps could not be written") {
        let problem = failed.problem();
        targets.maps_failed.insert(target.name(), failed);
        return Ok(Err(problem));
    }
    kept?;
    targets.maps_failed.remove(&target.name());
    memory.targets.old_files.remove(&target.name());
    Ok(Ok(()))
}

/// What there is without a plan of this pass: for a TokenBudget that is paused. Its stored policy stays in the ConfigMaps
/// that it shares with others.
pub async fn leave_as_it_is(tb: &TokenBudget, ctx: &Context, memory: &Memory, observed: &Observed) -> Applied {
    let seen = observed.ledger.as_ref().and_then(|ledger| ledger.as_ref().ok());
    let uid = tb.uid().unwrap_or_default();
    if let (Some(_), Some((_, ledger)), None) = (seen, &memory.ledger.connection, ctx.policy(&uid))
        && let Ok(Some(policy)) = ledger.policy(&uid).await
    {
        ctx.publish_policy(tb, &policy);
    }
    let books = seen.map(|seen| seen.books.iter().map(|(id, book)| (id.clone(), PlannedBook::of(book))).collect());
    Applied { ledger: books.map(|books| Ok(Planned { books, ..Planned::default() })), unattached: Vec::new() }
}

async fn write_ledger(
    tb: &TokenBudget,
    memory: &mut Memory,
    stored_version: Option<&str>,
    intent: &Intent,
) -> Result<Planned, LedgerError> {
    let uid = tb.uid().unwrap_or_default();
    let Some((_, ledger)) = memory.ledger.connection.clone() else {
        return Ok(Planned::default());
    };
    let epoch = match memory.ledger.epoch {
        Some(epoch) => epoch,
        None => *memory.ledger.epoch.insert(ledger.claim(&uid).await?),
    };
    let outcome = async {
        // A book exists before the policy names it, and goes with the policy that no longer does.
        let planned = ledger.plan(&uid, epoch, &intent.writes).await?;
        if stored_version != Some(intent.policy.version.as_str()) || !intent.forgotten.is_empty() {
            ledger.publish(&uid, epoch, &intent.policy, &intent.forgotten).await?;
            info!(policy = %intent.policy.version, limits = intent.policy.limits.len(), "published the policy");
        }
        Ok(planned)
    }
    .await;
    if matches!(outcome, Err(LedgerError::Fenced)) {
        // A flush, or another operator: this one is the leader by Kubernetes' word, so it claims anew in the next pass.
        memory.ledger.epoch = None;
    }
    outcome
}

/// Adds the agent to the Deployment. The first time, and with another ledger, only when that has answered: a process that never
/// reached its ledger admits nothing for a while.
async fn attach(
    tb: &TokenBudget,
    ctx: &Context,
    memory: &mut Memory,
    target: &Target,
    observed: &Observed,
    planned: bool,
) -> Result<Result<(), Problem>, Error> {
    let name = target.name();
    let wanted = match attachment(&target.deployment, &target.wanted) {
        Ok(wanted) => wanted,
        Err(refusal) => {
            return Ok(Err(Problem { reason: refusal.reason(), message: refusal.to_string() }));
        }
    };
    let entry = memory.targets.attached.entry(name.clone()).or_default();
    let difference = difference(&target.deployment, &wanted);
    if difference.is_empty() {
        entry.has(&wanted.patch);
        return Ok(Ok(()));
    }
    if !planned && !is_attached(&target.deployment) {
        let message = format!("Deployment {name} gets the agent once the ledger answers");
        return Ok(Err(Problem { reason: Reason::LedgerUnreachable, message }));
    }
    if !planned && difference.names_another_ledger() {
        let message = format!("Deployment {name} keeps the ledger that it has until the one that is named now answers");
        return Ok(Err(Problem { reason: Reason::LedgerUnreachable, message }));
    }
    if entry.is_older(&target.deployment.metadata) {
        return Ok(Ok(()));
    }
    // Another wish of ours is no removal.
    if entry.had(&wanted.patch) && !difference.missing.is_empty() {
        warn!(deployment = %name, missing = ?difference.missing, "somebody took out the agent");
        entry.was_removed(observed.now, tb.metadata.generation);
    }
    if entry.contested(tb.metadata.generation) {
        let message = format!(
            "the agent was taken out of Deployment {name} twice in ten minutes, and is left alone until the TokenBudget's spec \
             changes: whatever applies the Deployment must leave fields of others (kubectl replace does not), or use attach: Manual"
        );
        return Ok(Err(Problem { reason: Reason::AttachContested, message }));
    }
    if let Some(failed) = entry.failed.as_ref().filter(|failed| failed.stands()) {
        return Ok(Err(failed.problem()));
    }
    let api: Api<Deployment> = Api::namespaced(ctx.client.clone(), &tb.namespace().unwrap_or_default());
    let params = PatchParams::apply(FIELD_MANAGER);
    ctx.ensure_leads()?;
    let write = async { Ok(api.patch(&name, &params, &Patch::Apply(&wanted.patch)).await?) };
    let outcome = memory.targets.writes.answer(write).await;
    if let Some(failed) = Failed::of(&outcome, &format!("the agent could not be added to Deployment {name}")) {
        let problem = failed.problem();
        entry.failed = Some(failed);
        return Ok(Err(problem));
    }
    entry.wrote(&outcome?.metadata);
    entry.failed = None;
    entry.has(&wanted.patch);
    info!(deployment = %name, container = %wanted.container, "added the agent to the pod template");
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::Client;
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::controller::test_support;

    fn target(name: &str) -> Target {
        let deployment = json!({"metadata": {"name": name, "namespace": "llm"}, "spec": {"selector": {},
            "template": {"spec": {"containers": [{"name": "litellm"}]}}}});
        Target {
            deployment: Arc::new(serde_json::from_value(deployment).unwrap()),
            container: "litellm".to_owned(),
            wanted: Default::default(),
            size: crate::plan::Target { replicas: 1, most_replicas: None, surge: 0, workers: 1 },
            pods: Vec::new(),
            pods_without_agent: 1,
        }
    }

    /// An API server that never answers for what has `hangs` in its path, and answers all else with this status; and what it was
    /// asked that hung.
    fn context(hangs: &'static str, status: u16) -> (Context, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counts = asked.clone();
        let service = tower::service_fn(move |request: axum::http::Request<Body>| {
            let counts = counts.clone();
            async move {
                if request.uri().path().contains(hangs) {
                    counts.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                }
                let body =
                    json!({"kind": "Status", "status": "Failure", "code": status, "message": "later"}).to_string();
                axum::http::Response::builder().status(status).body(Body::from(body.into_bytes()))
            }
        });
        let client = Client::new(service, "llm");
        (test_support::context(client), asked)
    }

    fn budget() -> TokenBudget {
        serde_json::from_value(json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb", "namespace": "llm", "uid": "u"}, "spec": {"targetRefs": [{"name": "one"}, {"name": "two"}]}}))
        .unwrap()
    }

    #[tokio::test]
    async fn a_write_that_hangs_is_a_condition_and_no_pass_waits_for_it_again_soon() {
        let ((ctx, asked), tb, mut memory) = (context("/deployments/", 503), budget(), Memory::default());
        let observed = Observed::default();
        for name in ["one", "two", "one", "two"] {
            let problem = attach(&tb, &ctx, &mut memory, &target(name), &observed, true).await.unwrap().unwrap_err();
            assert_eq!(problem.reason, Reason::AttachFailed);
            let expected = format!("the agent could not be added to Deployment {name}: the API server did not answer");
            assert!(problem.message.starts_with(&expected), "{}", problem.message);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2, "each once");
    }

    #[tokio::test]
    async fn an_api_server_that_fails_a_write_is_a_condition() {
        let ((ctx, _), tb, mut memory) = (context("nothing", 503), budget(), Memory::default());
        let target = target("one");
        let world = World::of(json!({"metadata": {"name": "one", "namespace": "llm"}, "spec": {"selector": {}}}));
        let kept = keep_config_maps(&tb, &ctx, &world, &mut memory, &target).await.unwrap().unwrap_err();
        let said = "the agent's ConfigMaps could not be written: the API server answered 503: later";
        assert_eq!((kept.reason, kept.message.as_str()), (Reason::AttachFailed, said));
        let added = attach(&tb, &ctx, &mut memory, &target, &Observed::default(), true).await.unwrap().unwrap_err();
        let said = "the agent could not be added to Deployment one: the API server answered 503: later";
        assert_eq!((added.reason, added.message.as_str()), (Reason::AttachFailed, said));
    }
}
