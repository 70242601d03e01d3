//! What TokenBudget is compared with, over the same trace and the same choice of members: an ideal central bucket, a static
//! split, and LiteLLM's own counter. Times are milliseconds, amounts tokens.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::choice::Choice;
use super::demand::Offered;
use super::judge::{Arrival, WINDOW_MS};

/// A fleet as it was in a run.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Live members from each moment on (seconds), in the order of time.
    pub members: Vec<(f64, u32)>,
    /// Tokens per minute from each moment on (seconds), in the order of time.
    pub budgets: Vec<(f64, u64)>,
    /// Zipf exponent of the demand over members.
    pub skew: f64,
    /// The demand turns over to other members at this moment (seconds).
    pub turn_at: Option<f64>,
}

/// What became of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// What reached the provider, in the order of time.
    pub admitted: Vec<Arrival>,
    /// When requests were refused.
    pub refused: Vec<u64>,
}

impl Served {
    fn note(&mut self, offered: &Offered, admitted: bool) {
        let arrival = offered.arrival();
        if admitted {
            self.admitted.push(arrival);
        } else {
            self.refused.push(arrival.at_ms);
        }
    }
}

/// A rolling minute that charges a reservation at admission, and settles it to the actual use when the answer ends, in the
/// place it was charged in while that is in the window.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    inside: VecDeque<Arrival>,
    /// How many have left `inside`.
    left: u64,
    sum: u64,
    /// Ends to come: when, which admission, what it really cost.
    ends: BinaryHeap<Reverse<(u64, u64, u64)>>,
}

impl Bucket {
    fn advance(&mut self, now_ms: u64) {
        while let Some(Reverse((_, which, actual))) = self.ends.peek().copied().filter(|Reverse(end)| end.0 <= now_ms) {
            self.ends.pop();
            let place = which.checked_sub(self.left).and_then(|place| usize::try_from(place).ok());
            if let Some(charge) = place.and_then(|place| self.inside.get_mut(place)) {
                self.sum = self.sum - charge.tokens + actual;
                charge.tokens = actual;
            }
        }
        while let Some(first) = self.inside.front().filter(|first| first.at_ms + WINDOW_MS <= now_ms) {
            self.sum -= first.tokens;
            self.left += 1;
            self.inside.pop_front();
        }
    }

    /// Admits a request if its reservation fits; says whether it did. Times must not go back.
    pub fn offer(&mut self, offered: &Offered, budget: u64) -> bool {
        let at_ms = offered.arrival().at_ms;
        self.advance(at_ms);
        if self.sum.saturating_add(offered.reserve) > budget {
            return false;
        }
        if offered.reserve != offered.tokens {
            let which = self.left + self.inside.len() as u64;
            self.ends.push(Reverse((ends_ms(offered), which, offered.tokens)));
        }
        self.sum += offered.reserve;
        self.inside.push_back(Arrival { at_ms, tokens: offered.reserve });
        true
    }
}

fn ends_ms(offered: &Offered) -> u64 {
    ((offered.at + offered.latency) * 1000.0) as u64
}

/// LiteLLM's shared counter: one for each minute of the clock, read before a call and charged with its use when it ends, in
/// the minute in which it ends (`litellm/router_utils/pre_call_checks/model_rate_limit_check.py`). What runs is not counted
/// yet, and a new minute starts from 0.
#[derive(Clone, Debug, Default)]
pub struct MinuteCounter {
    minute: u64,
    count: u64,
    ends: BinaryHeap<Reverse<(u64, u64)>>,
}

impl MinuteCounter {
    fn turn_to(&mut self, minute: u64) {
        if self.minute != minute {
            (self.minute, self.count) = (minute, 0);
        }
    }

