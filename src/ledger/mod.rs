//! The ledger: who may spend how much, and until when. `docs/protocol.md` is the contract.
//!
//! Amounts are whole tokens or requests from 0 to 10^12; names that end in `ms` are milliseconds.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;

mod book;
mod error;
mod keys;
pub mod memory;
mod policy;
mod redis;
mod report;
pub mod rules;
mod scripts;
mod sums;
mod usage;

pub use book::{BookState, MemberRecord};
pub use error::{LedgerError, RedisFault};
pub use keys::{BookId, Keys, Unit};
pub use policy::{LimitPolicy, Mode, ModelSelector, OnLedgerLoss, Policy, PolicyFile, Reserve, UnitPolicy};
pub use redis::{RedisLedger, Timeouts};
pub use report::{Declared, MemberState, Report, Siblings};
pub use scripts::call_script;
pub use sums::{calls_by, outside_of_router, reserved_by, seen_by, waited_by};
pub use usage::{Calls, LimitUsage, MOST_DEPLOYMENTS, MOST_LIMITS, Minute, OutsideKind, OutsideUsage, Reserved};

pub use crate::plan::HOLD_MS;

/// An operator's right to write, good until the next claim. Only for equality: it is not a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the ledger holds for one TokenBudget.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Version of the stored policy; `None` on a new or flushed ledger.
    pub policy_version: Option<String>,
    /// The members' reports.
    pub reports: BTreeMap<String, Report>,
    /// Members whose report cannot be read (an agent that is too old, too new or broken).
    pub unreadable: Vec<String>,
    /// The books that were asked for and that exist.
    pub books: BTreeMap<BookId, BookState>,
}

impl Observation {
    /// Whether a member has not called for as long as its lease, in each book that has it; not one that no book has.
    #[must_use]
    pub fn is_silent(&self, id: &str) -> bool {
        let mut records = self.books.values().filter_map(|book| Some((book, book.members.get(id)?))).peekable();
        records.peek().is_some() && records.all(|(book, record)| record.lease_is_over(book.clock_ms))
    }
}

/// What the operator knows of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberPlan {
    /// Its fair part of the budget, in the book's unit.
    pub share: u64,
    /// When its container ended, by the wall clock of its node, unix ms: the kubelet's word, or the node's for a pod that
    /// vanished.
    pub finished_ms: Option<u64>,
}

/// The operator's word on one book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanWrite {
    /// Which book.
    pub book: BookId,
    /// What the whole fleet may spend in any 60 s.
    pub budget: u64,
    /// Lent to nobody.
    pub aside: u64,
    /// The max-min level: up to it everybody is entitled to draw, above it only to what nobody else needs.
    pub level: u64,
    /// The safe share.
    pub safe: u64,
    /// The longest lease that any member may still go by, ms. It has to be raised here before it is published, and
    /// lowered here only when every member follows the shorter one.
    pub lease_ms: u64,
    /// This TokenBudget had no book before that may have been about the same deployments: a missing book may lend at once.
    pub first: bool,
    /// The known members: those with a report, a record, or both. Others are left alone.
    pub members: BTreeMap<String, MemberPlan>,
}

/// A book after a plan. Amounts in the book's unit, times in ms of ledger time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedBook {
    /// Ledger time.
    pub clock_ms: u64,
    /// What the whole fleet may spend in any 60 s.
    pub budget: u64,
    /// Sum of all members' records.
    pub lent: u64,
    /// Lent to nobody.
    pub aside: u64,
    /// `budget - lent - aside`.
    pub pool: i64,
    /// Nothing is lent yet.
    pub learning: bool,
    /// The book was missing.
    pub created: bool,
}

impl PlannedBook {
    /// A book that was read, as the last plan left it.
    #[must_use]
    pub fn of(book: &BookState) -> Self {
        Self {
            clock_ms: book.clock_ms,
            budget: book.budget,
            lent: book.lent,
            aside: book.aside,
            pool: book.pool(),
            learning: book.learning(),
            created: false,
        }
    }
}

/// The outcome of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// Every book that was written.
    pub books: BTreeMap<BookId, PlannedBook>,
    /// Members that had ended, hold no record any more, and were forgotten.
    pub dropped: Vec<String>,
}

