//! What each condition of a TokenBudget says. The messages are for the user: what is wrong, and what to do.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::apply::Applied;
use super::limits::Limits;
use super::memory::{Memory, WINDOW};
use super::observe::Observed;
use super::validate::{Member, Problem, Validated};
use crate::api::{AttachPolicy, LedgerLossPolicy, Mode, Reason, TokenBudget, TokenBudgetStatus};
use crate::causes::Causes;
use crate::ledger::MemberState;

/// One condition's status (None: Unknown), reason and message.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// None: it is not known.
    pub holds: Option<bool>,
    /// Stable.
    pub reason: Reason,
    /// What to do.
    pub message: String,
}

impl Verdict {
    /// It holds.
    pub fn yes(reason: Reason, message: impl Into<String>) -> Self {
        Self { holds: Some(true), reason, message: message.into() }
    }

    /// It does not.
    pub fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self { holds: Some(false), reason, message: message.into() }
    }

    fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self { holds: None, reason, message: message.into() }
    }

    fn without_targets() -> Self {
        Self::unknown(Reason::Pending, "there is no Deployment to look at: see Accepted")
    }

    fn without_pods() -> Self {
        Self::no(
            Reason::NoPods,
            "the Deployments of spec.targetRefs have no pods: scale one up, and its pods come with the agent",
        )
    }

    fn of(problem: &Problem) -> Self {
        Self::no(problem.reason, problem.message.clone())
    }
}

/// Whether the spec can be acted on.
pub fn accepted(valid: &Validated) -> Verdict {
    match (valid.problems.first(), &valid.limits) {
        (Some(problem), _) => Verdict::of(problem),
        (None, Limits::Waiting) => Verdict::unknown(
            Reason::WaitingForDeclaredLimits,
            "spec.limits is empty: waiting for the LiteLLM processes to say which tpm and rpm they declare",
        ),
        (None, _) => Verdict::yes(Reason::Accepted, "targets, limits and Redis are known"),
    }
}

/// Whether every live pod has the agent.
pub fn attached(tb: &TokenBudget, valid: &Validated, applied: &Applied) -> Verdict {
    if let Some((_, problem)) = applied.unattached.first() {
        return Verdict::of(problem);
    }
    let (with, without) = (valid.living_pods(), valid.pods_without_agent());
    match (with, without) {
        _ if valid.targets.is_empty() => Verdict::without_targets(),
        (0, 0) => Verdict::without_pods(),
        (_, 0) => Verdict::yes(Reason::AllPodsAttached, "every live pod was made with the agent"),
        _ => Verdict::no(
            Reason::PartiallyAttached,
            format!(
                "{without} live pods run without the agent; {}",
                match tb.spec.attach {
                    AttachPolicy::Automatic => "they get it when the rollout replaces them",
                    AttachPolicy::Manual => "they get it when you add it to the pod template",
                    AttachPolicy::Admission => "new pods get it: run kubectl rollout restart",
                }
            ),
        ),
    }
}

/// Whether the ledger answers.
pub fn ledger(tb: &TokenBudget, observed: &Observed, applied: &Applied) -> Verdict {
    if let Some(error) = &observed.unreached {
        return Verdict::no(
            Reason::LedgerUnreachable,
            format!(
                "{}; until the Redis that is named now answers, the fleet goes on by the one before it, but a pod that starts with the \
                 new URL has no ledger: mend that Redis or its Secret, or name the one before",
                Causes(error)
            ),
        );
    }
    let error = match (&observed.ledger, &applied.ledger) {
        (Some(Err(error)), _) | (_, Some(Err(error))) => error,
        (None, _) | (_, None) => {
            return Verdict::unknown(Reason::Pending, "no ledger is known yet: see Accepted");
        }
        (_, Some(Ok(planned))) => {
            let learning = planned.books.iter().filter(|(_, b)| b.learning).count();
            return if learning == 0 {
                Verdict::yes(Reason::LedgerAnswers, "the ledger answers")
            } else {
                Verdict::no(
                    Reason::Learning,
                    format!(
                        "the ledger is new, lost data or heard nobody for a while: {learning} books lend only what comes back, for \
                         up to 95 s; if this comes again, look why Redis loses its data or its clients (docs/operations.md)"
                    ),
                )
            };
        }
    };
    let meanwhile = match tb.spec.on_ledger_loss {
        LedgerLossPolicy::SafeShare => "at most their safe share",
        LedgerLossPolicy::Open => "by LiteLLM's own limits (onLedgerLoss: Open)",
    };
    Verdict::no(
        Reason::LedgerUnreachable,
        format!(
            "{}; mend Redis, or the way to it from the operator (URL, user, NetworkPolicy); processes that do not reach it either \
             spend what they were lent, and after 30 s {meanwhile}",
            Causes(error)
        ),
    )
}

