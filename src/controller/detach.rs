//! The end of a TokenBudget: processes get their own limits back, our entries leave the pod templates, the ledger goes.
//! It ends within 30 s, whatever is broken. `tokenbudget detach` does the same to every TokenBudget, and leaves them there.

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
use super::memory::{Memory, TargetMemory};
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
    if memory.targets.detaches_since.is_none() {
        memory.targets.detaches_since = Some(Instant::now());
        // What failed before the deletion does not put it off.
        memory.failures = 0;
    }
    let patient = memory.targets.detaches_since.is_none_or(|since| since.elapsed() < PATIENCE);

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
    let TargetMemory { formers, writes, .. } = &mut memory.targets;
    let mut outcome = Ok(());
    for target in tb.spec.target_refs.iter().chain(&*formers) {
        outcome = outcome.and(writes.answer(leave(tb, ctx, world, target)).await);
    }
    outcome
}

/// Takes what is this TokenBudget's out of a Deployment: all, or its policy alone where another one names it.
async fn leave(tb: &TokenBudget, ctx: &Context, world: &World, target: &TargetRef) -> Result<(), Error> {
    if ctx.settings.role == Role::DetachAll || !another_names(tb, world, &target.name) {
        return release(tb, ctx, world, target).await;
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
            let left = leave(tb, ctx, world, &former);
            if let Err(error) = memory.targets.writes.answer(left).await {
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
async fn release(tb: &TokenBudget, ctx: &Context, world: &World, target: &TargetRef) -> Result<(), Error> {
    let namespace = tb.namespace().unwrap_or_default();
    let name = policy_config_map_name(&target.name);
    let deleted = config_maps::delete(ctx, &namespace, &name).await;
    if let Some(deployment) = world.deployment(&namespace, &target.name)?
        && holds_entries(&deployment)
    {
        take_out(ctx, &namespace, &deployment, target.container.as_deref()).await?;
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
mod tests {
    use kube::Client;
    use tokio::sync::mpsc;

    use super::*;
    use crate::controller::Settings;
    use crate::leader::Leadership;
    use crate::litellm::{AGENT_FILE, ATTACHED_LABEL, ATTACHED_VALUE};
    use crate::ops::Metrics;

    fn budget(target: &str) -> TokenBudget {
        serde_json::from_value(json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb", "namespace": "llm", "uid": "u", "resourceVersion": "1", "finalizers": [FINALIZER]},
            "spec": {"targetRefs": [{"name": target}]}}))
        .unwrap()
    }

    fn attached(name: &str) -> World {
        attached_by(name, FIELD_MANAGER)
    }

    fn attached_by(name: &str, manager: &str) -> World {
        let labels = json!({"f:labels": {format!("f:{ATTACHED_LABEL}"): {}}});
        let mounts = json!({"f:volumeMounts": {r#"k:{"mountPath":"/agent.py"}"#: {}}});
        let spec = json!({"f:containers": {r#"k:{"name":"litellm"}"#: mounts}});
        let fields = json!({"f:spec": {"f:template": {"f:metadata": labels, "f:spec": spec}}});
        let managed = json!([{"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields}]);
        World::of(
            json!({"metadata": {"name": name, "namespace": "llm", "managedFields": managed}, "spec": {"selector": {},
            "template": {"metadata": {"labels": {ATTACHED_LABEL: ATTACHED_VALUE}}, "spec": {"containers": [{"name": "litellm",
                "volumeMounts": [{"name": "agent", "mountPath": "/agent.py", "subPath": AGENT_FILE}]}]}}}}),
        )
    }

    /// An API server that never answers for Deployments; the channel hears what is sent for TokenBudgets.
    fn context() -> (Context, mpsc::UnboundedReceiver<String>) {
        let (told, heard) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
            let told = told.clone();
            async move {
                let path = format!("{} {}", request.method(), request.uri().path());
                if path.contains("/deployments/") {
                    std::future::pending::<()>().await;
                }
                let body = request.into_body().collect_bytes().await.unwrap();
                let _ = told.send(format!("{path} {}", String::from_utf8_lossy(&body)));
                let mut answer = json!(budget("litellm"));
                answer["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "tokenbudget"});
                if path.ends_with("/pods") {
                    answer = json!({"metadata": {}, "items": []});
                }
                if path.contains("/configmaps/") {
                    (answer["kind"], answer["apiVersion"]) = (json!("ConfigMap"), json!("v1"));
                }
                if path.starts_with("DELETE") {
                    answer = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
                }
                let answer = serde_json::to_vec(&answer).unwrap();
                Ok::<_, std::convert::Infallible>(axum::http::Response::new(kube::client::Body::from(answer)))
            }
        });
        let client = Client::new(service, "llm");
        let settings = Settings { role: Role::DetachAll, ..Settings::default() };
        (Context::new(client, settings, Leadership::always(), Metrics::default()), heard)
    }

    #[tokio::test]
    async fn a_deployment_that_cannot_be_written_holds_the_finalizer_only_for_a_while() {
        let ((ctx, mut heard), world, mut memory) = (context(), attached("litellm"), Memory::default());
        let soon = Duration::from_secs(1);
        let tb = budget("litellm");
        assert!(tokio::time::timeout(soon, detach(&tb, &ctx, &world, &mut memory)).await.is_err(), "it is tried");
        let told = told(&mut heard);
        let deleted = |told: &String| told.starts_with("DELETE") && told.contains("/configmaps/tokenbudget-litellm");
        assert!(told.iter().any(deleted), "its policy is gone by then: {told:?}");
        memory.targets.detaches_since = Instant::now().checked_sub(PATIENCE);
        detach(&tb, &ctx, &world, &mut memory).await.unwrap();
        assert_eq!(ctx.given_up(), ["llm/tb"]);
        let sent = heard.recv().await.unwrap();
        assert!(sent.contains("/tokenbudgets/tb") && sent.contains(r#""finalizers":[]"#), "{sent}");
    }

    #[tokio::test]
    async fn a_deletion_whose_writes_hang_is_no_failed_pass_whatever_failed_before() {
        let ((ctx, _heard), world, mut memory) = (context(), attached("litellm"), Memory::default());
        memory.failures = 6;
        let mut tb = budget("litellm");
        // Each of them hangs.
        tb.spec.target_refs.extend(vec![TargetRef { name: "litellm".to_owned(), container: None }; 15]);
        let within = ATTEMPT + Duration::from_secs(1);
        let action = tokio::time::timeout(within, detach(&tb, &ctx, &world, &mut memory)).await.unwrap().unwrap();
        assert_eq!((action, memory.failures), (Action::requeue(AGAIN), 0));
    }

    #[tokio::test]
    async fn an_agent_that_the_user_put_there_is_left_alone() {
        let ((ctx, mut heard), world, mut memory) = (context(), attached_by("litellm", "argocd"), Memory::default());
        let tb = budget("litellm");
        // The Deployment would never answer.
        tokio::time::timeout(Duration::from_secs(5), detach(&tb, &ctx, &world, &mut memory)).await.unwrap().unwrap();
        let told = told(&mut heard);
        assert!(told.iter().any(|told| told.contains(r#""finalizers":[]"#)), "{told:?}");
        assert_eq!(ctx.given_up(), [""; 0]);
    }

    fn told(heard: &mut mpsc::UnboundedReceiver<String>) -> Vec<String> {
        std::iter::from_fn(|| heard.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn what_the_spec_lost_while_no_operator_acted_on_it_is_taken_out_with_the_rest() {
        let ((ctx, mut heard), world, mut memory) = (context(), attached("former"), Memory::default());
        let tb = budget("litellm");
        let world = world.with_budgets([tb.clone()]);
        let detach = detach(&tb, &ctx, &world, &mut memory);
        assert!(tokio::time::timeout(Duration::from_secs(1), detach).await.is_err(), "its Deployment is written");
        let told = told(&mut heard);
        assert!(
            told.iter().any(|t| t.starts_with("DELETE") && t.contains("/configmaps/tokenbudget-former")),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn a_former_target_that_another_one_names_loses_the_policy_alone() {
        let ((mut ctx, mut heard), world, mut memory) = (context(), attached("former"), Memory::default());
        ctx.settings.role = Role::default();
        let mut other = budget("former");
        (other.metadata.name, other.metadata.uid) = (Some("other".to_owned()), Some("v".to_owned()));
        let tb = budget("litellm");
        let world = world.with_budgets([tb.clone(), other]);
        memory.targets.named = Some(vec![TargetRef { name: "former".to_owned(), container: None }]);
        // The Deployment would never answer.
        let pass = release_former(&tb, &ctx, &world, &mut memory);
        tokio::time::timeout(Duration::from_secs(5), pass).await.unwrap();
        assert_eq!(told(&mut heard), ["GET /api/v1/namespaces/llm/configmaps/tokenbudget-former "]);
        assert!(memory.targets.formers.is_empty());
    }

    #[tokio::test]
    async fn a_former_target_is_remembered_when_its_pass_is_dropped() {
        let ((ctx, _heard), world, mut memory) = (context(), attached("former"), Memory::default());
        memory.targets.named = Some(vec![TargetRef { name: "former".to_owned(), container: None }]);
        let tb = budget("litellm");
        let pass = release_former(&tb, &ctx, &world, &mut memory);
        assert!(tokio::time::timeout(Duration::from_millis(100), pass).await.is_err(), "its Deployment never answers");
        assert_eq!(memory.targets.formers.iter().map(|f| &*f.name).collect::<Vec<_>>(), ["former"]);
    }

    #[tokio::test]
    async fn a_ledger_that_cannot_be_found_is_not_closed() {
        let ((ctx, _heard), world, mut memory) = (context(), attached("litellm"), Memory::default());
        let mut tb = budget("litellm");
        assert_eq!(close_ledger(&tb, &ctx, &world, &mut memory).await, Ok(()), "it never had one");
        let row = crate::api::LimitStatus { name: "gpt".to_owned(), unit: "tokens".to_owned(), ..Default::default() };
        tb.status = Some(crate::api::TokenBudgetStatus { limits: vec![row], ..Default::default() });
        let why = close_ledger(&tb, &ctx, &world, &mut memory).await.unwrap_err();
        assert!(why.contains("Redis"), "{why}");
        let gone = World::of(json!({"metadata": {"name": "other", "namespace": "llm"}, "spec": {"selector": {}}}));
        assert_eq!(close_ledger(&tb, &ctx, &gone, &mut Memory::default()).await, Ok(()), "no process can have it");
    }
}
