//! What the provider saw, to the 100 ms: the witness of every claim.
//!
//! One series per model and API key, in slots of 100 ms (36,000 an hour, the
//! last [`KEPT_SLOTS`] are kept), plus a ring of the last [`KEPT_ARRIVALS`]
//! single arrivals. A request counts at the moment its handler starts, with
//! all it will cost; when it ends, what it really got is counted again in a
//! separate series. Refused requests are never in the admitted tokens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::judge::{Arrival, SLOT_MS};

/// Slots kept per model and key: 48 hours.
pub const KEPT_SLOTS: usize = 48 * 36_000;
/// Single arrivals kept.
pub const KEPT_ARRIVALS: usize = 1_000_000;
/// Pairs of model and key kept apart; further ones are counted as "other".
const KEPT_PAIRS: usize = 256;

/// What happened in one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Tokens admitted, by arrival.
    pub admitted_tokens: u64,
    /// Requests admitted, by arrival.
    pub requests: u32,
    /// Tokens of requests that ended, by end: prompt plus what was answered.
    pub ended_tokens: u64,
    /// Requests that were refused, by arrival.
    pub failed_requests: u32,
    /// Tokens those would have cost.
    pub failed_tokens: u64,
}

impl Slot {
    fn add(&mut self, other: &Self) {
        self.admitted_tokens += other.admitted_tokens;
        self.requests += other.requests;
        self.ended_tokens += other.ended_tokens;
        self.failed_requests += other.failed_requests;
        self.failed_tokens += other.failed_tokens;
    }
}

/// Sums over a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens admitted, by arrival.
    pub admitted_tokens: u64,
    /// Requests admitted, by arrival.
    pub requests: u64,
    /// Tokens really used, by end.
    pub ended_tokens: u64,
    /// Requests refused.
    pub failed_requests: u64,
    /// Tokens those would have cost.
    pub failed_tokens: u64,
}

impl Totals {
    /// The sums with one more slot.
    #[must_use]
    pub fn with(mut self, slot: &Slot) -> Self {
        self.admitted_tokens += slot.admitted_tokens;
        self.requests += u64::from(slot.requests);
        self.ended_tokens += slot.ended_tokens;
        self.failed_requests += u64::from(slot.failed_requests);
        self.failed_tokens += slot.failed_tokens;
        self
    }
}

/// One arrival, as `GET /arrivals` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Prompt plus answer.
    pub tokens: u64,
    /// The model.
    pub model: Arc<str>,
    /// The API key.
    pub key: Arc<str>,
    /// `x-request-id`, else the `user` field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Box<str>>,
    /// 200 when admitted, else the status it was refused with.
    pub status: u16,
}

impl Seen {
    /// Whether it was admitted.
    #[must_use]
    pub const fn admitted(&self) -> bool {
        self.status == 200
    }

    /// Time and cost only, for the judge.
    #[must_use]
    pub const fn arrival(&self) -> Arrival {
        Arrival { at_ms: self.at_ms, tokens: self.tokens }
    }
}

/// Which model and key a question is about; `None` means all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this model.
    pub model: Option<String>,
    /// Only this API key.
    pub key: Option<String>,
}

impl Filter {
    fn takes(&self, pair: &Pair) -> bool {
        self.model.as_deref().is_none_or(|m| m == &*pair.0) && self.key.as_deref().is_none_or(|k| k == &*pair.1)
    }
}

/// Model and API key.
type Pair = (Arc<str>, Arc<str>);

/// The slots of one pair; the first is number `first` since the ledger's start.
#[derive(Debug, Default)]
struct Series {
    first: usize,
    slots: VecDeque<Slot>,
}

impl Series {
    fn at(&mut self, slot: usize) -> Option<&mut Slot> {
        if self.slots.is_empty() {
            self.first = slot;
        }
        let index = slot.checked_sub(self.first)?;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::default());
        }
        let excess = self.slots.len().saturating_sub(KEPT_SLOTS);
        self.slots.drain(..excess);
        self.first += excess;
        self.slots.get_mut(slot.checked_sub(self.first)?)
    }
}

/// A request that was admitted and has not ended: give it back to
/// [`Ledger::ended`].
#[derive(Clone, Debug)]
pub struct Ticket {
    pair: Pair,
    reset: u64,
}

