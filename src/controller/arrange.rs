//! Step 3, plan: the policy and the books' shares that follow from what was validated. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use kube::ResourceExt;

use super::booted::{BookBooted, BootedBooks};
use super::fleet::{Fleet, Unrecorded};
use super::limits::{EffectiveLimit, Limits};
use super::memory::KnownBooks;
use super::observe::Observed;
use super::validate::Validated;
use crate::api;
use crate::api::TokenBudget;
use crate::ledger::{
    self, BookId, LimitPolicy, MemberPlan, ModelSelector, OnLedgerLoss, PlanWrite, Policy, Reserve, Unit, UnitPolicy,
};
use crate::plan::{BookDemand, Departed, plan_book, safe_share};

/// How long a grant lasts without an answer of the ledger.
pub const LEASE: SignedDuration = SignedDuration::from_secs(30);

/// [`LEASE`] in milliseconds.
pub(super) const LEASE_MS: u64 = 30_000;

/// What the ledger is to hold.
pub struct Intent {
    /// What the agents are to do.
    pub policy: Policy,
    /// What each book is to say.
    pub writes: Vec<PlanWrite>,
    /// Books of limits that are no more.
    pub forgotten: Vec<BookId>,
    /// The most processes that may run at once.
    pub processes: u32,
    /// Processes that ended without a record.
    pub departed: Departed,
    /// By which safe shares processes may go that have none.
    pub booted: BTreeMap<BookId, BookBooted>,
}

/// Plans every book, by which of them the ledger may hold.
#[must_use]
pub fn arrange(tb: &TokenBudget, observed: &Observed, valid: &Validated, known: &KnownBooks) -> Intent {
    let limits = match &valid.limits {
        Limits::Known(limits) => limits.as_slice(),
        Limits::Waiting | Limits::NoneDeclared => &[],
    };
    let (mut fleet, before) = (Fleet::of(valid, observed), Before::of(tb, limits));
    let departed = fleet.departed(observed, limits);
    fleet.departed = departed.processes();
    let mut booted = BootedBooks::of(&known.booted, limits, &fleet, observed);
    let writes: Vec<PlanWrite> = limits
        .iter()
        .flat_map(|limit| limit.books().map(move |(unit, budget)| (limit, BookId::new(&limit.name, unit), budget)))
        .map(|(limit, book, budget)| {
            // Also one that no status could name yet.
            let first = before.is_first(limit, book.unit) && !known.may_have_spent(&book);
            write(observed, &fleet, &mut booted, limit, book, budget, first)
        })
        .collect();
    let wanted: BTreeSet<&BookId> = writes.iter().map(|w| &w.book).collect();
    let forgotten = known.held.iter().filter(|book| !wanted.contains(book)).cloned().collect();
    let beat_ms = fleet.size.beat_ms(observed.beside).max(observed.least_beat_ms);
    let policy = policy(tb, limits, &writes, beat_ms);
    Intent { policy, writes, forgotten, processes: fleet.size.most_processes, departed, booted: booted.next() }
}

/// The books that the status names: every one that was made. Lookups, as there may be hundreds of derived limits.
struct Before<'a> {
    /// By name and unit. One that the ledger lacks was lost.
    named: BTreeSet<(&'a str, &'a str)>,
    /// Those of limits that are no more.
    gone: Vec<&'a api::LimitStatus>,
}

impl<'a> Before<'a> {
    fn of(tb: &'a TokenBudget, limits: &[EffectiveLimit]) -> Self {
        let rows = tb.status.as_ref().map_or(&[][..], |s| s.limits.as_slice());
        let stay: BTreeSet<(&str, &str)> =
            limits.iter().flat_map(|l| l.books().map(|(unit, _)| (l.name.as_str(), unit.as_str()))).collect();
        let key = |row: &'a api::LimitStatus| (row.name.as_str(), row.unit.as_str());
        Self {
            named: rows.iter().map(key).collect(),
            gone: rows.iter().filter(|row| !stay.contains(&key(row))).collect(),
        }
    }

    /// Whether a missing book may lend at once, as nothing that was spent before counts for it.
    fn is_first(&self, limit: &EffectiveLimit, unit: Unit) -> bool {
        // One that is gone may have been about the same deployments; of derived limits each is about its own.
        let counts =
            |row: &api::LimitStatus| row.unit == unit.as_str() && (row.derived.is_none() || limit.derived.is_none());
        !self.named.contains(&(limit.name.as_str(), unit.as_str())) && !self.gone.iter().any(|row| counts(row))
    }
}

fn write(
    observed: &Observed,
    fleet: &Fleet<'_>,
    booted: &mut BootedBooks<'_>,
    limit: &EffectiveLimit,
    book: BookId,
    budget: u64,
    first: bool,
) -> PlanWrite {
    let state = match &observed.ledger {
        Some(Ok(observation)) => observation.books.get(&book),
        _ => None,
    };
    let unrecorded: Vec<Unrecorded> = fleet.unrecorded(state).collect();
    let safe = safe_share(budget, fleet.size.most_processes);
    let demand = BookDemand {
        budget,
        most_processes: fleet.size.most_processes,
        unrecorded: unrecorded.iter().map(|of| of.processes).fold(0, u32::saturating_add),
        owed: booted.owed(limit, &book, safe, &unrecorded),
        members: state.map(|state| state.demands(|id| fleet.has_ended(id))).unwrap_or_default(),
    };
    let plan = plan_book(&demand);
    let member_plan = |id: &str, share| (id.to_owned(), MemberPlan { share, finished_ms: fleet.finished_ms(id) });
    // One that has reported and has no record has no share, but goes from the reports when it is gone.
    let unrecorded = fleet.reported.keys().filter(|id| state.is_none_or(|s| !s.members.contains_key(**id)));
    let recorded = demand.members.iter().zip(plan.shares).map(|(m, share)| member_plan(m.member, share));
    let members = recorded.chain(unrecorded.map(|id| member_plan(id, 0))).collect();
    PlanWrite {
        book,
        first,
        budget,
        aside: plan.aside,
        level: plan.level,
        safe: plan.safe,
        lease_ms: LEASE_MS,
        members,
    }
}

fn policy(tb: &TokenBudget, limits: &[EffectiveLimit], writes: &[PlanWrite], beat_ms: u64) -> Policy {
    // Lookups, as there may be hundreds of derived limits.
    let books: BTreeMap<_, _> = writes.iter().map(|w| ((w.book.limit.as_str(), w.book.unit), w)).collect();
    let book = |limit: &EffectiveLimit, unit: Unit| {
        books.get(&(limit.name.as_str(), unit)).map(|w| UnitPolicy { budget: w.budget, safe: w.safe })
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
        beat_ms,
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

#[cfg(test)]
mod tests;
