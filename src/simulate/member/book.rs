//! One limit in one unit, as a process keeps it: the model of `Book` in `agent/src/book.py`, operation by operation.

use super::denied::Denied;
use super::ring::{Ring, WINDOW};
use crate::ledger::rules::{Rule, Rules};
use crate::ledger::{Ask, BookAnswer, BookStanding, Leaves};
use crate::plan::{FULL, slack};

/// Part of the way that a grant moves per beat; all of it under pressure.
const DAMP: f64 = 1.0 / 3.0;

/// Seconds of its own rate that a member keeps beyond what it spent.
const BUFFER: f64 = 0.05;

/// Under pressure a beat is sent as soon as this part of the budget has left the window.
const WORTH: f64 = 5000.0;

/// A ledger that has not answered for so long is out of touch, in seconds: nobody can take what is given up.
const TOUCH: f64 = 4.0;

/// What leaves the window when is looked up so often, in seconds.
const LEAVES_EVERY: f64 = 1.0;

/// How long a record is held after a lease, in seconds (`HOLD_MS`).
pub const HOLD: f64 = 65.0;

/// The two clocks of a process, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clocks {
    /// Since the boot of the machine, suspended time included.
    pub boot: f64,
    /// Since 1970.
    pub wall: f64,
}

/// What a call carried, kept until its answer.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// The figures.
    pub ask: Ask,
    /// When it was sent.
    pub at: Clocks,
}

/// How much this process may have charged in its window, and what it tells the ledger.
#[derive(Clone, Debug)]
pub struct Book {
    /// What the fleet may spend in any 60 s.
    pub budget: u64,
    /// The most that a process may spend when it has lost the ledger.
    pub safe: u64,
    /// How long a grant lasts, in seconds.
    pub lease: f64,
    /// What was charged.
    pub ring: Ring,
    /// What was refused.
    pub denied: Denied,
    /// The most that may be charged now, while the lease lasts.
    pub grant: u64,
    /// Its fair part.
    pub share: u64,
    /// What could be lent at the last answer.
    pub pool: i64,
    /// What may be charged when the lease is over.
    pub off: u64,
    /// The last answer's.
    pub state: BookStanding,
    /// Whether there ever was an answer.
    pub answered: bool,
    /// Whether the final call was sent.
    pub left: bool,
    /// When the call that renewed the lease was sent.
    pub renewed: Option<Clocks>,
    /// When a call may have reached the ledger last, in boot time; at first the process's start.
    pub quiet: f64,
    /// How full the pool is: 0 empty, 1 full enough.
    pub slack: f64,
    /// What was given up while a call was under way.
    yielded: u64,
    /// A call was prepared and has no answer.
    asked: bool,
    /// The one before it has none, either.
    missed: bool,
    /// What leaves the window when, and as of when that was said last; the boot time is that of the next time.
    leaves: Leaves,
    as_of_ms: u64,
    leaves_at: f64,
    /// What draws are to ask for beyond the waiting requests.
    pub pending: f64,
    rules: Rules,
}

impl Book {
    /// A book of a process that started at `boot`.
    #[must_use]
    pub fn new(budget: u64, safe: u64, lease: f64, boot: f64, rules: Rules) -> Self {
        Self {
            budget,
            safe,
            lease,
            ring: Ring::new(rules),
            denied: Denied::default(),
            grant: 0,
            share: safe,
            pool: 0,
            off: 0,
            state: BookStanding::None,
            answered: false,
            left: false,
            renewed: None,
            quiet: boot,
            slack: 1.0,
            yielded: 0,
            asked: false,
            missed: false,
            leaves: Leaves::default(),
            as_of_ms: 0,
            leaves_at: boot,
            pending: 0.0,
            rules,
        }
    }

    /// Whether the ledger has not answered for a lease, by either clock.
    #[must_use]
    pub fn lease_over(&self, now: Clocks) -> bool {
        let Some(renewed) = self.renewed else { return true };
        (now.boot - renewed.boot >= self.lease && self.rules.hold(Rule::LeaseByBoot))
            || (now.wall - renewed.wall >= self.lease && self.rules.hold(Rule::LeaseByWall))
    }

    /// Whether others wait for what this process has no use for, and can get it.
    fn pressed(&self, now: Clocks) -> bool {
        self.slack < 0.5 && !self.missed && self.renewed.is_some_and(|renewed| now.boot - renewed.boot < TOUCH)
    }

    /// When a beat is worth sending early, as enough will have left the window to be given back; in boot time.
    #[must_use]
    pub fn give_back_at(&self, now: Clocks) -> Option<f64> {
        self.pressed(now).then(|| self.ring.gone_at((self.budget as f64 / WORTH).max(1.0)))?
    }

    /// Lets time pass: what has left the window, and a lease that is over.
    pub fn advance(&mut self, now: Clocks) {
        let gone = self.ring.advance(now.boot);
        if gone != 0.0 && self.pressed(now) && self.grant > self.share && self.rules.hold(Rule::Yield) {
            let new = self.share.max(floor(self.grant as f64 - gone));
            self.yielded += self.grant.saturating_sub(new);
            self.grant = new.min(self.grant);
        }
        if self.answered && self.grant > self.off && self.rules.hold(Rule::GrantEnds) && self.lease_over(now) {
            self.grant = self.off;
        }
    }

