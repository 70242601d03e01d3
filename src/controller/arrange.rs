//! Step 3, plan: the policy and the books' shares that follow from what was validated. Pure.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::limits::{EffectiveLimit, Limits};
use super::observe::Observed;
use super::validate::{Target, Validated};
use crate::api;
use crate::api::TokenBudget;
use crate::ledger::{
    self, BookId, BookState, LimitPolicy, MemberPlan, ModelSelector, OnLedgerLoss, PlanWrite, Policy, Reserve, Unit,
    UnitPolicy,
};
use crate::plan::{BookDemand, FleetSize, MemberDemand, plan_book};

/// How long a grant lasts without an answer of the ledger.
pub const LEASE: SignedDuration = SignedDuration::from_secs(30);

/// [`LEASE`] in milliseconds.
const LEASE_MS: u64 = 30_000;

/// How often a process beats, in milliseconds.
const BEAT_MS: u64 = 500;

/// What the ledger is to hold.
pub struct Intent {
    /// What the agents are to do.
    pub policy: Policy,
    /// What each book is to say.
    pub writes: Vec<PlanWrite>,
    /// Books of limits that are no more.
    pub forgotten: Vec<BookId>,
}

/// Plans every book. `known` are the books that the ledger may hold.
#[must_use]
pub fn arrange(tb: &TokenBudget, observed: &Observed, valid: &Validated, known: &BTreeSet<BookId>) -> Intent {
    let limits = match &valid.limits {
        Limits::Known(limits) => limits.as_slice(),
        Limits::Waiting | Limits::NoneDeclared => &[],
    };
    let sizes: Vec<_> = valid.targets.iter().map(|t| t.size).collect();
    let fleet = FleetSize::of(&sizes);
    let writes: Vec<PlanWrite> = limits
        .iter()
        .flat_map(|limit| limit.books().map(move |(unit, budget)| (BookId::new(&limit.name, unit), budget)))
        .map(|(book, budget)| write(tb, observed, valid, fleet, book, budget))
        .collect();
    let wanted: BTreeSet<&BookId> = writes.iter().map(|w| &w.book).collect();
    let forgotten = known.iter().filter(|book| !wanted.contains(book)).cloned().collect();
    Intent { policy: policy(tb, limits, &writes), writes, forgotten }
}

fn write(
    tb: &TokenBudget,
    observed: &Observed,
    valid: &Validated,
    fleet: FleetSize,
    book: BookId,
    budget: u64,
) -> PlanWrite {
    let state = match &observed.ledger {
        Some(Ok(observation)) => observation.books.get(&book),
        _ => None,
    };
    let ended = |id: &str| valid.members.iter().any(|m| m.id == id && m.ended);
    let members: Vec<MemberDemand> = state
        .into_iter()
        .flat_map(|state| state.members.iter().map(move |(id, record)| (state, id, record)))
        .map(|(state, id, record)| MemberDemand {
            member: id.clone(),
            spent: record.spent,
            denied: record.denied,
            record: record.record,
            lost: record.ended_ms.is_some() || record.until_ms < state.clock_ms || ended(id),
        })
        .collect();
    let demand = BookDemand {
        budget,
        most_processes: fleet.most_processes,
        unrecorded: valid.targets.iter().map(|t| unrecorded(t, state, valid, observed.now)).sum(),
        members,
    };
    let plan = plan_book(&demand);
    let share_of = |id: &str| plan.shares.iter().find(|(member, _)| member == id).map_or(0, |(_, share)| *share);
    let reported = valid.members.iter().map(|m| m.id.as_str());
    let members = demand
        .members
        .iter()
        .map(|m| m.member.as_str())
        .chain(reported)
        .map(|id| (id.to_owned(), MemberPlan { share: share_of(id), gone: ended(id) }))
        .collect();
    let before = tb.status.as_ref().map_or(&[][..], |s| s.limits.as_slice());
    // The status names every book that was ever made: one that it names and the ledger lacks was lost.
    let first = !before.iter().any(|row| row.name == book.limit && row.unit == book.unit.as_str());
    PlanWrite { book, first, budget, aside: plan.aside, safe: plan.safe, lease_ms: LEASE_MS, members }
}

/// Processes of live pods that have no record in this book, and are old enough to come to a safe share without the ledger.
fn unrecorded(target: &Target, state: Option<&BookState>, valid: &Validated, now: Timestamp) -> u32 {
    let running_since = |pod: &k8s_openapi::api::core::v1::Pod| {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let running = statuses.filter(|c| c.name == target.container).find_map(|c| c.state.as_ref()?.running.clone());
        running.and_then(|r| r.started_at).map(|t| t.0)
    };
    target
        .pods
        .iter()
        .filter(|pod| running_since(pod).is_some_and(|since| now.duration_since(since) > LEASE))
        .map(|pod| {
            let uid = pod.uid().unwrap_or_default();
            let recorded = valid.members.iter().filter(|m| {
                m.report.pod_uid == uid
                    && !m.ended
                    && state.is_some_and(|s| s.members.get(&m.id).is_some_and(|r| r.ended_ms.is_none()))
            });
            target.size.workers.saturating_sub(u32::try_from(recorded.count()).unwrap_or(u32::MAX))
        })
        .sum()
}

fn policy(tb: &TokenBudget, limits: &[EffectiveLimit], writes: &[PlanWrite]) -> Policy {
    let book = |limit: &EffectiveLimit, unit: Unit| {
        writes
            .iter()
            .find(|w| w.book.limit == limit.name && w.book.unit == unit)
            .map(|w| UnitPolicy { budget: w.budget, safe: w.safe })
    };
    let limits = limits
        .iter()
        .map(|limit| LimitPolicy {
            name: limit.name.clone(),
            models: limit.models.iter().map(selector).collect(),
            derived: limit.derived.clone(),
            tokens: book(limit, Unit::Tokens),
            requests: book(limit, Unit::Requests),
        })
        .collect();
    Policy {
        version: String::new(),
        token_budget: format!("{}/{}", tb.namespace().unwrap_or_default(), tb.name_any()),
        uid: tb.uid().unwrap_or_default(),
        mode: match tb.spec.mode {
            api::Mode::Enforce => ledger::Mode::Enforce,
            api::Mode::Observe => ledger::Mode::Observe,
        },
        reserve: match tb.spec.reserve {
            api::ReservePolicy::MaxTokens => Reserve::MaxTokens,
            api::ReservePolicy::Estimate => Reserve::Estimate,
        },
        max_wait_ms: tb.spec.max_wait_ms(),
        on_ledger_loss: match tb.spec.on_ledger_loss {
            api::LedgerLossPolicy::SafeShare => OnLedgerLoss::SafeShare,
            api::LedgerLossPolicy::Open => OnLedgerLoss::Open,
        },
        lease_ms: LEASE_MS,
        beat_ms: BEAT_MS,
        deriving: tb.spec.derives_limits(),
        limits,
    }
    .stamped()
}

fn selector(selector: &api::DeploymentSelector) -> ModelSelector {
    ModelSelector {
        model_name: selector.model_name.clone(),
        id: selector.id.clone(),
        litellm_model: selector.litellm_model.clone(),
        api_base: selector.api_base.clone(),
    }
}