/// The books. Times given to it are Unix milliseconds and must not go back.
#[derive(Debug)]
pub struct Ledger {
    start_ms: u64,
    resets: u64,
    series: BTreeMap<Pair, Series>,
    arrivals: VecDeque<Seen>,
    forgotten: bool,
    in_flight: u64,
}

impl Ledger {
    /// Empty books whose slot 0 starts at or just before `now_ms`.
    #[must_use]
    pub const fn new(now_ms: u64) -> Self {
        Self {
            start_ms: now_ms - now_ms % SLOT_MS,
            resets: 0,
            series: BTreeMap::new(),
            arrivals: VecDeque::new(),
            forgotten: false,
            in_flight: 0,
        }
    }

    /// Forgets everything; requests under way are not counted when they end.
    pub fn reset(&mut self, now_ms: u64) {
        let resets = self.resets + 1;
        *self = Self::new(now_ms);
        self.resets = resets;
    }

    /// Where slot 0 starts, in Unix milliseconds.
    #[must_use]
    pub const fn start_ms(&self) -> u64 {
        self.start_ms
    }

    /// Requests admitted that have not ended.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether the ring of arrivals holds everything since `from_ms`.
    #[must_use]
    pub fn reaches_back_to(&self, from_ms: u64) -> bool {
        !self.forgotten || self.arrivals.front().is_some_and(|a| a.at_ms < from_ms)
    }

    fn slot(&mut self, pair: &Pair, at_ms: u64) -> Option<&mut Slot> {
        let number = usize::try_from(at_ms.checked_sub(self.start_ms)? / SLOT_MS).ok()?;
        self.series.entry(pair.clone()).or_default().at(number)
    }

    fn pair(&self, model: &str, key: &str) -> Pair {
        let pair = (Arc::from(model), Arc::from(key));
        match self.series.get_key_value(&pair) {
            Some((known, _)) => known.clone(),
            None if self.series.len() >= KEPT_PAIRS => (Arc::from("other"), Arc::from("other")),
            None => pair,
        }
    }

    /// Writes down an arrival: admitted with status 200, else refused.
    pub fn arrived(&mut self, arrival: Arrival, model: &str, key: &str, id: Option<&str>, status: u16) -> Ticket {
        let pair = self.pair(model, key);
        if let Some(slot) = self.slot(&pair, arrival.at_ms) {
            if status == 200 {
                slot.admitted_tokens += arrival.tokens;
                slot.requests += 1;
            } else {
                slot.failed_requests += 1;
                slot.failed_tokens += arrival.tokens;
            }
        }
        if self.arrivals.len() >= KEPT_ARRIVALS {
            self.arrivals.pop_front();
            self.forgotten = true;
        }
        self.arrivals.push_back(Seen {
            at_ms: arrival.at_ms,
            tokens: arrival.tokens,
            model: pair.0.clone(),
            key: pair.1.clone(),
            id: id.map(Box::from),
            status,
        });
        self.in_flight += u64::from(status == 200);
        Ticket { pair, reset: self.resets }
    }

