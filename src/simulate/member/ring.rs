//! What a process charged in the last 60 s: the model of `Ring` in `agent/src/ring.py`, operation by operation, so
//! that both come to the same floating-point numbers (`agent/tests/vectors.json`).

use std::collections::VecDeque;

use crate::ledger::LEAVE_STEPS;
use crate::ledger::rules::{Rule, Rules};

/// What a provider's minute is taken to be, in seconds.
pub const WINDOW: f64 = 60.0;

/// Resolution of the ring, in seconds.
pub const SLOT: f64 = 0.05;

/// Length of a step of what leaves, in seconds (`LEAVE_STEP_MS`).
const LEAVE_STEP: f64 = 1.0;

/// A request has left after so many turns of the event loop, however slow they are.
const TURNS: u32 = 16;

/// What was sent in one slot of time, or may have left as late as that.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Grows from slot to slot of a ring.
    id: u64,
    /// In units of [`SLOT`]: it leaves a window after the end of this one.
    index: i64,
    amount: f64,
    /// What of it is of charges that are settled: it can neither be sent again nor cost less.
    settled: f64,
    /// Turns of the event loop that took long since it was stamped.
    turns: u32,
}

/// One amount of one attempt. Unsent (no slot) until stamped; closed when settled or given back.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// In tokens or requests.
    pub amount: f64,
    slot: Option<u64>,
    closed: bool,
}

/// Unsent charges, and slots by the time that they were sent.
#[derive(Clone, Debug)]
pub struct Ring {
    guard: f64,
    unsent: f64,
    sent: f64,
    slots: VecDeque<Slot>,
    next_id: u64,
    rules: Rules,
}

impl Default for Ring {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl Ring {
    /// An empty ring.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { guard: 0.0, unsent: 0.0, sent: 0.0, slots: VecDeque::new(), next_id: 0, rules }
    }

    /// How long a charge stays beyond its window, in seconds.
    pub fn set_guard(&mut self, guard: f64) {
        self.guard = if self.rules.hold(Rule::Guard) { guard } else { 0.0 };
    }

    /// What is in the window, unsent charges included.
    #[must_use]
    pub fn spent(&self) -> f64 {
        if self.rules.hold(Rule::HoldUnsent) { self.unsent + self.sent } else { self.sent }
    }

    fn leaves(&self, slot: &Slot) -> f64 {
        (slot.index + 1) as f64 * SLOT + WINDOW + self.guard
    }

    /// Forgets what was sent long enough ago; answers how much that was.
    pub fn advance(&mut self, now: f64) -> f64 {
        let leaving = self.slots.iter().take_while(|slot| self.leaves(slot) <= now).count();
        if leaving == 0 {
            return 0.0;
        }
        let gone = self.slots.drain(..leaving).map(|slot| slot.amount).sum();
        self.sent = if self.slots.is_empty() { 0.0 } else { self.sent - gone };
        gone
    }

    /// Takes an amount for an attempt that has not left yet.
    pub fn charge(&mut self, amount: f64) -> Charge {
        self.unsent += amount;
        Charge { amount, slot: None, closed: false }
    }

    /// The newest slot, which `now` falls into. A clock that went back counts as now: later is safe.
    fn newest(&mut self, now: f64) -> usize {
        let mut index = (now / SLOT).floor() as i64;
        if let Some(last) = self.slots.back().filter(|last| last.index >= index) {
            if last.turns == 0 {
                return self.slots.len() - 1;
            }
            index = last.index;
        }
        self.slots.push_back(Slot { id: self.next_id, index, amount: 0.0, settled: 0.0, turns: 0 });
        self.next_id += 1;
        self.slots.len() - 1
    }

    /// Where a charge is now; `None` when it has left the window.
    fn find(&self, id: u64) -> Option<usize> {
        let place = self.slots.partition_point(|slot| slot.id < id);
        self.slots.get(place).is_some_and(|slot| slot.id == id).then_some(place)
    }

