//! Step 5, status: what users see, from what was applied. No IO, and no clock of its own; the writing is in `publish`. What
//! follows from several passes (the worst 60 s, since when every process enforces) is noted in the memory on the way.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::apply::Applied;
use super::arrange::Intent;
use super::memory::Memory;
use super::observe::Observed;
use super::traffic::Traffic;
use super::validate::{Member, Validated};
use super::verdicts::{self, Verdict};
use super::{seconds, signed};
use crate::api::{
    ConditionKind as Kind, Conditions, FINALIZER, LimitStatus, Mode, PodStatus, Reason, TokenBudget, TokenBudgetStatus,
};
use crate::ledger::{BookState, LimitPolicy, MemberRecord, Unit};
use crate::plan::pressure_percent;

/// Rows for pods in the status at most; the rest is in the metrics.
const MOST_PODS: usize = 100;

/// The status that follows from a pass.
#[must_use]
pub fn status(
    tb: &TokenBudget,
    observed: &Observed,
    valid: &Validated,
    intent: &Intent,
    applied: &Applied,
    traffic: &Traffic,
    memory: &mut Memory,
) -> TokenBudgetStatus {
    let books = books(observed, intent);
    let mut status = TokenBudgetStatus {
        observed_generation: tb.metadata.generation,
        limits: limit_rows(tb, intent, applied, traffic, &books, memory, observed.now),
        pods: pod_rows(valid, &books),
        outside: traffic.past_router.clone(),
        ..TokenBudgetStatus::default()
    };
    columns(&mut status, tb, valid);
    status.conditions = conditions(tb, observed, valid, applied, memory, &status);
    status
}

/// The status of a TokenBudget that may not have our finalizer: nothing is planned or attached. Its figures are no news any more;
/// the rows name the books that the ledger may have.
#[must_use]
pub fn without_finalizer(tb: &TokenBudget, why: &str, memory: &Memory, now: Timestamp) -> TokenBudgetStatus {
    let mut status = memory.told.written.clone().unwrap_or_default();
    status.observed_generation = tb.metadata.generation;
    let names: Vec<&str> = tb.spec.target_refs.iter().map(|t| t.name.as_str()).collect();
    status.target = Some(names.join(","));
    status.pods.clear();
    let refused = format!(
        "the finalizer {FINALIZER} could not be set: {why}; without it a deletion would leave the agent behind, so nothing is attached or \
         planned: exempt the operator's ServiceAccount from the policy that refuses it, or let it patch TokenBudgets"
    );
    let mut all = Conditions::from_status(&status.conditions, tb.metadata.generation);
    for kind in Kind::ALL {
        let fails = matches!(kind, Kind::Attached | Kind::Ready);
        match fails {
            true => all.set(kind, Some(false), Reason::AttachFailed, refused.as_str(), now),
            false => all.set(kind, None, Reason::Pending, "not looked at without the finalizer: see Attached", now),
        }
    }
    status.conditions = all.into_vec();
    status
}

type Books<'a> = BTreeMap<(String, Unit), &'a BookState>;

fn books<'a>(observed: &'a Observed, intent: &Intent) -> Books<'a> {
    let Some(Ok(seen)) = &observed.ledger else {
        return Books::new();
    };
    let of = |w: &crate::ledger::PlanWrite| Some(((w.book.limit.clone(), w.book.unit), seen.books.get(&w.book)?));
    intent.writes.iter().filter_map(of).collect()
}