    /// Writes down the end of an admitted request with the tokens it got.
    pub fn ended(&mut self, ticket: &Ticket, at_ms: u64, tokens: u64) {
        if ticket.reset != self.resets {
            return;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(slot) = self.slot(&ticket.pair, at_ms) {
            slot.ended_tokens += tokens;
        }
    }

    /// The slots whose start is in `from_ms..to_ms`, summed over what `filter`
    /// takes, and the start of the first in Unix milliseconds. Slots before the
    /// ledger's start are left out.
    #[must_use]
    pub fn slots(&self, filter: &Filter, from_ms: u64, to_ms: u64) -> (u64, Vec<Slot>) {
        let since_start = |ms: u64| ms.saturating_sub(self.start_ms);
        let first = usize::try_from(since_start(from_ms) / SLOT_MS).unwrap_or(usize::MAX);
        let end = usize::try_from(since_start(to_ms).div_ceil(SLOT_MS)).unwrap_or(usize::MAX);
        // A range in the far future is not a reason to allocate for ever.
        let mut sum = vec![Slot::default(); end.saturating_sub(first).min(KEPT_SLOTS)];
        for (_, series) in self.series.iter().filter(|(pair, _)| filter.takes(pair)) {
            for (number, slot) in (series.first..).zip(&series.slots) {
                let index = number.checked_sub(first);
                if let Some(into) = index.and_then(|i| sum.get_mut(i)) {
                    into.add(slot);
                }
            }
        }
        (self.start_ms + first as u64 * SLOT_MS, sum)
    }

    /// Totals per model and key over `from_ms..to_ms`.
    #[must_use]
    pub fn totals(&self, filter: &Filter, from_ms: u64, to_ms: u64) -> Vec<(String, String, Totals)> {
        let pairs = self.series.keys().filter(|pair| filter.takes(pair));
        pairs
            .map(|pair| {
                let only = Filter { model: Some(pair.0.to_string()), key: Some(pair.1.to_string()) };
                let (_, slots) = self.slots(&only, from_ms, to_ms);
                let total = slots.iter().fold(Totals::default(), Totals::with);
                (pair.0.to_string(), pair.1.to_string(), total)
            })
            .collect()
    }

    /// Single arrivals in `from_ms..to_ms`, oldest first, admitted or not.
    pub fn arrivals<'a>(&'a self, filter: &'a Filter, from_ms: u64, to_ms: u64) -> impl Iterator<Item = &'a Seen> {
        let first = self.arrivals.partition_point(|seen| seen.at_ms < from_ms);
        self.arrivals
            .range(first..)
            .take_while(move |seen| seen.at_ms < to_ms)
            .filter(|seen| filter.takes(&(seen.model.clone(), seen.key.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(ledger: &mut Ledger, at_ms: u64, tokens: u64, model: &str, status: u16) -> Ticket {
        ledger.arrived(Arrival { at_ms, tokens }, model, "k", None, status)
    }

    #[test]
    fn counts_by_arrival_by_end_and_apart() {
        let mut ledger = Ledger::new(1_050);
        assert_eq!(ledger.start_ms(), 1_000);
        let a = arrive(&mut ledger, 1_050, 10, "a", 200);
        arrive(&mut ledger, 1_260, 20, "b", 200);
        arrive(&mut ledger, 1_270, 40, "a", 503);
        ledger.ended(&a, 1_399, 9);
        let (start, slots) = ledger.slots(&Filter::default(), 0, 1_400);
        assert_eq!((start, slots.len()), (1_000, 4));
        let admitted: Vec<u64> = slots.iter().map(|s| s.admitted_tokens).collect();
        assert_eq!(admitted, [10, 0, 20, 0]);
        assert_eq!((slots[2].failed_requests, slots[2].failed_tokens), (1, 40));
        assert_eq!((slots[3].ended_tokens, ledger.in_flight()), (9, 1));
        let only_a = Filter { model: Some("a".to_owned()), key: None };
        let (start, slots) = ledger.slots(&only_a, 1_250, 1_300);
        assert_eq!((start, slots.len()), (1_200, 1));
        assert_eq!(slots[0].admitted_tokens, 0);
        assert_eq!(ledger.totals(&Filter::default(), 0, 2_000).len(), 2);
        let seen: Vec<u16> = ledger.arrivals(&only_a, 1_051, 9_999).map(|s| s.status).collect();
        assert_eq!(seen, [503]);
    }

    #[test]
    fn a_reset_forgets_what_is_under_way() {
        let mut ledger = Ledger::new(0);
        let ticket = arrive(&mut ledger, 5, 10, "a", 200);
        ledger.reset(1_000);
        ledger.ended(&ticket, 1_100, 10);
        assert_eq!(ledger.in_flight(), 0);
        assert!(ledger.totals(&Filter::default(), 0, 9_000).is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut ledger = Ledger::new(0);
        arrive(&mut ledger, 0, 1, "a", 200);
        let late = (KEPT_SLOTS as u64 + 9) * SLOT_MS;
        arrive(&mut ledger, late, 1, "a", 200);
        assert!(ledger.series.values().all(|s| s.slots.len() <= KEPT_SLOTS));
        for n in 0..KEPT_PAIRS + 10 {
            arrive(&mut ledger, late, 1, &format!("m{n}"), 200);
        }
        assert!(ledger.series.len() <= KEPT_PAIRS + 1);
    }
}
