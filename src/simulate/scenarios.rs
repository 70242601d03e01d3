//! The cases that TokenBudget is held to, each with what it has to reach, and how that is measured.

use super::choice::Choice;
use super::compare::{Comparison, Contender, ms};
use super::demand::Offered;
use super::fault::Fault;
use super::judge::{Arrival, RollingWindow, WINDOW_MS, tokens_in};
use super::setup::{Setup, Skew};
use super::size::Size;
use crate::plan::max_min;

/// When something happens in a case, in seconds: everything has settled.
const EVENT: f64 = 150.0;

/// What a case has to reach. Parts are 0 to 1, times are seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// Tokens admitted, as a part of what the ideal bucket admitted: at least.
    UseOfIdeal(f64),
    /// Requests refused that the ideal bucket did not, as a part of those offered: at most.
    RefusedBeyond(f64),
    /// Tokens admitted, as a part of the budget: at least.
    UseOfBudget(f64),
    /// From so long after the turn-over on the last 60 s hold 99 % of the ideal bucket's: at most.
    BackWithin(f64),
    /// From so long after a cut on the last 60 s are under the new budget: at most.
    UnderWithin(f64),
    /// What the newest member used in 5 s to 65 s after its start, as a part of its max-min share of what there was to
    /// spend in each 5 s: at least.
    NewestShare(f64),
}

/// A bar and what was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// What has to be reached.
    pub bar: Bar,
    /// What was.
    pub value: f64,
    /// Whether that is enough.
    pub met: bool,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// How many members.
    pub members: String,
    /// What happens.
    pub what: String,
    /// The run; its seed is the first one.
    pub setup: Setup,
    /// It is run with so many seeds, and judged by the sum.
    pub seeds: u64,
    /// What it has to reach.
    pub bars: Vec<Bar>,
    /// Stretches whose use is shown beside, in seconds.
    pub shown: Vec<(&'static str, f64, f64)>,
}

/// All runs of a case.
#[derive(Debug)]
pub struct Runs {
    /// By seed.
    pub runs: Vec<(Vec<Offered>, Comparison)>,
}

fn case(members: usize, what: &str, bars: &[Bar], change: impl FnOnce(&mut Setup)) -> Case {
    let mut setup = Setup { members, most: u32::try_from(members).unwrap_or(u32::MAX), ..Setup::default() };
    change(&mut setup);
    Case {
        members: members.to_string(),
        what: what.to_owned(),
        setup,
        seeds: 10,
        bars: bars.to_vec(),
        shown: Vec::new(),
    }
}

fn happens(setup: &mut Setup, fault: Fault, lasts: f64) {
    setup.faults.push((EVENT, fault));
    setup.judged = (EVENT, EVENT + lasts);
    setup.seconds = EVENT + lasts + 60.0;
}

/// The table of the issue, in its order. Demand is 1.2 times the budget of 600,000, Zipf 1.1, lognormal sizes of mean 500 and
/// coefficient of variation 2, unless the row says otherwise.
#[must_use]
pub fn table(seed: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    for members in [5, 20, 100, 1000] {
        cases.push(case(members, "saturated", &[Bar::UseOfIdeal(0.99)], |_| {}));
    }
    for members in [20, 100] {
        let bars = [Bar::UseOfIdeal(0.998), Bar::RefusedBeyond(0.002)];
        cases.push(case(members, "load 0.9", &bars, |setup| setup.load = 0.9));
    }
    let small = "budget 60,000 (a share is one request)";
    cases.push(case(100, small, &[Bar::UseOfIdeal(0.985)], |setup| setup.budget = 60_000));
    let over = "reservations twice the actual use, 5 s latency (so does the ideal bucket)";
    cases.push(case(20, over, &[Bar::UseOfIdeal(0.99)], |setup| {
        (setup.over, setup.latency) = (2.0, Size::fixed(5.0));
    }));
    let mut turn = case(20, "demand turns over to other members at once", &[Bar::BackWithin(3.0)], |setup| {
        (setup.turn_at, setup.judged, setup.seconds) = (Some(300.0), (300.0, 360.0), 360.0);
    });
    // A bar at every tenth of a second: what is over it is chance with fewer.
    turn.seeds = 40;
    turn.shown = vec![("first 3 s", 300.0, 303.0), ("3 s to 15 s", 303.0, 315.0), ("15 s to 60 s", 315.0, 360.0)];
    cases.push(turn);
    let mut scaled = case(4, "4, 64 after 150 s, 4 after 330 s, saturated", &[Bar::UseOfIdeal(0.98)], |setup| {
        setup.most = 64;
        setup.faults = vec![(EVENT, Fault::Scale(64)), (330.0, Fault::Scale(4))];
    });
    scaled.shown = vec![("minute from 64 on", EVENT, 210.0), ("minute from 4 on", 330.0, 390.0)];
    scaled.members = "4 -> 64 -> 4".to_owned();
    cases.push(scaled);
    for skew in [Skew::Zipf(1.1), Skew::Zipf(0.0)] {
        for members in [2, 20] {
            let even = if skew == Skew::Zipf(0.0) { ", even demand" } else { "" };
            let what = format!("saturated, one more member starts from 0{even}");
            let joins = case(members, &what, &[Bar::UseOfIdeal(0.985), Bar::NewestShare(0.9)], |setup| {
                setup.most += 1;
                happens(setup, Fault::Scale(members + 1), 120.0);
                setup.skew = skew.clone();
            });
            cases.push(joins);
        }
    }
    cases.push(case(20, "budget cut to 40 %, raised again after 180 s", &[Bar::UnderWithin(65.0)], |setup| {
        happens(setup, Fault::Budget(40), 300.0);
        setup.faults.push((EVENT + 180.0, Fault::Budget(100)));
    }));
    cases.push(case(20, "operator away for 10 minutes", &[Bar::UseOfIdeal(0.99)], |setup| {
        happens(setup, Fault::OperatorAway(600.0), 600.0);
    }));
    let mut away = case(20, "Redis away for 20 s (inside the lease)", &[Bar::UseOfIdeal(0.98)], |setup| {
        setup.faults = vec![(EVENT, Fault::LedgerDown(20.0))];
    });
    away.shown = vec![("while it is away", EVENT, EVENT + 20.0), ("the minute after", EVENT + 20.0, EVENT + 80.0)];
    cases.push(away);
    let lost = "Redis away for 5 minutes, maxReplicas 24, even demand";
    cases.push(case(20, lost, &[Bar::UseOfBudget(0.6)], |setup| {
        (setup.most, setup.skew) = (24, Skew::Zipf(0.0));
        happens(setup, Fault::LedgerDown(300.0), 300.0);
    }));
    cases.iter_mut().for_each(|case| case.setup.seed = seed);
    cases
}

