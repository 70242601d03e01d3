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
use tracing::{Instrument, debug, error, info, info_span, warn};

pub use context::{Context, Role, Settings};
pub use error::Error;
pub use world::{World, api_in};

use crate::api::{Reason, TokenBudget};
use crate::causes::Causes;
use crate::leader::Moment;
use crate::ledger::{BookId, BookState, Planned};
use crate::ops::Outcome;
use memory::Memory;
use observe::Observed;

/// The longest that a pass may take.
const PASS_DEADLINE: Duration = Duration::from_secs(10);

/// A TokenBudget that works is planned this often.
const TICK: Duration = Duration::from_secs(1);

/// The least time between two passes of a TokenBudget. Each of many processes that ended together frees something in each second of
/// a window, and each change of a pod is a trigger: both are looked at in lots, of a size that costs a window of 60 s nothing.
const LEAST: Duration = Duration::from_millis(250);

/// Time between the moment at which what an ended process spent is free to lend, and the pass that lends it.
const SOON: Duration = Duration::from_millis(10);

/// A TokenBudget that the user has to mend is looked at this often; a change of it or of its Deployments comes at once.
const BROKEN: Duration = Duration::from_secs(15);

/// A replica that does not lead looks this often whether it does.
const STANDBY: Duration = Duration::from_secs(2);

/// While the caches fill, a pass is put off by so much: it would take for missing what it has not heard of yet.
const WARMING: Duration = Duration::from_millis(200);

/// Passes at once. One whose ledger does not answer takes until its time-out, and others are not to wait for it.
const CONCURRENCY: u16 = 64;

/// After so many passes in a row in which the ledger did not answer it is asked each [`AWAY_TICK`] only.
const AWAY: u32 = 15;

/// Time between two passes while the ledger has not answered for [`AWAY`] passes, or while the API server fails what comes
/// after the plan.
const AWAY_TICK: Duration = Duration::from_secs(5);

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
            on_error,
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
    if let Some(left) = too_soon(&tb, memory.ended_at, Instant::now()) {
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

/// How long a pass is put off, as the one before ended just now. The end of a TokenBudget waits for nothing.
fn too_soon(tb: &TokenBudget, ended_at: Option<Instant>, now: Instant) -> Option<Duration> {
    if tb.metadata.deletion_timestamp.is_some() {
        return None;
    }
    LEAST.checked_sub(now.duration_since(ended_at?)).filter(|left| !left.is_zero())
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
        (false, Some(Ok(planned))) => (Outcome::Applied, Action::requeue(until_next(&observed, planned))),
        (false, _) => {
            (Outcome::Waiting, Action::requeue(if memory.ledger.unanswered < AWAY { TICK } else { AWAY_TICK }))
        }
    })
}

/// Until the next pass: sooner than usual when something of an ended process is free before.
fn until_next(observed: &Observed, planned: &Planned) -> Duration {
    let Some(Ok(seen)) = &observed.ledger else { return TICK };
    let next = |(id, book): (&BookId, &BookState)| {
        let clock = planned.books.get(id)?.clock_ms;
        let leaves = book.members.values().filter_map(|member| member.next_leave_ms(clock));
        leaves.min().map(|at| Duration::from_millis(at - clock))
    };
    seen.books.iter().filter_map(next).min().map_or(TICK, |wait| (wait + SOON).clamp(LEAST, TICK))
}

/// Tries again after 1, 2, 4 ... 60 s; sooner where the pass has planned, as shares must go on following demand while the API
/// server is in trouble.
fn on_error(tb: Arc<TokenBudget>, error: &Error, ctx: Arc<Context>) -> Action {
    let memory = ctx.known_memory(&tb);
    let (failures, planned) = memory
        .as_ref()
        .and_then(|memory| memory.try_lock().ok())
        .map_or((1, false), |memory| (memory.failures, memory.ledger.planned_now));
    let wait = if planned { AWAY_TICK } else { backoff(failures) };
    let (namespace, name) = (tb.namespace().unwrap_or_default(), tb.name_any());
    // An outage fails each pass of each TokenBudget: the 1st, 2nd, 4th ... of them is said.
    if !failures.is_power_of_two() {
        debug!(%namespace, name, ?wait, failures, "{}", Causes(error));
        return Action::requeue(wait);
    }
    match error {
        Error::Deadline => error!(%namespace, name, ?wait, failures, "{error}"),
        Error::Kubernetes(_)
        | Error::Packed { .. }
        | Error::NotOurs(_)
        | Error::Unreadable { .. }
        | Error::Unanswered
        | Error::CacheBehind { .. }
        | Error::NotLeading => {
            warn!(%namespace, name, ?wait, failures, "{}", Causes(error))
        }
    }
    Action::requeue(wait)
}

