//! What one fault came to. Pure.

use std::fmt;

use super::faults::{Fault, Span};
use crate::judge::{self, Arrival};
use crate::scenario::bench::Step;

/// The fleet has recovered when the last 60 s hold this part of the budget again.
const RECOVERED: f64 = 0.95;

/// The figures of one fault.
#[derive(Clone, Debug)]
pub struct Row {
    title: String,
    /// The most of what was promised that any 60 s held, in tokens and as text.
    worst: String,
    used: f64,
    /// The least use that is wanted; `None`: nothing is promised of it.
    least_use: Option<f64>,
    /// The least part of its fair share that a pod had which was not there before, where that is promised.
    newcomers: Option<f64>,
    lost: u64,
    recovered_s: Option<f64>,
    /// What did not reach its figure; empty when all is well.
    missed: Vec<String>,
    /// Whether more was spent than was promised.
    broken: bool,
}

impl Row {
    /// Judges a step by what was promised for its fault. `spans` are the times in which another budget than `budget` held.
    pub fn new(
        fault: Fault,
        least_use: Option<f64>,
        step: &Step,
        admitted: &[Arrival],
        budget: u64,
        (began_ms, ended_ms): (u64, u64),
        spans: &[Span],
    ) -> Self {
        let mut missed = Vec::new();
        let mut worst = format!("{} ({})", judge::percent_up(step.worst, budget), step.worst);
        if step.worst > budget {
            missed.push(format!("the worst 60 s were {} of {budget} tokens", step.worst));
        }
        let mut used = step.used;
        for span in spans {
            let within: Vec<Arrival> =
                admitted.iter().copied().filter(|a| (span.from_ms..span.to_ms).contains(&a.at_ms)).collect();
            let tokens = judge::worst_60s_exact(&within).tokens;
            worst = format!("{worst}, {} of {} ({tokens})", judge::percent_up(tokens, span.budget), span.budget);
            if tokens > span.budget {
                missed.push(format!("the worst 60 s were {tokens} of {} tokens while that held", span.budget));
            }
            let possible = span.budget as f64 * (span.to_ms - span.from_ms) as f64 / judge::WINDOW_MS as f64;
            // An ideal bucket with a constant budget says nothing of a step in which it changed.
            used = within.iter().map(|a| a.tokens).sum::<u64>() as f64 / possible;
        }
        let broken = !missed.is_empty();
        if least_use.is_some_and(|least| used < least) {
            missed.push(format!("{:.1}% used", used * 100.0));
        }
        let recovered_s = recovered(admitted, budget, began_ms, ended_ms, step.to_ms);
        let title = fault.told().1;
        Self { title, worst, used, least_use, newcomers: None, lost: step.lost, recovered_s, missed, broken }
    }

    /// Judges also the pods that were not there before, each by the tokens that it had, of how many: at least this part of them
    /// is promised.
    pub fn with_newcomers(mut self, of_fair: &[(u64, u64)], least: f64) -> Self {
        let part = |(tokens, fair): (u64, u64)| tokens as f64 / fair.max(1) as f64;
        let (tokens, fair) = of_fair.iter().copied().min_by(|a, b| part(*a).total_cmp(&part(*b))).unwrap_or_default();
        self.newcomers = Some(part((tokens, fair)));
        if part((tokens, fair)) < least {
            self.missed.push(format!("a new pod had {tokens} of its {fair} tokens"));
        }
        self
    }

    /// The row of a fault that could not be made or measured.
    pub fn failed(fault: Fault, error: &anyhow::Error) -> Self {
        let missed = vec![format!("{error:#}").lines().next().unwrap_or_default().to_owned()];
        let title = fault.told().1;
        let worst = "-".to_owned();
        Self {
            title,
            worst,
            used: 0.0,
            least_use: fault.least_use(),
            newcomers: None,
            lost: 0,
            recovered_s: None,
            missed,
            broken: false,
        }
    }

