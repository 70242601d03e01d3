//! The rules of one book, as `scripts/*.lua` carry them out: the same text in Rust, for the simulator and for tests. Pure:
//! the server's clock and identity are passed in. `tests/ledger_differential.rs` holds both to the same answers and state.

use super::book::{BookState, MemberRecord};
use super::{Ask, BookAnswer, BookStanding, HOLD_MS, LEAVE_STEP_MS, MemberPlan, PlanWrite, PlannedBook};

/// The most that ledger time moves between two calls, ms: a step of the server's clock ends nothing early (design rule 10).
const MOST_STEP_MS: u64 = 1_000;

/// A ledger that was silent for a lease and this has to learn, ms: a process that it never heard of admits nothing for a lease
/// and [`HOLD_MS`] ([`Rule::NeverAnswered`]), and one of 30 s is counted by the operator ([`Rule::SetAside`]).
const SILENT_MS: u64 = HOLD_MS - 30_000;

/// A claim is kept by slots of this length, ms.
const CLAIM_SLOT_MS: u64 = 250;

/// The kubelet cuts `finishedAt` to whole seconds, and a member's guard may have become shorter by so much since it said
/// what leaves when, ms.
const END_SLACK_MS: u64 = 2_000;

/// What left the window of a process that has ended is lent again so much later, ms. The window of one that lives is measured by
/// its own clock; that of one that has ended by the ledger's, which may have made a step within that minute.
pub(super) const LEAVE_SLACK_MS: u64 = MOST_STEP_MS;

/// Slots that a claim lasts for after its own.
const CLAIM_SLOTS: u64 = 4;

/// A rule of the protocol that the simulation can switch off, to show what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The ledger ignores a call that it has passed.
    IgnorePassed,
    /// A record never falls below what was spent, nor below what the process may go on with.
    RecordCovers,
    /// What is lent comes from the pool.
    LendFromPool,
    /// What lies above the level, and above the member's share, is lent only out of what nobody below them has claimed.
    Claims,
    /// While the pool is negative, processes admit up to the smaller of grant and share.
    Contended,
    /// A silent member's record falls to its offline amount.
    LowerToOffline,
    /// A gone member's record stays for a window.
    HoldGone,
    /// No record goes or falls while its lease may last.
    KeepWhileLeased,
    /// A new server, or one that was silent for long, lends nothing for a while.
    Learn,
    /// What left before a process was killed, and after its last call, frees nothing.
    LeavesAfterEnd,
    /// Of a live process only what is settled counts as leaving.
    LeavesSettled,
    /// Learning lends only what members that have registered since give back.
    LendGivenBack,
    /// A step of the server's clock ends nothing early.
    ClampClock,
    /// Only the operator that claimed last may write.
    Fence,
    /// A process lowers its grant before it tells the ledger.
    ShrinkFirst,
    /// An answer that comes after its time-out is dropped.
    DropLate,
    /// A lease counts from the moment that its call was sent.
    LeaseFromSent,
    /// The boot-time clock ends a lease.
    LeaseByBoot,
    /// The wall clock ends a lease, too.
    LeaseByWall,
    /// Without a lease a process admits up to the smaller of grant and offline amount.
    OfflineAmount,
    /// What is over is over: a grant whose lease ended falls to the offline amount for good.
    GrantEnds,
    /// A process that was never answered admits nothing for a lease and a window.
    NeverAnswered,
    /// The operator sets a safe share aside for every live process without a record.
    SetAside,
    /// What is set aside for a process without a record is the largest safe share that it may have booted with.
    RememberBooted,
    /// The operator sets a safe share aside for every member that the ledger had and lost, until there is evidence of its end.
    RememberLost,
    /// The operator sets a safe share aside for every process that ended without a record, for a window from then on.
    CountDeparted,
    /// A pod that vanished is no evidence of an end.
    Evidence,
    /// Under pressure a process gives back what it does not use.
    GiveBack,
    /// Under pressure a process above its share gives up what leaves its window.
    Yield,
    /// A charge that was not sent yet stays in the ring.
    HoldUnsent,
    /// A charge stays for a guard beyond its window.
    Guard,
    /// What was admitted before a freeze is admitted again before it leaves.
    AdmitAgain,
    /// A refund goes to the slot of its charge.
    SettleInSlot,
    /// Use above the estimate is charged at once.
    ChargeDebt,
    /// Each attempt that left is a charge of its own.
    ChargeRetries,
    /// A forked process is a member of its own.
    ForkIsNew,
}

/// Which rules hold. In production: all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    off: u64,
}

impl Rules {
    /// All but these.
    #[must_use]
    pub fn without(rules: &[Rule]) -> Self {
        Self { off: rules.iter().fold(0, |off, rule| off | 1 << *rule as u64) }
    }