    /// Admits a request if the minute's counter is below the budget; says whether it did. Times must not go back.
    pub fn offer(&mut self, offered: &Offered, budget: u64) -> bool {
        let at_ms = offered.arrival().at_ms;
        while let Some(Reverse((end_ms, tokens))) = self.ends.peek().copied().filter(|Reverse(end)| end.0 <= at_ms) {
            self.ends.pop();
            self.turn_to(end_ms / WINDOW_MS);
            self.count += tokens;
        }
        self.turn_to(at_ms / WINDOW_MS);
        let admits = self.count < budget;
        if admits {
            self.ends.push(Reverse((ends_ms(offered), offered.tokens)));
        }
        admits
    }
}

/// The newest value that holds at a moment; `place` moves along with time.
fn holds<T: Copy>(values: &[(f64, T)], place: &mut usize, at: f64) -> Option<T> {
    while values.get(*place + 1).is_some_and(|(from, _)| *from <= at) {
        *place += 1;
    }
    values.get(*place).map(|(_, value)| *value)
}

impl Fleet {
    fn serve(&self, trace: &[Offered], mut admits: impl FnMut(&Offered, u64) -> bool) -> Served {
        let (mut served, mut place) = (Served::default(), 0);
        for offered in trace {
            let budget = holds(&self.budgets, &mut place, offered.at).unwrap_or(0);
            let admitted = admits(offered, budget);
            served.note(offered, admitted);
        }
        served
    }

    /// One central bucket that knows everything at once. It reserves and settles as the members do.
    #[must_use]
    pub fn ideal(&self, trace: &[Offered]) -> Served {
        let mut bucket = Bucket::default();
        self.serve(trace, |offered, budget| bucket.offer(offered, budget))
    }

    /// Every member has a bucket of its own, of the budget over the members there are.
    #[must_use]
    pub fn split(&self, trace: &[Offered]) -> Served {
        let mut buckets: Vec<Bucket> = Vec::new();
        let (mut place, mut choice) = (0, Choice::default());
        self.serve(trace, |offered, budget| {
            let members = holds(&self.members, &mut place, offered.at).unwrap_or(0);
            let live = members as usize;
            if buckets.len() != live {
                buckets.resize_with(live, Bucket::default);
                choice = Choice::zipf(self.skew, live);
            }
            let turned = self.turn_at.is_some_and(|at| offered.at >= at);
            let bucket = choice.place(offered.dice, turned).and_then(|member| buckets.get_mut(member));
            bucket.is_some_and(|bucket| bucket.offer(offered, budget / u64::from(members.max(1))))
        })
    }