/// One call of a member: a beat, a draw or (with `leave`) its last.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    /// `<pod uid>.<pid>.<nonce>`.
    pub member: &'a str,
    /// Grows with every call of the member.
    pub seq: u64,
    /// The process ends: nothing is lent.
    pub leave: bool,
    /// Version of the policy that the member has; may be empty.
    pub version: &'a str,
    /// Its report, when it has to be stored.
    pub report: Option<&'a Report>,
    /// One entry per book.
    pub books: &'a [BookCall],
}

/// Steps of [`Ask::leaves`]: together a window.
pub const LEAVE_STEPS: usize = 60;

/// Length of one step, ms.
pub const LEAVE_STEP_MS: u64 = 1_000;

/// What leaves a member's window in each [`LEAVE_STEP_MS`], in the book's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves(pub [u64; LEAVE_STEPS]);

impl Default for Leaves {
    fn default() -> Self {
        Self([0; LEAVE_STEPS])
    }
}

/// What a member says of one book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookCall {
    /// Which book.
    pub book: BookId,
    /// The figures.
    pub ask: Ask,
}

/// A member's figures for one book, in the book's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// What is left of the old grant.
    pub keep: u64,
    /// What the grant should be.
    pub want: u64,
    /// A smaller grant is of no use: nothing is lent then.
    pub least: u64,
    /// Charged in the last 60 s.
    pub spent: u64,
    /// Refused in the last 60 s.
    pub denied: u64,
    /// What the member admits up to once its lease is over.
    pub off: u64,
    /// When `leaves` was made, by the wall clock of the member's node, unix ms.
    pub as_of_ms: u64,
    /// What of `spent` leaves the window in each [`LEAVE_STEP_MS`] from `as_of_ms` on, and can neither be sent again nor cost
    /// less any more: of a process that ends, so much of its record is free by then. The rest stays as long as a whole window
    /// may.
    pub leaves: Leaves,
}

/// The ledger's answer to a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Version of the policy; empty on a ledger without one.
    pub version: String,
    /// The server's time, ms since 1970.
    pub time_ms: u64,
    /// The policy as JSON, when the member has another version.
    pub policy: Option<String>,
    /// One entry per book of the call.
    pub books: Vec<BookAnswer>,
}

/// How a book stands towards a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BookStanding {
    /// The grant holds.
    Ok,
    /// The grant holds, but the pool is negative: admit only up to the smaller of grant and share.
    Contended,
    /// The grant holds; for a while only what comes back is lent.
    Learning,
    /// A later call has been seen: no answer.
    Stale,
    /// No such book: no answer.
    None,
}

/// One book's part of an answer, in the book's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BookAnswer {
    /// Whether it counts.
    pub state: BookStanding,
    /// The most the member may have charged in any 60 s.
    pub grant: u64,
    /// Its fair part of the budget.
    pub share: u64,
    /// What could be lent; may be negative.
    pub pool: i64,
    /// What the whole fleet may spend in any 60 s.
    pub budget: u64,
    /// The safe share.
    pub safe: u64,
}

/// Where grants are kept. All calls are safe to repeat; [`LedgerError::Timeout`] leaves open whether one was done.
pub trait Ledger: Send + Sync {
    /// Takes the ledger over: earlier epochs can write no more.
    fn claim(&self, uid: &str) -> impl Future<Output = Result<Epoch, LedgerError>> + Send;

    /// Reads reports and books; needs no epoch.
    fn observe(&self, uid: &str, books: &[BookId]) -> impl Future<Output = Result<Observation, LedgerError>> + Send;

    /// The policy that is stored; `None` also for one that cannot be read.
    fn policy(&self, uid: &str) -> impl Future<Output = Result<Option<Policy>, LedgerError>> + Send;

    /// Stores the policy and deletes the books `removed`, which it does not name.
    fn publish(
        &self,
        uid: &str,
        epoch: Epoch,
        policy: &Policy,
        removed: &[BookId],
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Writes budgets, shares and evidence. Give all books of the TokenBudget, as a member without record in any of
    /// them is forgotten when it is gone.
    fn plan(
        &self,
        uid: &str,
        epoch: Epoch,
        writes: &[PlanWrite],
    ) -> impl Future<Output = Result<Planned, LedgerError>> + Send;

    /// Tells members to detach, and deletes everything else. What is left goes by itself after 120 s.
    fn close(&self, uid: &str, epoch: Epoch, books: &[BookId]) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// A member's call.
    fn call(&self, uid: &str, call: &Call<'_>) -> impl Future<Output = Result<Answer, LedgerError>> + Send;
}