impl Case {
    /// Runs it with all its seeds; `tell` hears the seed's number and how far it is, in seconds.
    #[must_use]
    pub fn run(&self, tell: &mut dyn FnMut(u64, f64)) -> Runs {
        let run = |number: u64, tell: &mut dyn FnMut(u64, f64)| {
            let setup = Setup { seed: self.setup.seed + number, ..self.setup.clone() };
            let trace = setup.trace();
            let comparison = Comparison::of(&setup, &trace, &mut |at| tell(number, at));
            (trace, comparison)
        };
        Runs { runs: (0..self.seeds).map(|number| run(number, tell)).collect() }
    }

    /// What was reached of each bar.
    #[must_use]
    pub fn findings(&self, runs: &Runs) -> Vec<Finding> {
        self.bars.iter().map(|bar| self.finding(*bar, runs)).collect()
    }

    fn finding(&self, bar: Bar, runs: &Runs) -> Finding {
        let setup = &self.setup;
        let (value, met) = match bar {
            Bar::UseOfIdeal(least) => at_least(runs.use_of_ideal(), least),
            Bar::RefusedBeyond(most) => at_most(runs.refused_beyond(), most),
            Bar::UseOfBudget(least) => at_least(runs.use_of_budget(setup), least),
            Bar::BackWithin(most) => at_most(runs.back_after(setup), most),
            Bar::UnderWithin(most) => at_most(runs.under_after(setup), most),
            Bar::NewestShare(least) => at_least(runs.newest_share(setup, 5.0), least),
        };
        Finding { bar, value, met }
    }
}

fn at_least(value: f64, least: f64) -> (f64, bool) {
    (value, value >= least)
}