    /// Whether this one holds.
    #[must_use]
    pub const fn hold(&self, rule: Rule) -> bool {
        self.off & (1 << rule as u64) == 0
    }
}

/// The server at the moment of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment<'a> {
    /// Its TIME, ms since 1970.
    pub time_ms: u64,
    /// Its `master_replid`.
    pub replid: &'a str,
}

/// Ledger time and learning at a call.
struct Now {
    clock: u64,
    learn_until: u64,
    round: u64,
    spare: u64,
}

impl BookState {
    /// A member's call: `call.lua`, `settle_book`.
    pub fn settle(
        &mut self,
        member: &str,
        seq: u64,
        leave: bool,
        ask: &Ask,
        at: &Moment<'_>,
        rules: &Rules,
    ) -> BookAnswer {
        let mut now = self.at(at, self.lease_ms, rules);
        let known = self.members.get(member);
        let old = known.cloned().unwrap_or_else(|| MemberRecord { share: self.safe, ..MemberRecord::default() });
        if known.is_some() && seq <= old.seq && rules.hold(Rule::IgnorePassed) {
            return self.answer(BookStanding::Stale, old.record, old.share);
        }

        let learning = now.clock < now.learn_until;
        // Should this answer get lost, the member admits up to the off that it sent: the record covers it.
        let record = if learning && known.is_none() {
            // Whoever it lost says what it holds, and is believed: it was lent that.
            ask.keep
        } else if rules.hold(Rule::RecordCovers) {
            ask.keep.min(old.record.max(ask.spent).max(ask.off.min(ask.keep)))
        } else {
            ask.keep.min(old.record)
        };
        self.lent = self.lent - old.record + record;
        // A call that was on its way when the ledger was lost says what its member held then: the second one registers.
        let seen = known.is_some() && old.round + 1 >= now.round;
        let registers = if seen { now.round } else { now.round.saturating_sub(1) };
        if !learning {
            now.spare = 0;
        } else if known.is_some() && old.round == now.round {
            now.spare += old.record.saturating_sub(record);
        }
        let pool = self.pool();

        let oldest = (now.clock / CLAIM_SLOT_MS).saturating_sub(CLAIM_SLOTS);
        self.claims.retain(|slot, _| *slot >= oldest);
        if let Some(claim) = self.claims.get_mut(&old.claim_slot) {
            *claim = claim.saturating_sub(old.claim);
        }
        let claimed = if rules.hold(Rule::Claims) { self.claimed() } else { 0 };
        let entitled = old.share.max(self.level);

        let mut lend = 0;
        let mut free = u64::try_from(pool).unwrap_or(0);
        if learning && rules.hold(Rule::LendGivenBack) {
            free = free.min(now.spare);
        }
        if !rules.hold(Rule::LendFromPool) {
            free = self.budget;
        }
        if !leave && ask.want > record && free > 0 {
            let fair = ask.want.min(entitled).saturating_sub(record).min(free);
            let above = ask.want.saturating_sub(record.max(entitled));
            lend = fair + above.min((free - fair).saturating_sub(claimed));
            if record + lend < ask.least {
                lend = 0;
            }
        }
        let record = record + lend;
        self.lent += lend;
        if learning {
            now.spare = now.spare.saturating_sub(lend);
        }

        let (mut claim, mut claim_slot) = (0, 0);
        let short = ask.want.min(entitled).saturating_sub(record);
        if short > 0 && !leave {
            (claim, claim_slot) = (short, now.clock / CLAIM_SLOT_MS);
            *self.claims.entry(claim_slot).or_default() += short;
        }
        self.claims.retain(|_, amount| *amount > 0);

        let until_ms = if leave { now.clock } else { old.until_ms.max(now.clock + self.lease_ms) };
        let stored = MemberRecord {
            seq,
            record,
            spent: ask.spent,
            denied: ask.denied,
            until_ms,
            off: ask.off,
            share: old.share,
            ended_ms: leave.then_some(now.clock),
            claim,
            claim_slot,
            round: registers,
            as_of_ms: ask.as_of_ms,
            leaves: ask.leaves,
        };
        match self.members.get_mut(member) {
            Some(place) => *place = stored,
            None => {
                self.members.insert(member.to_owned(), stored);
            }
        }
        self.store(now, at);

        // A cut has to bite while learning, too.
        let state = if self.pool() < 0 {
            BookStanding::Contended
        } else if learning {
            BookStanding::Learning
        } else {
            BookStanding::Ok
        };
        self.answer(state, record, old.share)
    }

