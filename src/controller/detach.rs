//! The end of a TokenBudget: processes get their own limits back, our entries leave the pod templates, the ledger goes.
//! It ends within 30 s, whatever is broken. `tokenbudget detach` does the same to every TokenBudget, and leaves them there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{info, warn};

use super::config_maps;
use super::context::{Context, Role};
use super::memory::{AttachMemory, Memory, TargetMemory};
use super::{Error, World};
use crate::api::{FIELD_MANAGER, FINALIZER, TargetRef, TokenBudget};
use crate::causes::Causes;
use crate::ledger::Ledger;
use crate::litellm::{choose_container, detachment, holds_entries, policy_config_map_name};

/// How long the clean-up is tried before the finalizer goes without it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long one attempt may take: shorter than a pass, whose deadline would be a failure, and the next one later.
const ATTEMPT: Duration = Duration::from_secs(7);

/// How soon a failed clean-up is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// How soon the agent is taken again out of a Deployment that is no target any more, where that failed.
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
        ctx.forget(&ObjectRef::from_obj(tb));
        return Ok(Action::await_change());
    }
    // Not since its deletion: no operator may have been there.
    let since = memory.targets.detaches_since.get_or_insert_with(|| {
        // What failed before the deletion does not put it off.
        memory.failures = 0;
        Instant::now()
    });
    let patient = since.elapsed() < PATIENCE;

    // Not even tried any more when it was tried for long enough: what hangs would take the time that the finalizer needs.
    if patient {
        remember_formers(tb, world, memory);
        let attempt = async {
            let closed = close_ledger(tb, ctx, world, memory).await;
            (closed, detach_deployments(tb, ctx, world, memory).await)
        };
        let Ok((closed, taken_out)) = tokio::time::timeout(ATTEMPT, attempt).await else {
            warn!("the clean-up was not done within {} s", ATTEMPT.as_secs());
            return Ok(Action::requeue(AGAIN));
        };
        if let Err(error) = &closed {
            warn!(%error, "the ledger could not be closed yet");
        }
        if let Err(error) = &taken_out {
            warn!(error = %Causes(error), "the agent could not be taken out of every Deployment yet");
        }
        if closed.is_err() || taken_out.is_err() {
            return Ok(Action::requeue(AGAIN));
        }
    } else {
        ctx.give_up(tb);
        warn!(
            "given up: what is left of the ledger goes by itself within a day, and what is left of the agent does nothing"
        );
    }
    let rest: Vec<&str> = tb.finalizers().iter().map(String::as_str).filter(|f| *f != FINALIZER).collect();
    write_finalizers(tb, ctx, &rest).await?;
    ctx.forget(&ObjectRef::from_obj(tb));
    info!("detached");
    Ok(Action::await_change())
}

async fn close_ledger(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) -> Result<(), String> {
    let had_ledger = tb.status.as_ref().is_some_and(|s| !s.limits.is_empty()) || memory.ledger.planned;
    if memory.ledger.connection.is_none() && had_ledger {
        let observed = super::observe::observe(tb, ctx, world, memory).await.map_err(|e| Causes(&e).to_string())?;
        match observed.redis {
            Some(Ok(location)) => {
                let ledger = ctx.connect(&location).map_err(|e| Causes(&e).to_string())?;
                memory.ledger.connection = Some((location, ledger));
            }
            // Its processes may still reach it.
            Some(Err(no_redis)) => return Err(no_redis.message),
            // There is no container that names one, so there are no processes.
            None => {}
        }
    }
    let Some((_, ledger)) = &memory.ledger.connection else {
        return Ok(());
    };
    let uid = tb.uid().unwrap_or_default();
    let books: Vec<_> = memory.ledger.books.held.iter().cloned().collect();
    let epoch = ledger.claim(&uid).await.map_err(|e| Causes(&e).to_string())?;
    ledger.close(&uid, epoch, &books).await.map_err(|e| Causes(&e).to_string())
}

/// Takes the agent out of each Deployment that no other TokenBudget names, also of former targets. One that cannot be written
/// stands in no other's way; the first error is told.
async fn detach_deployments(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) -> Result<(), Error> {
    let TargetMemory { formers, writes, attached, .. } = &mut memory.targets;
    let mut outcome = Ok(());
    for target in tb.spec.target_refs.iter().chain(&*formers) {
        outcome = outcome.and(writes.answer(leave(tb, ctx, world, target, attached)).await);
    }
    outcome
}

/// Takes what is this TokenBudget's out of a Deployment: all, or its policy alone where another one names it.
async fn leave(
    tb: &TokenBudget,
    ctx: &Context,
    world: &World,
    target: &TargetRef,
    attached: &BTreeMap<String, AttachMemory>,
) -> Result<(), Error> {
    if ctx.settings.role == Role::DetachAll || !another_names(tb, world, &target.name) {
        return release(tb, ctx, world, target, attached.get(&target.name)).await;
    }
    // The others may be paused, or not able to plan, and then nobody else writes the file.
    let (namespace, uid) = (tb.namespace().unwrap_or_default(), tb.uid().unwrap_or_default());
    config_maps::without_policy(ctx, &namespace, &policy_config_map_name(&target.name), &uid).await
}

