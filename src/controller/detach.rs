//! The end of a TokenBudget: processes get their own limits back, our entries leave the pod templates, the ledger goes.
//! It ends within 30 s, whatever is broken. `tokenbudget detach` does the same to every TokenBudget, and leaves them there.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{info, warn};

use super::config_maps;
use super::context::Context;
use super::memory::Memory;
use super::{Error, World};
use crate::api::{FIELD_MANAGER, FINALIZER, TargetRef, TokenBudget};
use crate::ledger::Ledger;
use crate::litellm::{detachment, is_attached, policy_config_map_name};

/// How long the clean-up is tried before the finalizer goes without it.
const PATIENCE: SignedDuration = SignedDuration::from_secs(20);

/// How soon a failed clean-up is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// And that of a Deployment that is no target any more.
const RELEASE_AGAIN: Duration = Duration::from_secs(15);

/// Sets our finalizer, so that the ledger and the Deployments can be cleaned up. Answers whether it was there.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn ensure_finalizer(tb: &TokenBudget, ctx: &Context) -> Result<bool, Error> {
    if tb.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(true);
    }
    let finalizers: Vec<&str> = tb.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    write_finalizers(tb, ctx, &finalizers).await?;
    Ok(false)
}

/// Cleans up after a TokenBudget that is being deleted.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn detach(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) -> Result<Action, Error> {
    if !tb.finalizers().iter().any(|f| f == FINALIZER) {
        if tb.metadata.deletion_timestamp.is_none() && tb.status.is_some() {
            // Nobody keeps it up to date any more.
            clear_status(tb, ctx).await?;
        }
        ctx.forget(tb);
        return Ok(Action::await_change());
    }
    // Not since its deletion: no operator may have been there.
    let now = Timestamp::now();
    let began = *memory.targets.detaches_since.get_or_insert(now);
    let patient = now.duration_since(began) < PATIENCE;

    if let Err(error) = close_ledger(tb, ctx, world, memory).await {
        if patient {
            warn!(%error, "the ledger could not be closed yet");
            return Ok(Action::requeue(AGAIN));
        }
        warn!(%error, "the ledger could not be closed; its keys go by themselves within a day");
    }
    if let Err(error) = detach_deployments(tb, ctx, world, memory).await {
        warn!(%error, "the agent could not be taken out of every Deployment");
        if patient {
            return Ok(Action::requeue(AGAIN));
        }
    }
    let rest: Vec<&str> = tb.finalizers().iter().map(String::as_str).filter(|f| *f != FINALIZER).collect();
    write_finalizers(tb, ctx, &rest).await?;
    ctx.forget(tb);
    info!("detached");
    Ok(Action::await_change())
}

async fn close_ledger(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) -> Result<(), String> {
    let had_ledger = tb.status.as_ref().is_some_and(|s| !s.limits.is_empty()) || memory.ledger.planned;
    if memory.ledger.connection.is_none() && had_ledger {
        let observed = super::observe::observe(tb, ctx, world, memory).await.map_err(|e| e.to_string())?;
        if let Some(Ok(location)) = observed.redis {
            let ledger = ctx.connect(&location).map_err(|e| e.to_string())?;
            memory.ledger.connection = Some((location, ledger));
        }
    }
    let Some((_, ledger)) = &memory.ledger.connection else {
        return Ok(());
    };
    let uid = tb.uid().unwrap_or_default();
    let books: Vec<_> = memory.ledger.books.iter().cloned().collect();
    let epoch = ledger.claim(&uid).await.map_err(|e| e.to_string())?;
    ledger.close(&uid, epoch, &books).await.map_err(|e| e.to_string())
}

/// Takes the agent out of each Deployment that no other TokenBudget names, also of former targets. One that cannot be written
/// stands in no other's way; the first error is told.
async fn detach_deployments(tb: &TokenBudget, ctx: &Context, world: &World, memory: &Memory) -> Result<(), Error> {
    let mut outcome = Ok(());
    for target in tb.spec.target_refs.iter().chain(&memory.targets.formers) {
        if ctx.settings.detaches_all || !another_names(tb, world, &target.name) {
            outcome = outcome.and(release(tb, ctx, world, target).await);
        }
    }
    outcome
}