    /// Whether it never had an answer, and is past the time when anybody else may count on what it will spend.
    fn on_its_own(&self, now: Clocks) -> bool {
        let wait = if self.rules.hold(Rule::NeverAnswered) { self.lease + HOLD } else { 0.0 };
        !self.answered && now.boot - self.quiet >= wait
    }

    /// The most that `spent` may be now.
    #[must_use]
    pub fn allowed(&self, now: Clocks) -> u64 {
        if self.left {
            return 0;
        }
        if !self.answered {
            return if self.on_its_own(now) { self.safe } else { 0 };
        }
        if self.lease_over(now) {
            return if self.rules.hold(Rule::OfflineAmount) { self.grant.min(self.off) } else { self.grant };
        }
        if self.state == BookStanding::Contended && self.rules.hold(Rule::Contended) {
            return self.grant.min(self.share);
        }
        self.grant
    }

    /// Whether `need` more fits now.
    pub fn fits(&mut self, need: f64, now: Clocks) -> bool {
        self.advance(now);
        self.ring.spent() + need <= self.allowed(now) as f64 + 1e-6
    }

    /// What the next call carries; `pending` is what waiting requests need. The grant shrinks here, before the call is sent.
    pub fn prepare(&mut self, beat: bool, pending: f64, smallest: f64, now: Clocks, leave: bool) -> Sent {
        (self.asked, self.missed) = (true, self.asked);
        self.advance(now);
        self.denied.advance(now.boot);
        let spent = ceil(self.ring.spent() - 1e-6);
        let mut keep = self.grant.max(spent);
        let mut want = keep;
        let mut least = 0;
        if leave || now.boot >= self.leaves_at {
            self.leaves = Leaves(self.ring.leaving(now.boot, leave).map(floor));
            self.as_of_ms = floor(now.wall * 1000.0);
            self.leaves_at = now.boot + LEAVES_EVERY;
        }
        let mut off = keep.min(self.safe);
        if leave {
            (keep, want) = (spent, spent);
            off = spent.min(self.safe);
            self.left = true;
        } else if !self.answered {
            // What it will come to when no answer ever comes; the ledger knows of it before.
            off = self.safe;
            if self.on_its_own(now) {
                keep = keep.max(self.safe);
            }
            // A fleet whose processes all start must not take its own pool for pressure, and give all back.
            want = keep.max(ceil((1.0 - FULL) * self.safe as f64 - 1e-6));
        } else if beat && !self.missed {
            // What is given up in a call that nobody hears is lent to nobody.
            (keep, want) = self.aim(spent, keep);
            off = keep.min(self.safe);
        }
        if pending > 0.0 && !leave {
            want = want.max(ceil(spent as f64 + pending - 1e-6));
            least = ceil(spent as f64 + smallest - 1e-6);
        }
        if self.rules.hold(Rule::ShrinkFirst) {
            self.grant = self.grant.min(keep);
        }
        self.off = self.off.min(off);
        (self.yielded, self.pending) = (0, 0.0);
        let denied = ceil(self.denied.total() - 1e-6);
        let want = if leave { 0 } else { want };
        let (as_of_ms, leaves) = (self.as_of_ms, self.leaves);
        Sent { ask: Ask { keep, want, least, spent, denied, off, as_of_ms, leaves }, at: now }
    }

    /// What a beat keeps and wants: under pressure what it does not use goes back, a third of the way.
    fn aim(&self, spent: u64, keep: u64) -> (u64, u64) {
        let room = self.share.saturating_sub(spent);
        let slack = if self.rules.hold(Rule::GiveBack) { self.slack } else { 1.0 };
        let used = (spent + ceil(BUFFER * spent as f64 / WINDOW)) as f64 + slack * room as f64;
        let cap = (self.share as f64).min(used);
        let grant = self.grant as f64;
        let (mut keep, mut want) = (keep, keep);
        if grant > cap {
            let damp = if slack < 0.5 { 1.0 } else { DAMP };
            keep = spent.max(floor(grant - damp * (grant - cap)));
            want = keep;
        } else {
            want = want.max(ceil(grant + DAMP * (cap - grant)));
        }
        (keep, want)
    }

    /// The answer is the grant, also when it is lower; only an answer renews the lease. True if it counted.
    pub fn apply(&mut self, sent: &Sent, answer: &BookAnswer, received: Clocks) -> bool {
        match answer.state {
            BookStanding::Ok | BookStanding::Contended | BookStanding::Learning => {}
            BookStanding::None => {
                self.state = BookStanding::None;
                return false;
            }
            BookStanding::Stale => return false,
        }
        (self.state, self.answered) = (answer.state, true);
        (self.asked, self.missed) = (false, false);
        (self.share, self.pool) = (answer.share, answer.pool);
        (self.budget, self.safe) = (answer.budget, answer.safe);
        self.slack = slack(answer.pool, answer.budget);
        let mut grant = answer.grant;
        // What left the window while the call was under way.
        if self.slack < 0.5 && grant > self.share {
            grant = self.share.max(grant.saturating_sub(self.yielded));
        }
        self.grant = grant;
        self.off = sent.ask.off.min(answer.safe).min(grant);
        self.renewed = Some(if self.rules.hold(Rule::LeaseFromSent) { sent.at } else { received });
        true
    }
}

/// The largest whole number that is not above; nothing is negative.
fn floor(amount: f64) -> u64 {
    amount.floor().max(0.0) as u64
}

/// The smallest whole number that is not below; nothing is negative.
fn ceil(amount: f64) -> u64 {
    amount.ceil().max(0.0) as u64
}
