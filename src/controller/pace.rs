//! When the next pass of a TokenBudget comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::controller::Action;
use tracing::{debug, error, warn};

use super::Error;
use super::context::Context;
use super::observe::Observed;
use crate::api::TokenBudget;
use crate::causes::Causes;
use crate::ledger::{BookId, BookState, Planned};

/// A TokenBudget that works is planned this often.
pub const TICK: Duration = Duration::from_secs(1);

/// The least time between two passes of a TokenBudget. Each of many processes that ended together frees something in each second of
/// a window, and each change of a pod is a trigger: both are looked at in lots, of a size that costs a window of 60 s nothing.
const LEAST: Duration = Duration::from_millis(250);

/// Time between the moment at which what an ended process spent is free to lend, and the pass that lends it.
const SOON: Duration = Duration::from_millis(10);

/// A TokenBudget that the user has to mend is looked at this often; a change of it or of its Deployments comes at once.
pub const BROKEN: Duration = Duration::from_secs(15);

/// A replica that does not lead looks this often whether it does.
pub const STANDBY: Duration = Duration::from_secs(2);

/// While the caches fill, a pass is put off by so much: it would take for missing what it has not heard of yet.
pub const WARMING: Duration = Duration::from_millis(200);

/// After so many passes in a row in which the ledger did not answer it is asked each [`AWAY_TICK`] only.
pub const AWAY: u32 = 15;

/// Time between two passes while the ledger has not answered for [`AWAY`] passes, or while the API server fails what comes
/// after the plan.
pub const AWAY_TICK: Duration = Duration::from_secs(5);

/// How long a pass is put off, as the one before ended just now. The end of a TokenBudget waits for nothing.
pub fn too_soon(tb: &TokenBudget, ended_at: Option<Instant>, now: Instant) -> Option<Duration> {
    if tb.metadata.deletion_timestamp.is_some() {
        return None;
    }
    LEAST.checked_sub(now.duration_since(ended_at?)).filter(|left| !left.is_zero())
}

/// Until the next pass: sooner than usual when something of an ended process is free before.
pub fn until_next(observed: &Observed, planned: &Planned) -> Duration {
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
pub fn on_error(tb: Arc<TokenBudget>, error: &Error, ctx: Arc<Context>) -> Action {
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
    use crate::controller::test_support::{answering, context};
    use crate::ledger::{MemberRecord, Observation, PlannedBook, Unit};

    #[tokio::test]
    async fn a_pass_that_has_planned_is_soon_followed_whatever_the_api_server_does() {
        let ctx = Arc::new(context(answering(&[])));
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
