//! The operator's loop. A pass reads like its sentence: observe, validate, plan, apply, status.

mod admission;
mod agent_pod;
mod apply;
mod arrange;
mod booted;
mod config_maps;
mod context;
mod counters;
mod crowd;
mod detach;
mod error;
mod evidence;
mod fleet;
mod index;
mod limits;
mod lost;
mod memory;
mod metrics;
mod moved;
mod observe;
mod overlap;
mod pace;
mod packed;
mod policies;
mod publish;
mod reading;
mod redis_url;
mod roster;
mod scaling;
mod siblings;
mod status;
#[cfg(test)]
mod test_support;
mod traffic;
mod validate;
mod vanished;
mod verdicts;
mod workers;
mod world;
mod writes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;
use tracing::{Instrument, debug, info, info_span, warn};

pub use context::{Context, Role, Settings};
pub use error::Error;
pub use world::{World, api_in};

use crate::api::{Reason, TokenBudget};
use crate::causes::Causes;
use crate::leader::Moment;
use crate::ops::Outcome;
use memory::Memory;
use pace::{AWAY, AWAY_TICK, BROKEN, STANDBY, TICK, WARMING};

/// The longest that a pass may take.
const PASS_DEADLINE: Duration = Duration::from_secs(10);

/// Passes at once. One whose ledger does not answer takes until its time-out, and others are not to wait for it.
const CONCURRENCY: u16 = 64;

/// Watches one namespace (or all) and keeps its TokenBudgets, until `shutdown`. `synced` is called once when the caches
/// are whole.
pub async fn run(
    ctx: Arc<Context>,
    namespace: Option<String>,
    synced: impl FnOnce() + Send + Sync + 'static,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let forgets = ctx.clone();
    let gone = move |tb: &ObjectRef<TokenBudget>| forgets.forget(tb);
    let (world, streams) = World::watch(&ctx.client, namespace.as_deref(), synced, gone);
    let (by_deployment, by_autoscaler, by_pod) = (world.clone(), world.clone(), world.clone());
    let passes = world.clone();
    Controller::for_stream(streams.budgets, world.budgets.clone())
        .with_config(kube::runtime::controller::Config::default().concurrency(CONCURRENCY))
        .watches_stream(streams.deployments, move |deployment| {
            naming(&by_deployment, deployment.namespace(), Some(deployment.name_any()))
        })
        .watches_stream(streams.autoscalers, move |autoscaler| {
            let target = Some(autoscaler.spec.scale_target_ref.name.clone());
            naming(&by_autoscaler, autoscaler.namespace(), target)
        })
        .watches_stream(streams.pods, move |pod| naming(&by_pod, pod.namespace(), pod.deployment().map(str::to_owned)))
        .graceful_shutdown_on(shutdown)
        .run(
            move |tb, ctx| {
                let world = passes.clone();
                let span = info_span!("pass", tokenbudget = %format!("{}/{}", tb.namespace().unwrap_or_default(), tb.name_any()));
                async move { reconcile(tb, ctx, world).await }.instrument(span)
            },
            pace::on_error,
            ctx,
        )
        .for_each(|outcome| {
            match outcome {
                // The error policy has said so already.
                Err(controller::Error::ReconcilerFailed(..)) | Ok(_) => {}
                // It was deleted while it waited for its pass.
                Err(controller::Error::ObjectNotFound(_)) => {}
                Err(error) => warn!(error = %Causes(&error), "a watch"),
            }
            futures::future::ready(())
        })
        .await;
}

/// An amount as Kubernetes and Prometheus have it.
fn signed(amount: impl TryInto<i64>) -> i64 {
    amount.try_into().unwrap_or(i64::MAX)
}

/// Unix seconds.
fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or(0)
}