fn limit_rows(
    tb: &TokenBudget,
    intent: &Intent,
    applied: &Applied,
    traffic: &Traffic,
    books: &Books<'_>,
    memory: &mut Memory,
    now: Timestamp,
) -> Vec<LimitStatus> {
    let Some(Ok(planned)) = &applied.ledger else {
        // Nothing is known now; what was known names the books that the ledger should have.
        return tb.status.as_ref().map(|s| s.limits.clone()).unwrap_or_default();
    };
    memory.fleet.worst.retain(|book, _| planned.books.contains_key(book));
    // Lookups, as there may be hundreds of derived limits.
    let limits: BTreeMap<&str, &LimitPolicy> = intent.policy.limits.iter().map(|l| (l.name.as_str(), l)).collect();
    let derived = |name: &str| limits.get(name).and_then(|limit| limit.derived.clone());
    let mut rows: Vec<LimitStatus> = intent
        .writes
        .iter()
        .filter_map(|write| Some((write, planned.books.get(&write.book)?)))
        .map(|(write, book)| {
            let state = books.get(&(write.book.limit.clone(), write.book.unit));
            let spent = state.iter().flat_map(|s| s.members.values()).map(MemberRecord::in_window).sum();
            let worst = memory.fleet.worst.entry(write.book.clone()).or_default();
            let living = || state.iter().flat_map(|s| s.members.values()).filter(|m| m.ended_ms.is_none());
            LimitStatus {
                name: write.book.limit.clone(),
                unit: write.book.unit.as_str().to_owned(),
                budget: signed(book.budget),
                spent: signed(spent),
                worst: signed(worst.note(seconds(now), spent)),
                denied: signed(living().map(|m| m.denied).sum::<u64>()),
                pool: book.pool,
                pressure_percent: pressure_percent(book.pool, book.budget),
                aside: signed(book.aside),
                // What is stored is what processes go by.
                safe_share: signed(if tb.spec.paused { state.map_or(write.safe, |s| s.safe) } else { write.safe }),
                members: signed(u64::try_from(living().count()).unwrap_or(u64::MAX)),
                derived: derived(&write.book.limit),
                reserved_percent: None,
                observed: None,
                outside: None,
            }
        })
        .collect();
    let mut before = None;
    for row in &mut rows {
        if before.as_ref() != Some(&row.name) {
            row.reserved_percent = traffic.reserved.get(&row.name).cloned();
            row.observed = traffic.observed.get(&row.name).cloned();
            row.outside = traffic.outside.get(&row.name).cloned();
        }
        before = Some(row.name.clone());
    }
    rows
}

fn pod_rows(valid: &Validated, books: &Books<'_>) -> Vec<PodStatus> {
    let mut workers: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
    for member in valid.members.iter().filter(|m| m.finished_ms.is_none()) {
        workers.entry(&member.report.pod).or_default().push(member);
    }
    let mut books: Vec<_> = books.iter().collect();
    books.sort_by_key(|((limit, unit), _)| (limit, unit.as_str()));
    // Only those that are shown are made, as there may be hundreds of limits for each of thousands of pods.
    let of_pod = |(pod, workers): (_, Vec<&Member>)| -> Vec<PodStatus> {
        books.iter().filter_map(|(of, state)| pod_row(pod, of, state, &workers)).take(MOST_PODS).collect()
    };
    workers.into_iter().flat_map(of_pod).take(MOST_PODS).collect()
}

/// What the workers of a pod have of a book; `None` where it has none of them.
fn pod_row(pod: &str, (limit, unit): &(String, Unit), state: &BookState, workers: &[&Member]) -> Option<PodStatus> {
    let mut found: Option<PodStatus> = None;
    for member in workers {
        let Some(record) = state.members.get(&member.id).filter(|r| r.ended_ms.is_none()) else {
            continue;
        };
        let report = &member.report;
        let offline = record.lease_is_over(state.clock_ms);
        let row = found.get_or_insert_with(|| PodStatus {
            pod: pod.to_owned(),
            limit: limit.clone(),
            unit: unit.as_str().to_owned(),
            agent: report.agent.clone(),
            state: String::new(),
            ..PodStatus::default()
        });
        row.share += signed(record.share);
        row.grant += signed(record.record);
        row.spent += signed(record.in_window());
        row.denied += signed(record.denied);
        row.workers += 1;
        // The worker that is worst off speaks for the pod.
        let state = if offline { "Offline" } else { report.state.as_str() };
        if worse(state) > worse(&row.state) {
            row.state = state.to_owned();
        }
    }
    found
}