    /// The charge leaves now. A second stamp moves it later.
    pub fn stamp(&mut self, charge: &mut Charge, now: f64) {
        match charge.slot {
            None if charge.closed => return,
            None => {
                self.unsent -= charge.amount;
                self.sent += charge.amount;
            }
            Some(id) => match self.find(id) {
                None => self.sent += charge.amount,
                Some(place) => {
                    self.slots[place].amount -= charge.amount;
                    self.slots[place].settled -= if charge.closed { charge.amount } else { 0.0 };
                }
            },
        }
        let place = self.newest(now);
        self.slots[place].amount += charge.amount;
        self.slots[place].settled += if charge.closed { charge.amount } else { 0.0 };
        charge.slot = Some(self.slots[place].id);
    }

    /// The actual amount is known. Down only in the slot it was charged in, while that is in the ring; up at once.
    pub fn settle(&mut self, charge: &mut Charge, actual: f64, now: f64) {
        if charge.closed {
            return;
        }
        charge.closed = true;
        let mut delta = actual.max(0.0) - charge.amount;
        if delta > 0.0 && !self.rules.hold(Rule::ChargeDebt) {
            delta = 0.0;
        }
        let Some(id) = charge.slot else {
            self.unsent += delta;
            charge.amount += delta;
            charge.closed = false;
            self.stamp(charge, now);
            charge.closed = true;
            if let Some(place) = charge.slot.and_then(|id| self.find(id)) {
                self.slots[place].settled += charge.amount;
            }
            return;
        };
        let (place, settled) = match self.find(id) {
            Some(place) => (place, charge.amount + delta),
            None if delta <= 0.0 && self.rules.hold(Rule::SettleInSlot) => return,
            None => (self.newest(now), delta),
        };
        charge.slot = Some(self.slots[place].id);
        self.slots[place].amount += delta;
        self.slots[place].settled += settled;
        self.sent += delta;
        charge.amount += delta;
    }

    /// The attempt provably never counted at the provider.
    pub fn give_back(&mut self, charge: &mut Charge) {
        if charge.closed {
            return;
        }
        charge.closed = true;
        match charge.slot {
            None => self.unsent -= charge.amount,
            Some(id) => {
                let Some(place) = self.find(id) else { return };
                self.slots[place].amount -= charge.amount;
                self.sent -= charge.amount;
            }
        }
        charge.amount = 0.0;
    }

    /// Nothing ran from `start` to `end`: what was stamped since then may leave as late as `end`. `turn`: `end` is the next
    /// turn of the event loop.
    pub fn stall(&mut self, start: f64, end: f64, turn: bool) {
        let (first, last) = ((start / SLOT).floor() as i64, (end / SLOT).floor() as i64);
        for slot in self.slots.iter_mut().rev().take_while(|slot| slot.index >= first && slot.turns < TURNS) {
            slot.index = slot.index.max(last);
            slot.turns += u32::from(turn);
        }
    }

    /// When so much will have left.
    #[must_use]
    pub fn gone_at(&self, amount: f64) -> Option<f64> {
        let mut gone = 0.0;
        for slot in &self.slots {
            gone += slot.amount;
            if gone >= amount {
                return Some(self.leaves(slot));
            }
        }
        None
    }

    /// How much of it leaves in each [`LEAVE_STEP`] from now on; what is unsent or leaves later is not in it. `all`: no
    /// request is running any more. Otherwise only what is settled counts.
    #[must_use]
    pub fn leaving(&self, now: f64, all: bool) -> [f64; LEAVE_STEPS] {
        let all = all || !self.rules.hold(Rule::LeavesSettled);
        let mut steps = [0.0; LEAVE_STEPS];
        for slot in &self.slots {
            if let Some(step) = steps.get_mut(((self.leaves(slot) - now) / LEAVE_STEP) as usize) {
                *step += if all { slot.amount } else { slot.settled };
            }
        }
        steps
    }
}