/// The TokenBudgets that name this Deployment.
fn naming(world: &World, namespace: Option<String>, deployment: Option<String>) -> Vec<ObjectRef<TokenBudget>> {
    let (Some(namespace), Some(deployment)) = (namespace, deployment) else {
        return Vec::new();
    };
    world.budgets_of(&namespace, &deployment).iter().map(|tb| ObjectRef::from_obj(tb.as_ref())).collect()
}

async fn reconcile(tb: Arc<TokenBudget>, ctx: Arc<Context>, world: World) -> Result<Action, Error> {
    let started = Instant::now();
    let leads = ctx.leadership.token().is_some_and(|token| token.is_valid(Moment::now()));
    if !leads {
        ctx.metrics.reconciled(Outcome::Standby, started.elapsed());
        return Ok(Action::requeue(STANDBY));
    }
    if !world.is_whole() {
        return Ok(Action::requeue(WARMING));
    }
    let memory = ctx.memory(&tb);
    let mut memory = memory.lock().await;
    if let Some(left) = pace::too_soon(&tb, memory.ended_at, Instant::now()) {
        return Ok(Action::requeue(left));
    }
    let mut leadership = ctx.leadership.clone();
    let outcome = tokio::select! {
        // A pass of who does not lead any more is not polled once more.
        biased;
        // The pass is dropped where it stands: another replica may write now.
        () = leadership.lost() => {
            ctx.metrics.reconciled(Outcome::Standby, started.elapsed());
            return Ok(Action::requeue(STANDBY));
        }
        outcome = tokio::time::timeout(PASS_DEADLINE, pass(&tb, &ctx, &world, &mut memory)) => {
            outcome.unwrap_or(Err(Error::Deadline))
        }
    };
    let (label, action) = match outcome {
        Ok((label, action)) => (label, Ok(action)),
        Err(error) => (Outcome::Failed, Err(error)),
    };
    ctx.metrics.reconciled(label, started.elapsed());
    let (generation, duration_ms) = (tb.metadata.generation, started.elapsed().as_secs_f64() * 1e3);
    // A line for each pass is too many for a fleet in good order.
    if memory.outcome.replace(label) == Some(label) {
        debug!(generation, outcome = ?label, duration_ms, "pass");
    } else {
        info!(generation, outcome = ?label, duration_ms, "pass");
    }
    memory.ended_at = Some(Instant::now());
    memory.failures = if action.is_ok() { 0 } else { memory.failures.saturating_add(1) };
    action
}