    /// Whether it used too little or could not be made, as somebody else may have had the CPU; never for what is promised.
    pub const fn may_be_repeated(&self) -> bool {
        !self.missed.is_empty() && !self.broken
    }

    /// What did not reach its figure, each with the name of the fault.
    pub fn misses(&self) -> impl Iterator<Item = String> {
        self.missed.iter().map(|missed| format!("{}: {missed}", self.title))
    }

    fn share(&self) -> String {
        self.newcomers.map_or_else(String::new, |part| format!("; the new pod {:.0} % of its fair share", part * 100.0))
    }

    fn recovery(&self) -> String {
        self.recovered_s.map_or_else(|| "not in 65 s".to_owned(), |seconds| format!("{seconds:.0} s"))
    }
}

/// Seconds from the end of the fault until the last 60 s hold nearly all of the budget; 0 when they always did.
fn recovered(admitted: &[Arrival], budget: u64, began_ms: u64, ended_ms: u64, to_ms: u64) -> Option<f64> {
    let slots = judge::slots(admitted, began_ms - judge::WINDOW_MS, to_ms);
    let full = |tokens: u64| tokens as f64 >= budget as f64 * RECOVERED;
    let slot = |at_ms: u64| usize::try_from((at_ms + judge::WINDOW_MS - began_ms) / judge::SLOT_MS).unwrap_or(0);
    let rolling = judge::rolling_60s(&slots);
    let after = rolling.get(slot(ended_ms)..)?;
    after.iter().position(|tokens| full(*tokens)).map(|slots| slots as f64 * judge::SLOT_MS as f64 / 1000.0)
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: worst 60 s {}, {:.1}% used{}, {} lost, recovered after {}",
            self.title,
            self.worst,
            self.used * 100.0,
            self.share(),
            self.lost,
            self.recovery()
        )?;
        self.missed.iter().try_for_each(|missed| write!(f, "\n  MISSED: {missed}"))
    }
}

/// The rows as a table for the documentation.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| Fault | Worst 60 s of the budget (tokens) | Used (wanted) | Lost to anything but 429 | Recovered after | |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        text += &format!(
            "| {} | {} | {:.1} % ({}){} | {} | {} | {} |\n",
            row.title,
            row.worst,
            row.used * 100.0,
            row.least_use.map_or_else(|| "nothing promised".to_owned(), |least| format!("{:.0} %", least * 100.0)),
            row.share(),
            row.lost,
            row.recovery(),
            if row.missed.is_empty() { "ok".to_owned() } else { format!("**missed**: {}", row.missed.join("; ")) }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_recovers_when_the_window_is_full_again() {
        // 100 tokens a second until second 100, nothing until 120, then again.
        let admitted: Vec<Arrival> =
            (0..200).filter(|s| !(100..120).contains(s)).map(|s| Arrival { at_ms: s * 1000, tokens: 100 }).collect();
        assert_eq!(recovered(&admitted, 6_000, 100_000, 100_000, 200_000), Some(0.0));
        // At 120 s 4,000 are in the window; what leaves it until 160 s is as much as what comes.
        let after = recovered(&admitted, 6_000, 100_000, 120_000, 200_000);
        assert!(after.is_some_and(|seconds| (55.0..61.0).contains(&seconds)), "{after:?}");
        assert_eq!(recovered(&admitted, 7_000, 100_000, 120_000, 200_000), None);
    }

    #[test]
    fn each_new_pod_has_to_have_its_share() {
        let row = Row { missed: Vec::new(), ..Row::failed(Fault::Joins, &anyhow::anyhow!("")) };
        let missed = |of_fair: &[(u64, u64)]| row.clone().with_newcomers(of_fair, 0.9).misses().next();
        assert_eq!(missed(&[(15_000, 15_000), (12_600, 14_000)]), None);
        assert!(
            missed(&[(12_600, 14_000), (13_499, 15_000)])
                .is_some_and(|missed| missed.ends_with("had 13499 of its 15000 tokens"))
        );
        assert!(missed(&[]).is_some_and(|missed| missed.ends_with("had 0 of its 0 tokens")));
    }
}