fn at_most(value: f64, most: f64) -> (f64, bool) {
    (value, value <= most)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

impl Runs {
    /// The figures of a contender over all seeds.
    #[must_use]
    pub fn tally(&self, who: Contender) -> super::compare::Tally {
        self.runs.iter().map(|(_, c)| *c.tally(who)).reduce(super::compare::Tally::and).unwrap_or_default()
    }

    /// The fleet's tokens over the ideal bucket's.
    #[must_use]
    pub fn use_of_ideal(&self) -> f64 {
        ratio(self.tally(Contender::TokenBudget).tokens, self.tally(Contender::Ideal).tokens)
    }

    /// The same in a stretch, in seconds.
    #[must_use]
    pub fn use_in(&self, from: f64, to: f64) -> f64 {
        let tokens = |who| {
            let within = |c: &Comparison| tokens_in(&c.served(who).admitted, ms(from), ms(to));
            self.runs.iter().map(|(_, comparison)| within(comparison)).sum()
        };
        ratio(tokens(Contender::TokenBudget), tokens(Contender::Ideal))
    }

    /// Requests refused beyond the ideal bucket, of those offered; negative if it refused more.
    #[must_use]
    pub fn refused_beyond(&self) -> f64 {
        let offered: u64 = self.runs.iter().map(|(_, c)| c.offered).sum();
        let refused = |who| self.tally(who).refused as f64;
        (refused(Contender::TokenBudget) - refused(Contender::Ideal)) / offered.max(1) as f64
    }

    fn use_of_budget(&self, setup: &Setup) -> f64 {
        let minutes = (setup.judged.1 - setup.judged.0) / 60.0 * self.runs.len() as f64;
        self.tally(Contender::TokenBudget).tokens as f64 / (setup.budget as f64 * minutes)
    }

    /// How long after the turn-over the last 60 s held under 99 % of the ideal bucket's for the last time, within a minute.
    fn back_after(&self, setup: &Setup) -> f64 {
        let turn = ms(setup.turn_at.unwrap_or(0.0));
        let sums = |who: Contender| {
            let mut sums = vec![0; 600];
            for (_, comparison) in &self.runs {
                for (sum, (_, tokens)) in sums.iter_mut().zip(rolling(&comparison.served(who).admitted, turn)) {
                    *sum += tokens;
                }
            }
            sums
        };
        let (own, ideal) = (sums(Contender::TokenBudget), sums(Contender::Ideal));
        let short = own.iter().zip(&ideal).rposition(|(own, ideal)| ratio(*own, *ideal) < 0.99);
        short.map_or(0.0, |step| (step + 1) as f64 / 10.0)
    }

    /// How long after the first cut the last 60 s were above the new budget for the last time.
    fn under_after(&self, setup: &Setup) -> f64 {
        let budgets = setup.budgets();
        let Some(&(at, budget)) = budgets.get(1) else { return 0.0 };
        let until = budgets.get(2).map_or(setup.seconds, |next| next.0);
        let steps = ((until - at) * 10.0) as usize;
        let last = |comparison: &Comparison| {
            let admitted = &comparison.served(Contender::TokenBudget).admitted;
            let above = rolling(admitted, ms(at)).take(steps).filter(|(_, tokens)| *tokens > budget);
            above.last().map_or(0.0, |(step, _)| (step + 1) as f64 / 10.0)
        };
        self.runs.iter().map(|(_, comparison)| last(comparison)).fold(0.0, f64::max)
    }

    /// What the newest member used in the minute from 5 s after its start, over its max-min share of what the fleet could
    /// spend in each stretch of so many seconds: in a rolling minute there are seconds in which hardly anything leaves the
    /// window, and nobody has anything to share.
    #[must_use]
    pub fn newest_share(&self, setup: &Setup, stretch: f64) -> f64 {
        let newest = setup.members;
        let choice = Choice::zipf(setup.exponent(), newest + 1);
        let (mut used, mut share) = (0, 0);
        for (trace, comparison) in &self.runs {
            let mut from = EVENT + 5.0;
            while from < EVENT + 65.0 {
                let within = |at: f64| (from..from + stretch).contains(&at);
                let mut offered = vec![0; newest + 1];
                for request in trace.iter().filter(|o| within(o.at)) {
                    if let Some(place) = choice.place(request.dice, false) {
                        offered[place] += request.tokens;
                    }
                }
                let admitted = || comparison.run.admitted.iter().filter(|a| within(a.0));
                let there_was = admitted().map(|a| a.2).sum();
                share += max_min(there_was, &offered).get(newest).copied().unwrap_or(0);
                used += admitted().filter(|a| a.1 == newest).map(|a| a.2).sum::<u64>();
                from += stretch;
            }
        }
        ratio(used, share)
    }
}

/// Tokens of the last 60 s at each tenth of a second from a moment on, with the number of the step.
fn rolling(admitted: &[Arrival], from_ms: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut window = RollingWindow::new(WINDOW_MS);
    let mut next = 0;
    (0..).map(move |step| {
        let now = from_ms + step as u64 * 100;
        while let Some(arrival) = admitted.get(next).filter(|a| a.at_ms <= now) {
            window.put(*arrival);
            next += 1;
        }
        (step, window.sum_at(now))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_issues() {
        let cases = table(7);
        assert_eq!(cases.len(), 18);
        assert!(cases.iter().all(|case| case.setup.seed == 7 && !case.bars.is_empty()));
        assert!(cases.iter().all(|case| case.setup.judged.1 <= case.setup.seconds));
        assert!(cases.iter().all(|case| !case.setup.rough && case.setup.most as usize >= case.setup.members));
    }

    #[test]
    fn the_last_minute_by_tenths() {
        let admitted = [(0, 5), (100, 7), (60_050, 1)].map(|(at_ms, tokens)| Arrival { at_ms, tokens });
        let sums: Vec<u64> = rolling(&admitted, 59_900).take(4).map(|(_, tokens)| tokens).collect();
        assert_eq!(sums, [12, 7, 1, 1]);
    }

    #[test]
    fn a_missed_bar_says_so() {
        assert_eq!(at_least(0.97, 0.98), (0.97, false));
        assert_eq!(at_most(3.1, 3.0), (3.1, false));
        assert_eq!(at_most(-0.1, 0.002), (-0.1, true));
    }
}