/// 1, 2, 4 ... 60 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << (failures.clamp(1, 7) - 1)).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::Leadership;
    use crate::ledger::{MemberRecord, Observation, PlannedBook, Unit};
    use crate::ops::Metrics;

    #[tokio::test]
    async fn a_pass_that_has_planned_is_soon_followed_whatever_the_api_server_does() {
        let client = test_support::answering(&[]);
        let ctx = Arc::new(Context::new(client, Settings::default(), Leadership::always(), Metrics::default()));
        let spec = serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb", "uid": "u"}, "spec": {"targetRefs": [{"name": "litellm"}]}});
        let tb: Arc<TokenBudget> = Arc::new(serde_json::from_value(spec).unwrap());
        let fails = || on_error(tb.clone(), &Error::Deadline, ctx.clone());
        assert_eq!(fails(), Action::requeue(Duration::from_secs(1)));
        assert!(ctx.known_memory(&tb).is_none(), "what is gone is not made again");
        let memory = ctx.memory(&tb);
        memory.lock().await.failures = 6;
        assert_eq!(fails(), Action::requeue(Duration::from_secs(32)));
        memory.lock().await.ledger.planned_now = true;
        assert_eq!(fails(), Action::requeue(AWAY_TICK));
    }

    #[test]
    fn passes_have_a_least_distance_but_for_the_end() {
        let at = Instant::now();
        let tb = |deleted: Option<&str>| -> TokenBudget {
            let meta = serde_json::json!({"name": "tb", "deletionTimestamp": deleted});
            serde_json::from_value(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
                "metadata": meta, "spec": {"targetRefs": [{"name": "litellm"}]}}))
            .unwrap()
        };
        let after = |ms| at + Duration::from_millis(ms);
        assert_eq!(too_soon(&tb(None), None, at), None, "the first one");
        assert_eq!(too_soon(&tb(None), Some(at), after(50)), Some(Duration::from_millis(200)));
        assert_eq!(too_soon(&tb(None), Some(at), after(250)), None);
        assert_eq!(too_soon(&tb(Some("2026-01-01T00:00:00Z")), Some(at), after(50)), None);
    }

    #[tokio::test]
    async fn a_finalizer_that_is_refused_is_a_condition() {
        const ONE: &str = "/apis/tokenbudget.dev/v1alpha1/namespaces/llm/tokenbudgets/tb";
        const STATUS: &str = "/apis/tokenbudget.dev/v1alpha1/namespaces/llm/tokenbudgets/tb/status";
        const TB: &str = r#"{"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb", "namespace": "llm", "uid": "u"}, "spec": {"targetRefs": [{"name": "litellm"}]}}"#;
        let (client, asked) = test_support::recording(&[(ONE, 403, test_support::REFUSED), (STATUS, 200, TB)]);
        let ctx = Context::new(client, Settings::default(), Leadership::always(), Metrics::default());
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

    #[test]
    fn the_next_pass_comes_when_something_of_an_ended_process_is_free() {
        let id = BookId::new("gpt", Unit::Tokens);
        let mut member = MemberRecord { ended_ms: Some(100_000), ..MemberRecord::default() };
        member.leaves.0[9] = 50;
        let book = BookState { members: [("m".to_owned(), member)].into(), ..BookState::default() };
        let seen = Observation { books: [(id.clone(), book)].into(), ..Observation::default() };
        let observed = Observed { ledger: Some(Ok(seen)), ..Observed::default() };
        let after = |clock_ms| {
            let book = PlannedBook::of(&BookState { clock_ms, ..BookState::default() });
            until_next(&observed, &Planned { books: [(id.clone(), book)].into(), ..Planned::default() })
        };
        assert_eq!(after(105_000), TICK, "in 6 s");
        assert_eq!(after(110_600), Duration::from_millis(410));
        assert_eq!(after(110_990), LEAST, "with what others free just then");
        assert_eq!(after(111_000), TICK, "nothing is left");
    }
}