    /// The operator's word on a book that exists: `plan.lua`, `plan_book`. Answers with the members whose records went, too.
    pub fn plan(&mut self, write: &PlanWrite, at: &Moment<'_>, rules: &Rules) -> (PlannedBook, Vec<String>) {
        let now = self.at(at, self.lease_ms.max(write.lease_ms), rules);
        let mut dropped = Vec::new();
        for (id, plan) in &write.members {
            if self.plan_member(id, plan, now.clock, rules) {
                self.members.remove(id);
                dropped.push(id.clone());
            }
        }
        (self.budget, self.aside, self.level) = (write.budget, write.aside, write.level);
        (self.safe, self.lease_ms) = (write.safe, write.lease_ms);
        self.store(now, at);
        (self.planned(false), dropped)
    }

    /// Answers whether the record goes.
    fn plan_member(&mut self, id: &str, plan: &MemberPlan, clock: u64, rules: &Rules) -> bool {
        let Some(member) = self.members.get_mut(id) else {
            return false;
        };
        if let (Some(finished_ms), None) = (plan.finished_ms, member.ended_ms) {
            member.ended_ms = Some(clock);
            // What left before the process ended made room for what it may have spent since it said so.
            let passed = (finished_ms + END_SLACK_MS).saturating_sub(member.as_of_ms).div_ceil(LEAVE_STEP_MS);
            member.take_steps(if rules.hold(Rule::LeavesAfterEnd) { passed } else { 0 });
        }
        let hold = if rules.hold(Rule::HoldGone) { HOLD_MS } else { 0 };
        let leased = clock < member.until_ms && rules.hold(Rule::KeepWhileLeased);
        if member.ended_ms.is_some_and(|at| clock >= at + hold) && !leased {
            self.lent -= member.record;
            return true;
        }
        if let Some(ended) = member.ended_ms.filter(|_| !leased) {
            let late = if rules.hold(Rule::HoldGone) { LEAVE_SLACK_MS } else { 0 };
            let passed = clock.saturating_sub(ended + late) / LEAVE_STEP_MS;
            let gone = member.take_steps(passed).min(member.record);
            self.lent -= gone;
            member.record -= gone;
        }
        let silent = member.ended_ms.is_none() && clock >= member.until_ms + HOLD_MS;
        if silent && member.record > member.off && rules.hold(Rule::LowerToOffline) {
            self.lent = self.lent - member.record + member.off;
            member.record = member.off;
        }
        member.share = plan.share;
        false
    }

    /// A book that was missing: it learns, unless it is its limit's first.
    #[must_use]
    pub fn create(write: &PlanWrite, at: &Moment<'_>, rules: &Rules) -> Self {
        let learn = !write.first && rules.hold(Rule::Learn);
        Self {
            budget: write.budget,
            aside: write.aside,
            level: write.level,
            safe: write.safe,
            lease_ms: write.lease_ms,
            clock_ms: at.time_ms,
            time_ms: at.time_ms,
            replid: at.replid.to_owned(),
            learn_until_ms: if learn { at.time_ms + write.lease_ms + HOLD_MS } else { 0 },
            round: if learn { 2 } else { 0 },
            ..Self::default()
        }
    }

    /// What the operator hears of the book.
    #[must_use]
    pub fn planned(&self, created: bool) -> PlannedBook {
        PlannedBook {
            clock_ms: self.clock_ms,
            budget: self.budget,
            lent: self.lent,
            aside: self.aside,
            pool: self.pool(),
            learning: self.learning(),
            created,
        }
    }

    /// Ledger time, and whether the ledger has to learn anew: another server wrote last, so what it wrote at the end may be
    /// missing here; or nobody called for so long that processes that nobody has heard of may have begun to admit.
    fn at(&self, at: &Moment<'_>, lease_ms: u64, rules: &Rules) -> Now {
        let gap = at.time_ms.saturating_sub(self.time_ms);
        let step = if rules.hold(Rule::ClampClock) { gap.min(MOST_STEP_MS) } else { gap };
        let clock = self.clock_ms + step;
        let (mut learn_until, mut round, mut spare) = (self.learn_until_ms, self.round, self.spare);
        if (self.replid != at.replid || gap >= lease_ms + SILENT_MS) && rules.hold(Rule::Learn) {
            learn_until = learn_until.max(clock + lease_ms + HOLD_MS);
            (round, spare) = (round + 2, 0);
        }
        Now { clock, learn_until, round, spare }
    }

    fn store(&mut self, now: Now, at: &Moment<'_>) {
        (self.clock_ms, self.time_ms) = (now.clock, at.time_ms);
        (self.learn_until_ms, self.round, self.spare) = (now.learn_until, now.round, now.spare);
        if self.replid != at.replid {
            at.replid.clone_into(&mut self.replid);
        }
    }

    fn answer(&self, state: BookStanding, grant: u64, share: u64) -> BookAnswer {
        BookAnswer { state, grant, share, pool: self.pool(), budget: self.budget, safe: self.safe }
    }
}