/// Takes the agent out of Deployments that the spec named until lately; in an operator's first pass, of those in the namespace
/// that nobody names any more: they were taken out of a spec while no operator ran.
///
/// One that cannot be written is tried again later, and stands in nobody's way.
pub async fn release_former(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) {
    let is_named = |name: &str| tb.spec.target_refs.iter().any(|target| target.name == name);
    let strays = || {
        let strays = world.strays(&tb.namespace().unwrap_or_default());
        strays.inspect_err(|error| warn!(%error, "what nobody names any more is not looked for")).unwrap_or_default()
    };
    let named = memory.targets.named.take().unwrap_or_else(strays);
    memory.targets.formers.extend(named.into_iter().filter(|target| !is_named(&target.name)));
    memory.targets.named = Some(tb.spec.target_refs.clone());
    let due = memory.targets.released_at.is_none_or(|at| at.elapsed() >= RELEASE_AGAIN);
    if memory.targets.formers.is_empty() || !due {
        return;
    }
    let mut left = Vec::new();
    for former in std::mem::take(&mut memory.targets.formers) {
        if is_named(&former.name) || another_names(tb, world, &former.name) {
            continue;
        }
        if let Err(error) = release(tb, ctx, world, &former).await {
            warn!(deployment = %former.name, %error, "the agent could not be taken out of a former target yet");
            left.push(former);
        }
    }
    memory.targets.released_at = (!left.is_empty()).then(Instant::now);
    memory.targets.formers = left;
}

/// Whether another TokenBudget that stays names this Deployment.
fn another_names(tb: &TokenBudget, world: &World, deployment: &str) -> bool {
    let stays = |b: &TokenBudget| b.uid() != tb.uid() && b.metadata.deletion_timestamp.is_none();
    world.budgets_of(&tb.namespace().unwrap_or_default(), deployment).iter().any(|b| stays(b))
}

/// Leaves nothing of ours in a Deployment and beside it.
async fn release(tb: &TokenBudget, ctx: &Context, world: &World, target: &TargetRef) -> Result<(), Error> {
    let namespace = tb.namespace().unwrap_or_default();
    let Some(deployment) = world.deployment(&namespace, &target.name)? else {
        return Ok(());
    };
    if is_attached(&deployment) {
        take_out(ctx, &namespace, &deployment, target.container.as_deref()).await?;
    }
    let name = policy_config_map_name(&target.name);
    config_maps::delete(ctx, &namespace, &name).await
}

/// Takes the whole status away, as if no operator had ever seen this TokenBudget.
async fn clear_status(tb: &TokenBudget, ctx: &Context) -> Result<(), Error> {
    let api: Api<TokenBudget> = Api::namespaced(ctx.client.clone(), &tb.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"status": null}));
    match api.patch_status(&tb.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes out of the pod template what the operator put in.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn take_out(
    ctx: &Context,
    namespace: &str,
    deployment: &Deployment,
    container: Option<&str>,
) -> Result<(), Error> {
    let name = deployment.name_any();
    let inherited = super::observe::inherited_hooks(ctx, namespace, deployment, container).await?;
    let detachment = detachment(deployment, inherited.as_ref());
    if let Some(stays) = &detachment.stays {
        warn!(deployment = %name, "{stays}");
    }
    let params = PatchParams::apply(FIELD_MANAGER);
    let api: Api<Deployment> = Api::namespaced(ctx.client.clone(), namespace);
    api.patch(&name, &params, &Patch::Apply(&detachment.patch)).await?;
    info!(deployment = %name, "took the agent out of the pod template");
    Ok(())
}

async fn write_finalizers(tb: &TokenBudget, ctx: &Context, finalizers: &[&str]) -> Result<(), Error> {
    let api: Api<TokenBudget> = Api::namespaced(ctx.client.clone(), &tb.namespace().unwrap_or_default());
    // The version makes this fail when somebody else changed the list meanwhile.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": tb.resource_version()}});
    match api.patch(&tb.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
