//! One run beside its baselines, over the same trace: what each used, refused, and held at its fullest.

use serde::Serialize;

use super::baseline::{Fleet, Served};
use super::demand::Offered;
use super::judge::{Arrival, RollingWindow, longest_gap, tokens_in};
use super::setup::Setup;
use super::world::{Run, World};

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Contender {
    /// The simulated fleet.
    TokenBudget,
    /// One central bucket.
    Ideal,
    /// A bucket for each member, of the budget over the members.
    Split,
    /// LiteLLM's shared counter.
    Litellm,
}

impl Contender {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 4] = [Self::TokenBudget, Self::Ideal, Self::Split, Self::Litellm];

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TokenBudget => "TokenBudget",
            Self::Ideal => "ideal central bucket",
            Self::Split => "static split",
            Self::Litellm => "LiteLLM's minute counter",
        }
    }
}

/// What became of the demand in the stretch that is judged; the fullest minute is of the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Tokens admitted.
    pub tokens: u64,
    /// Requests admitted.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// The fullest 60 s, in tokens.
    pub worst60s: u64,
    /// The longest time without an admission, in ms.
    pub longest_gap_ms: u64,
}

impl Tally {
    fn of(served: &Served, worst60s: u64, judged: (u64, u64)) -> Self {
        let within = |ms: u64| (judged.0..judged.1).contains(&ms);
        Self {
            tokens: tokens_in(&served.admitted, judged.0, judged.1),
            requests: served.admitted.iter().filter(|a| within(a.at_ms)).count() as u64,
            refused: served.refused.iter().filter(|at| within(**at)).count() as u64,
            worst60s,
            longest_gap_ms: longest_gap(&served.admitted, judged.0, judged.1),
        }
    }

    /// Adds the same stretch of another seed.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            requests: self.requests + other.requests,
            refused: self.refused + other.refused,
            worst60s: self.worst60s.max(other.worst60s),
            longest_gap_ms: self.longest_gap_ms.max(other.longest_gap_ms),
        }
    }
}

/// A run and its baselines.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What became of each request, by contender as in [`Contender::ALL`].
    pub served: [Served; 4],
    /// The figures, in the same order.
    pub tallies: [Tally; 4],
    /// Requests offered in the stretch that is judged.
    pub offered: u64,
    /// The fleet, as the baselines had it.
    pub fleet: Fleet,
    /// The simulation's own record.
    pub run: Run,
}

impl Comparison {
    /// Runs the simulation and the baselines; `tell` hears how far the simulation is, in seconds.
    #[must_use]
    pub fn of(setup: &Setup, trace: &[Offered], tell: &mut dyn FnMut(f64)) -> Self {
        let run = World::new(&setup.config(), trace).run_telling(tell);
        let fleet = Fleet {
            members: run.replicas.clone(),
            budgets: setup.budgets(),
            skew: setup.exponent(),
            turn_at: setup.turn_at,
        };
        let own = Served {
            admitted: run.admitted.iter().map(|a| Arrival { at_ms: ms(a.0), tokens: a.2 }).collect(),
            refused: run.refusals.iter().map(|at| ms(*at)).collect(),
        };
        let served = [own, fleet.ideal(trace), fleet.split(trace), fleet.litellm(trace)];
        let judged = (ms(setup.judged.0), ms(setup.judged.1));
        let exact = run.admitted.iter().map(|a| (a.0, a.2));
        let mut tallies = [Tally::default(); 4];
        for (tally, served) in tallies.iter_mut().zip(&served) {
            *tally =
                Tally::of(served, worst60s(served.admitted.iter().map(|a| (a.at_ms as f64 / 1e3, a.tokens))), judged);
        }
        tallies[0].worst60s = worst60s(exact);
        let offered = trace.iter().filter(|o| o.at >= setup.judged.0 && o.at < setup.judged.1).count() as u64;
        Self { served, tallies, offered, fleet, run }
    }

    /// The figures of one.
    #[must_use]
    pub const fn tally(&self, who: Contender) -> &Tally {
        &self.tallies[who as usize]
    }

    /// What became of the requests of one.
    #[must_use]
    pub const fn served(&self, who: Contender) -> &Served {
        &self.served[who as usize]
    }
}

/// Whole milliseconds of a time in seconds.
#[must_use]
pub fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

/// The fullest 60 s of admissions (seconds, tokens), exact to the microsecond.
fn worst60s(admitted: impl Iterator<Item = (f64, u64)>) -> u64 {
    let mut window = RollingWindow::new(60_000_000);
    let sums = admitted.map(|(at, tokens)| {
        let at_us = (at * 1e6) as u64;
        window.put(Arrival { at_ms: at_us, tokens });
        window.sum_at(at_us)
    });
    sums.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_minute_is_exact() {
        assert_eq!(worst60s([(0.0, 5), (59.9999, 5), (60.0, 7)].into_iter()), 12);
        assert_eq!(worst60s(std::iter::empty()), 0);
    }

    #[test]
    fn a_tally_counts_the_stretch_that_is_judged() {
        let served = Served {
            admitted: [(0, 1), (1_000, 2), (5_000, 4)].map(|(at_ms, tokens)| Arrival { at_ms, tokens }).to_vec(),
            refused: vec![999, 1_500, 6_000],
        };
        let tally = Tally::of(&served, 7, (1_000, 6_000));
        assert_eq!(tally, Tally { tokens: 6, requests: 2, refused: 1, worst60s: 7, longest_gap_ms: 4_000 });
        let both = tally.and(Tally { tokens: 1, worst60s: 9, ..Tally::default() });
        assert_eq!((both.tokens, both.worst60s, both.longest_gap_ms), (7, 9, 4_000));
    }

    #[test]
    fn a_small_fleet_is_compared_over_one_trace_and_repeats() {
        let setup = Setup { members: 3, most: 3, seconds: 150.0, judged: (90.0, 150.0), ..Setup::default() };
        let trace = setup.trace();
        let [one, two] = [0, 1].map(|_| Comparison::of(&setup, &trace, &mut |_| {}));
        assert_eq!(one.served, two.served);
        assert_eq!(one.run.breach, None);
        let used = |who| one.tally(who).tokens;
        assert!(used(Contender::Split) < used(Contender::Ideal));
        assert!(one.tally(Contender::TokenBudget).worst60s <= setup.budget);
        assert!(one.tally(Contender::Litellm).worst60s > setup.budget);
        let own = one.served(Contender::TokenBudget);
        assert!(own.admitted.len() + own.refused.len() <= trace.len());
    }
}