/// How bad it is that a worker is in this state; none at all is the least.
fn worse(state: &str) -> usize {
    ["", "Enforcing", "Observing", "Starting", "Degraded", "Offline"]
        .iter()
        .position(|s| *s == state)
        .unwrap_or(usize::MAX)
}

fn columns(status: &mut TokenBudgetStatus, tb: &TokenBudget, valid: &Validated) {
    let names: Vec<&str> = tb.spec.target_refs.iter().map(|t| t.name.as_str()).collect();
    status.target = Some(names.join(","));
    let (attached, without) = (valid.living_pods(), valid.pods_without_agent());
    status.replicas = Some(format!("{attached}/{}", attached + without));
    let sum = |unit: Unit, of: fn(&LimitStatus) -> i64| {
        let mut rows = status.limits.iter().filter(|r| r.unit == unit.as_str()).peekable();
        rows.peek().is_some().then(|| rows.map(of).sum::<i64>())
    };
    let tokens_first =
        |of: fn(&LimitStatus) -> i64| sum(Unit::Tokens, of).or_else(|| sum(Unit::Requests, of)).map(|v| v.to_string());
    let (used, denied) = (tokens_first(|r| r.spent), tokens_first(|r| r.denied));
    let (tokens, requests) = (sum(Unit::Tokens, |r| r.budget), sum(Unit::Requests, |r| r.budget));
    let fullest = status
        .limits
        .iter()
        .filter(|r| r.budget > 0)
        .map(|r| (r.spent.saturating_mul(100) + r.budget - 1) / r.budget)
        .max();
    let least = |unit: Unit| status.limits.iter().filter(|r| r.unit == unit.as_str()).map(|r| r.safe_share).min();
    let safe = least(Unit::Tokens).or_else(|| least(Unit::Requests));
    status.used = used;
    status.denied = denied;
    status.tokens_per_minute = tokens.map(|v| v.to_string());
    status.requests_per_minute = requests.map(|v| v.to_string());
    status.utilization = fullest.map(|percent| format!("{percent}%"));
    status.safe_share = safe.map(|v| v.to_string());
}

fn conditions(
    tb: &TokenBudget,
    observed: &Observed,
    valid: &Validated,
    applied: &Applied,
    memory: &mut Memory,
    status: &TokenBudgetStatus,
) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    let old = memory.told.written.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
    let mut all = Conditions::from_status(&old, tb.metadata.generation);
    let found = [
        (Kind::Accepted, verdicts::accepted(valid)),
        (Kind::Attached, verdicts::attached(tb, valid, applied)),
        (Kind::LedgerReachable, verdicts::ledger(tb, observed, applied)),
        (Kind::Enforcing, verdicts::enforcing(tb, observed, valid, applied, memory)),
        (Kind::WithinBudget, verdicts::within(status, applied)),
    ];
    let observing = |v: &Verdict| v.reason == Reason::Observing;
    let first_open = found.iter().find(|(_, v)| v.holds != Some(true) && !observing(v)).map(|(_, v)| v.clone());
    for (kind, verdict) in found {
        all.set(kind, verdict.holds, verdict.reason, verdict.message, observed.now);
    }
    let ready = match first_open {
        _ if tb.spec.paused => Verdict::no(
            Reason::Paused,
            "spec.paused is true: the operator changes nothing; the processes go on with the shares that they have",
        ),
        None if tb.spec.mode == Mode::Observe => {
            Verdict::yes(Reason::Observing, "the fleet is accounted; mode Observe refuses nothing")
        }
        None => Verdict::yes(Reason::Ready, "the fleet stays within its budget"),
        Some(open) => Verdict { holds: Some(false), ..open },
    };
    all.set(Kind::Ready, ready.holds, ready.reason, ready.message, observed.now);
    all.into_vec()
}

#[cfg(test)]
mod tests;