/// One pass.
async fn pass(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) -> Result<(Outcome, Action), Error> {
    memory.start_from(tb, Timestamp::now());
    memory.ledger.planned_now = false;
    memory.targets.writes = writes::Writes::default();
    if tb.metadata.deletion_timestamp.is_some() || ctx.settings.role == Role::DetachAll {
        return detach::detach(tb, ctx, world, memory).await.map(|action| (Outcome::Applied, action));
    }
    match detach::ensure_finalizer(tb, ctx).await {
        Ok(true) => {}
        // The change comes back through the watch; before that a pass would be about what was.
        Ok(false) => return Ok((Outcome::Waiting, Action::requeue(TICK))),
        Err(error) => {
            let Some(why) = error.refusal().filter(|_| !error.is_conflict()) else { return Err(error) };
            let status = status::without_finalizer(tb, why, memory, Timestamp::now());
            publish::publish(tb, ctx, memory, status).await?;
            return Ok((Outcome::Refused, Action::requeue(BROKEN)));
        }
    }
    if !tb.spec.paused {
        detach::release_former(tb, ctx, world, memory).await;
    }
    let observed = observe::observe(tb, ctx, world, memory).await?;
    let valid = validate::validate(tb, &observed, &world.evidence);
    let intent = arrange::arrange(tb, &observed, &valid, &memory.ledger.books);
    let stays = tb.spec.paused || valid.waits_for_another();
    if !valid.waits_for_another() {
        memory.fleet.departed.clone_from(&intent.departed);
    }
    // What the others read was cleared when this replica ceased to lead, and nobody would clear it again.
    ctx.ensure_leads()?;
    if let Some((_, ledger)) = &memory.ledger.connection {
        ctx.crowd.set(&tb.uid().unwrap_or_default(), ledger.server(), intent.processes, Instant::now());
    }
    let answered = !matches!(observed.ledger, Some(Err(_)));
    memory.ledger.unanswered = if answered { 0 } else { memory.ledger.unanswered.saturating_add(1) };
    let applied = if stays {
        apply::leave_as_it_is(tb, ctx, memory, &observed).await
    } else {
        apply::apply(tb, ctx, world, memory, &observed, &valid, &intent).await?
    };
    let traffic = traffic::traffic(&observed, &valid, &world.evidence, memory);
    let status = status::status(tb, &observed, &valid, &intent, &applied, &traffic, memory);
    ctx.ensure_leads()?;
    metrics::set(tb, ctx, &observed, &applied, &status);
    publish::publish(tb, ctx, memory, status).await?;

    let broken = valid.targets.is_empty()
        || matches!(observed.redis, Some(Err(_)))
        || valid.limits == limits::Limits::NoneDeclared;
    // The end of the older one is told to itself only.
    let steps_back = valid.problems.iter().any(|p| matches!(p.reason, Reason::Overlap | Reason::SeveralLedgers));
    Ok(match (broken, &applied.ledger) {
        (true, _) => (Outcome::Refused, Action::requeue(if steps_back { TICK } else { BROKEN })),
        (false, Some(Ok(planned))) => (Outcome::Applied, Action::requeue(pace::until_next(&observed, planned))),
        (false, _) => {
            (Outcome::Waiting, Action::requeue(if memory.ledger.unanswered < AWAY { TICK } else { AWAY_TICK }))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_finalizer_that_is_refused_is_a_condition() {
        const ONE: &str = "/apis/tokenbudget.dev/v1alpha1/namespaces/llm/tokenbudgets/tb";
        const STATUS: &str = "/apis/tokenbudget.dev/v1alpha1/namespaces/llm/tokenbudgets/tb/status";
        const TB: &str = r#"{"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb", "namespace": "llm", "uid": "u"}, "spec": {"targetRefs": [{"name": "litellm"}]}}"#;
        let (client, asked) = test_support::recording(&[(ONE, 403, test_support::REFUSED), (STATUS, 200, TB)]);
        let ctx = test_support::context(client);
        let tb: TokenBudget = serde_json::from_str(TB).unwrap();
        let deployment =
            serde_json::json!({"metadata": {"name": "litellm", "namespace": "llm"}, "spec": {"selector": {}}});
        let (world, mut memory) = (World::of(deployment), Memory::default());
        let (outcome, action) = pass(&tb, &ctx, &world, &mut memory).await.unwrap();
        assert_eq!((outcome, action), (Outcome::Refused, Action::requeue(BROKEN)));
        let status = memory.told.written.clone().unwrap();
        let told: Vec<_> = status.conditions.iter().map(|c| (&*c.type_, &*c.status, &*c.reason)).collect();
        let unknown = |kind| (kind, "Unknown", "Pending");
        let expected = [
            unknown("Accepted"),
            ("Attached", "False", "AttachFailed"),
            unknown("LedgerReachable"),
            unknown("Enforcing"),
            unknown("WithinBudget"),
            ("Ready", "False", "AttachFailed"),
        ];
        assert_eq!(told, expected);
        assert!(status.conditions[1].message.contains("may not"), "{}", status.conditions[1].message);
        let written = || asked.lock().unwrap().iter().filter(|(_, path, _)| path == STATUS).count();
        assert_eq!(written(), 1);
        pass(&tb, &ctx, &world, &mut memory).await.unwrap();
        assert_eq!(written(), 1, "the same is not written again");
        let asked = asked.lock().unwrap();
        assert!(asked.iter().all(|(_, path, _)| !path.contains("/deployments/")), "{asked:?}");
    }
}