/// Remembers the Deployments that the spec named until lately; in an operator's first pass, those in the namespace that nobody
/// names any more: they were taken out of a spec while no operator acted on it.
fn remember_formers(tb: &TokenBudget, world: &World, memory: &mut Memory) {
    let strays = || {
        let strays = world.strays(&tb.namespace().unwrap_or_default());
        strays
            .inspect_err(|error| warn!(error = %Causes(error), "what nobody names any more is not looked for"))
            .unwrap_or_default()
    };
    let named = memory.targets.named.take().unwrap_or_else(strays);
    memory.targets.formers.extend(named.into_iter().filter(|target| !is_named(tb, &target.name)));
    memory.targets.named = Some(tb.spec.target_refs.clone());
}

fn is_named(tb: &TokenBudget, deployment: &str) -> bool {
    tb.spec.target_refs.iter().any(|target| target.name == deployment)
}

/// Takes what is this TokenBudget's out of Deployments that its spec named until lately.
///
/// One that cannot be written is tried again later, and stands in nobody's way.
pub async fn release_former(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) {
    remember_formers(tb, world, memory);
    let due = memory.targets.released_at.is_none_or(|at| at.elapsed() >= RELEASE_AGAIN);
    if memory.targets.formers.is_empty() || !due {
        return;
    }
    memory.targets.released_at = Some(Instant::now());
    // A pass may be dropped at any of these waits: only what is done is forgotten.
    for former in memory.targets.formers.clone() {
        if !is_named(tb, &former.name) {
            let TargetMemory { writes, attached, .. } = &mut memory.targets;
            if let Err(error) = writes.answer(leave(tb, ctx, world, &former, attached)).await {
                warn!(deployment = %former.name, error = %Causes(&error), "the agent could not be taken out of a former target yet");
                continue;
            }
            // That it is gone now is no removal by somebody.
            memory.targets.attached.remove(&former.name);
        }
        memory.targets.formers.retain(|other| *other != former);
    }
    if memory.targets.formers.is_empty() {
        memory.targets.released_at = None;
    }
}

/// Whether another TokenBudget that stays names this Deployment.
fn another_names(tb: &TokenBudget, world: &World, deployment: &str) -> bool {
    let stays = |b: &TokenBudget| b.uid() != tb.uid() && b.metadata.deletion_timestamp.is_none();
    world.budgets_of(&tb.namespace().unwrap_or_default(), deployment).iter().any(|b| stays(b))
}

/// Leaves nothing of ours in a Deployment and beside it. The policy goes first: where the pod template may not be written, pods
/// that start later would wait for a ledger that is closed, and refuse everything.
async fn release(
    tb: &TokenBudget,
    ctx: &Context,
    world: &World,
    target: &TargetRef,
    known: Option<&AttachMemory>,
) -> Result<(), Error> {
    let namespace = tb.namespace().unwrap_or_default();
    let name = policy_config_map_name(&target.name);
    let deleted = config_maps::delete(ctx, &namespace, &name).await;
    if let Some(deployment) = world.deployment(&namespace, &target.name)? {
        if known.is_some_and(|entry| entry.is_older(&deployment.metadata)) {
            return Err(Error::CacheBehind { name: target.name.clone() });
        }
        if holds_entries(&deployment) {
            take_out(ctx, &namespace, &deployment, target.container.as_deref()).await?;
        }
    }
    deleted
}

/// Takes the whole status away, as if no operator had ever seen this TokenBudget.
async fn clear_status(tb: &TokenBudget, ctx: &Context) -> Result<(), Error> {
    let api: Api<TokenBudget> = Api::namespaced(ctx.client.clone(), &tb.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"status": null}));
    ctx.ensure_leads()?;
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
    let inherited = match choose_container(deployment, container) {
        Ok(container) => super::observe::inherited_hooks(ctx, namespace, container).await?.0,
        Err(_) => None,
    };
    let detachment = detachment(deployment, inherited.as_ref());
    if let Some(stays) = &detachment.stays {
        warn!(deployment = %name, "{stays}");
    }
    let params = PatchParams::apply(FIELD_MANAGER);
    let api: Api<Deployment> = Api::namespaced(ctx.client.clone(), namespace);
    ctx.ensure_leads()?;
    api.patch(&name, &params, &Patch::Apply(&detachment.patch)).await?;
    info!(deployment = %name, "took the agent out of the pod template");
    Ok(())
}

async fn write_finalizers(tb: &TokenBudget, ctx: &Context, finalizers: &[&str]) -> Result<(), Error> {
    let api: Api<TokenBudget> = Api::namespaced(ctx.client.clone(), &tb.namespace().unwrap_or_default());
    ctx.ensure_leads()?;
    // The version makes this fail when somebody else changed the list meanwhile.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": tb.resource_version()}});
    match api.patch(&tb.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