/// Whether every live process has applied the policy for a window.
pub fn enforcing(
    tb: &TokenBudget,
    observed: &Observed,
    valid: &Validated,
    applied: &Applied,
    memory: &mut Memory,
) -> Verdict {
    let wanted = match tb.spec.mode {
        Mode::Enforce => MemberState::Enforcing,
        Mode::Observe => MemberState::Observing,
    };
    // Lookups, as there may be thousands of pods and members.
    let present: BTreeSet<&str> =
        valid.targets.iter().flat_map(|t| &t.pods).filter_map(|p| p.metadata.uid.as_deref()).collect();
    let degraded = valid.members.iter().find(|m| {
        m.finished_ms.is_none() && m.report.state == MemberState::Degraded && present.contains(&*m.report.pod_uid)
    });
    let open = (tb.spec.on_ledger_loss == LedgerLossPolicy::Open).then(|| offline(observed, valid, &present)).flatten();
    let mut in_state: BTreeMap<&str, u32> = BTreeMap::new();
    if let Some(Ok(seen)) = &observed.ledger {
        memory.fleet.policies.note(seen.policy_version.as_deref(), observed.now);
    }
    let policies = &memory.fleet.policies;
    let applies =
        |m: &&Member| m.finished_ms.is_none() && m.report.state == wanted && policies.is_recent(&m.report.policy);
    for member in valid.members.iter().filter(applies) {
        *in_state.entry(&member.report.pod_uid).or_default() += 1;
    }
    let serving =
        || valid.targets.iter().flat_map(|t| t.pods.iter().map(move |p| (t, p))).filter(|(_, p)| p.is_ready());
    let waiting = serving().filter(|(target, pod)| {
        let workers = pod.metadata.uid.as_deref().and_then(|uid| in_state.get(uid)).copied().unwrap_or(0);
        workers < observed.workers(pod, target.size.workers)
    });
    let (waiting, pods) = (waiting.count(), serving().count());
    let without = valid.pods_without_agent();
    let known = matches!(&valid.limits, Limits::Known(_)) && matches!(&applied.ledger, Some(Ok(_)));

    let verdict = if let Some(member) = degraded {
        let what = member.report.problems.join("; ");
        Verdict::no(Reason::AgentDegraded, format!("pod {}: {what}", member.report.pod))
    } else if let Some(pod) = open {
        Verdict::no(
            Reason::WaitingForProcesses,
            format!(
                "pod {pod} does not reach the ledger and goes by LiteLLM's own limits (onLedgerLoss: Open): its log says why"
            ),
        )
    } else if without > 0 {
        Verdict::no(Reason::PartiallyAttached, format!("{without} live pods run without the agent: see Attached"))
    } else if valid.targets.is_empty() {
        Verdict::without_targets()
    } else if pods == 0 {
        match valid.living_pods() {
            0 => Verdict::without_pods(),
            n => Verdict::no(
                Reason::WaitingForProcesses,
                format!("none of {n} pods is ready: kubectl describe pods says why"),
            ),
        }
    } else if !known || waiting > 0 {
        Verdict::no(
            Reason::WaitingForProcesses,
            format!(
                "{waiting} of {pods} ready pods have not applied the policy yet, which takes seconds; if it stays so, their logs say \
                 why (lines of tokenbudget)"
            ),
        )
    } else {
        // A clock that was set back must not make it wait for longer.
        let since = memory.fleet.whole_since.map_or(observed.now, |since| since.min(observed.now));
        memory.fleet.whole_since = Some(since);
        if let Some(limit) = matches_nothing(observed, valid, memory) {
            return Verdict::no(
                Reason::LimitMatchesNothing,
                format!(
                    "limit {limit} holds nothing: its models select no deployment of any process; modelName, id, litellmModel and \
                     apiBase are compared exactly with model_list in LiteLLM's configuration"
                ),
            );
        }
        return match (passed(since, observed.now), tb.spec.mode) {
            (false, _) => Verdict::no(
                Reason::WindowNotPassed,
                "every process has applied the policy; what was spent before leaves the 60 s window: wait a minute",
            ),
            (true, Mode::Enforce) => Verdict::yes(Reason::Enforcing, "every live process enforces its share"),
            (true, Mode::Observe) => Verdict::no(
                Reason::Observing,
                "mode Observe: nothing is refused; set mode: Enforce when the figures are what you expect",
            ),
        };
    };
    // A ledger that is away for a while does not unmake the promise: processes go by their leases and safe shares.
    if known || without > 0 {
        memory.fleet.whole_since = None;
    }
    verdict
}