    /// LiteLLM's shared counter.
    #[must_use]
    pub fn litellm(&self, trace: &[Offered]) -> Served {
        let mut counter = MinuteCounter::default();
        self.serve(trace, |offered, budget| counter.offer(offered, budget))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::judge::ideal_admitted;
    use crate::simulate::size::SplitMix64;

    fn request(at: f64, tokens: u64, reserve: u64, latency: f64, dice: f64) -> Offered {
        Offered { at, tokens, reserve, latency, dice }
    }

    fn fleet(members: u32, budget: u64) -> Fleet {
        Fleet { members: vec![(0.0, members)], budgets: vec![(0.0, budget)], skew: 0.0, turn_at: None }
    }

    fn times(served: &Served) -> Vec<u64> {
        served.admitted.iter().map(|a| a.at_ms / 1000).collect()
    }

    #[test]
    fn a_reservation_is_settled_in_its_place_at_the_end() {
        let trace = [
            request(0.0, 40, 100, 5.0, 0.0),
            // 100 are reserved until 5 s.
            request(4.0, 40, 60, 5.0, 0.0),
            // 40 are left of them then: 60 more fit, and no 61.
            request(6.0, 60, 60, 5.0, 0.0),
            request(7.0, 1, 1, 5.0, 0.0),
            // The 40 leave 60 s after they were charged.
            request(59.0, 1, 1, 5.0, 0.0),
            request(60.0, 40, 40, 5.0, 0.0),
        ];
        let served = fleet(1, 100).ideal(&trace);
        assert_eq!(times(&served), [0, 6, 60]);
        assert_eq!(served.refused, [4_000, 7_000, 59_000]);
    }

    #[test]
    fn an_end_after_the_window_changes_nothing() {
        let trace =
            [request(0.0, 40, 100, 90.0, 0.0), request(61.0, 50, 100, 1.0, 0.0), request(91.0, 50, 50, 0.0, 0.0)];
        // At 91 s the first has ended, out of the window; the second was settled to 50.
        assert_eq!(times(&fleet(1, 100).ideal(&trace)), [0, 61, 91]);
    }

    #[test]
    fn without_reservations_it_is_the_judges_bucket() {
        let mut rng = SplitMix64::new(3);
        let mut at = 0.0;
        let trace: Vec<Offered> = (0..2_000)
            .map(|_| {
                at += rng.exponential() * 0.2;
                let tokens = 1 + rng.below(900) as u64;
                request(at, tokens, tokens, 1.0, rng.unit())
            })
            .collect();
        let arrivals: Vec<Arrival> = trace.iter().map(Offered::arrival).collect();
        assert_eq!(fleet(3, 60_000).ideal(&trace).admitted, ideal_admitted(&[], &arrivals, 60_000, WINDOW_MS).admitted);
    }

    #[test]
    fn a_split_wastes_what_the_cold_members_have() {
        // Two members of 50 each; all but one request go to the first.
        let trace = [
            request(0.0, 50, 50, 0.0, 0.1),
            request(1.0, 50, 50, 0.0, 0.1),
            request(2.0, 50, 50, 0.0, 0.9),
            request(60.0, 51, 51, 0.0, 0.1),
            request(60.5, 50, 50, 0.0, 0.1),
        ];
        assert_eq!(times(&fleet(2, 100).split(&trace)), [0, 2, 60]);
    }

    #[test]
    fn a_split_follows_the_members_and_the_budget() {
        let fleet = Fleet {
            members: vec![(0.0, 1), (10.0, 2)],
            budgets: vec![(0.0, 100), (20.0, 40)],
            skew: 0.0,
            turn_at: None,
        };
        let trace = [
            request(0.0, 60, 60, 0.0, 0.1),
            request(11.0, 50, 50, 0.0, 0.9),
            request(12.0, 1, 1, 0.0, 0.9),
            // 20 each from 20 s on.
            request(72.0, 20, 20, 0.0, 0.1),
            request(73.0, 21, 21, 0.0, 0.9),
        ];
        assert_eq!(times(&fleet.split(&trace)), [0, 11, 72]);
    }

    #[test]
    fn litellm_lets_bursts_and_edges_through() {
        let mut trace: Vec<Offered> = (0..5).map(|_| request(50.0, 100, 100, 2.0, 0.0)).collect();
        // They have ended, and fill the minute five times over.
        trace.push(request(55.0, 100, 100, 2.0, 0.0));
        // A new minute: nothing is counted yet.
        trace.extend((0..5).map(|_| request(60.0, 100, 100, 2.0, 0.0)));
        trace.push(request(63.0, 1, 1, 2.0, 0.0));
        let served = fleet(3, 100).litellm(&trace);
        assert_eq!(times(&served), [50, 50, 50, 50, 50, 60, 60, 60, 60, 60]);
        assert_eq!(served.refused, [55_000, 63_000]);
    }

    #[test]
    fn litellm_charges_the_minute_in_which_a_call_ends() {
        let trace =
            [request(59.0, 100, 100, 2.0, 0.0), request(59.5, 100, 100, 0.1, 0.0), request(62.0, 1, 1, 0.0, 0.0)];
        // Both get in. The first ends at 61 s: it counts there.
        let served = fleet(1, 100).litellm(&trace);
        assert_eq!((times(&served), served.refused), (vec![59, 59], vec![62_000]));
    }
}