/// The first live process whose lease is over, by its pod.
fn offline<'a>(observed: &Observed, valid: &'a Validated, present: &BTreeSet<&str>) -> Option<&'a str> {
    let Some(Ok(seen)) = &observed.ledger else { return None };
    let is_over = |id: &str| {
        seen.books.values().any(|book| book.members.get(id).is_some_and(|record| record.lease_is_over(book.clock_ms)))
    };
    let mut live = valid.members.iter().filter(|m| m.finished_ms.is_none() && present.contains(&*m.report.pod_uid));
    live.find(|member| is_over(&member.id)).map(|member| member.report.pod.as_str())
}

/// The first limit of the spec that no process has had a deployment for, for as long as the 60 s window: figures are reported
/// some seconds after a policy was applied. None while a Deployment is without processes, as its deployments are not known.
fn matches_nothing(observed: &Observed, valid: &Validated, memory: &mut Memory) -> Option<String> {
    let Limits::Known(limits) = &valid.limits else { return None };
    let reports = || valid.members.iter().filter(|m| m.finished_ms.is_none()).map(|m| &m.report);
    let is_known = reports().all(|report| report.limits.is_some())
        && valid.targets.iter().all(|t| t.pods.iter().any(|pod| pod.is_ready()));
    let had: BTreeSet<&str> = reports().flat_map(|r| r.limits.iter().flatten()).map(|l| l.name.as_str()).collect();
    let explicit = limits.iter().filter(|limit| limit.derived.is_none()).map(|limit| limit.name.as_str());
    let idle: BTreeSet<&str> = explicit.filter(|name| is_known && !had.contains(name)).collect();
    let since = &mut memory.fleet.unmatched_since;
    since.retain(|name, _| idle.contains(&**name));
    for name in idle {
        since.entry(name.to_owned()).or_insert(observed.now);
    }
    since.iter().find(|(_, since)| passed(**since, observed.now)).map(|(name, _)| name.clone())
}

/// Whether what is spent is within the budget, and nobody else spends the same quota.
pub fn within(status: &TokenBudgetStatus, applied: &Applied) -> Verdict {
    if !matches!(&applied.ledger, Some(Ok(_))) || status.limits.is_empty() {
        return Verdict::unknown(Reason::Pending, "no figures yet");
    }
    if let Some(row) = status.limits.iter().find(|row| row.spent > row.budget) {
        return Verdict::no(
            Reason::OverBudget,
            format!(
                "limit {} spent {} of {} {} in the last 60 s: after a cut it is over in a minute; else answers are longer than what \
                 was reserved (name max_tokens in the calls or in litellm_params, reserve: MaxTokens, or headroomPercent)",
                row.name, row.spent, row.budget, row.unit
            ),
        );
    }
    match status.limits.iter().find_map(|row| Some((row, row.outside.as_ref()?))) {
        Some((row, outside)) => Verdict::no(
            Reason::TrafficOutside,
            format!(
                "limit {}: others spend about {} tokens a minute of the same quota, by LiteLLM's own counters; attach the \
                 Deployment that they come from to this TokenBudget (spec.targetRefs), or lower the budget by as much",
                row.name,
                rounded(outside.tokens)
            ),
        ),
        None => Verdict::yes(Reason::WithinBudget, "every limit is within its budget"),
    }
}

/// To two digits: a text that names it does not change with every minute.
fn rounded(amount: i64) -> i64 {
    let mut unit = 1;
    while amount / unit >= 100 {
        unit *= 10;
    }
    amount.saturating_add(unit / 2) / unit * unit
}

fn passed(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) >= WINDOW
}

#[cfg(test)]
mod tests;
