//! One run of one way under one demand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::judge::{self, Arrival, Ideal};
use crate::load::LoadReport;

/// What one run came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// The fullest 60 s, in tokens.
    pub worst_60s: u64,
    /// The fullest minute of the clock, in tokens.
    pub worst_minute: u64,
    /// What was admitted of what the ideal bucket would have admitted, at most the budget in any 60 s.
    pub used: f64,
    /// The same of the ideal bucket, and of its minutes.
    pub ideal_worst: (u64, u64),
    /// Requests that got a 429 less those that the ideal bucket refuses; negative where too much was admitted.
    pub refused_beyond: i64,
    /// Latency of what was answered: p50 and p99 in milliseconds.
    pub latency_ms: Option<(f64, f64)>,
    /// Commands that Redis ran for each request that was offered; `None` when Redis was gone.
    pub commands: Option<f64>,
    /// Requests that failed with anything but 429.
    pub lost: u64,
    /// Requests that the load did not send, as too many had no answer yet.
    pub dropped: u64,
    /// How much later than planned a request left at most, in milliseconds.
    pub late_ms: f64,
}

/// One run, with what its figures are of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// What it came to.
    pub figures: Figures,
    /// What the provider admitted, in Unix milliseconds.
    pub admitted: Vec<Arrival>,
    /// What one bucket with a rolling minute would have.
    pub ideal: Ideal,
    /// When it began, in Unix milliseconds.
    pub from_ms: u64,
    /// When requests were refused, in Unix milliseconds.
    pub refused_ms: Vec<u64>,
    /// The commit of this repository that ran.
    pub commit: String,
}

impl Run {
    /// Judges a load by the provider's count.
    #[must_use]
    pub fn new(report: &LoadReport, admitted: Vec<Arrival>, budget: u64, commands: Option<u64>, commit: &str) -> Self {
        let summary = report.summary();
        let ideal = judge::ideal_admitted(&[], &report.arrivals(), budget, judge::WINDOW_MS);
        let offered = report.offered.len();
        let ideal_refused = offered - ideal.admitted.len().min(offered);
        let limited = crate::load::Class::Limited;
        let figures = Figures {
            worst_60s: judge::worst_60s_exact(&admitted).tokens,
            worst_minute: worst_minute(&admitted),
            ideal_worst: (judge::worst_60s_exact(&ideal.admitted).tokens, worst_minute(&ideal.admitted)),
            used: judge::used(&admitted, &ideal.admitted, report.start_ms, report.offered_until_ms()),
            refused_beyond: signed(summary.counts.limited) - signed(ideal_refused as u64),
            latency_ms: summary.ok_latency_ms.map(|latency| (latency.p50, latency.p99)),
            commands: commands.map(|commands| commands as f64 / offered.max(1) as f64),
            lost: summary.counts.lost,
            dropped: summary.counts.dropped,
            late_ms: report.late_ms_max,
        };
        Self {
            figures,
            from_ms: report.start_ms,
            refused_ms: report.offered.iter().filter(|o| o.class == limited).map(|o| o.at_ms).collect(),
            admitted,
            ideal,
            commit: commit.to_owned(),
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The fullest minute of the clock, which is what LiteLLM's limiters count by.
fn worst_minute(admitted: &[Arrival]) -> u64 {
    let mut minutes: BTreeMap<u64, u64> = BTreeMap::new();
    for arrival in admitted {
        *minutes.entry(arrival.at_ms / judge::WINDOW_MS).or_default() += arrival.tokens;
    }
    minutes.into_values().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_the_clock_can_hide_what_60_seconds_show() {
        let admitted = [Arrival { at_ms: 59_000, tokens: 90 }, Arrival { at_ms: 61_000, tokens: 80 }];
        assert_eq!(worst_minute(&admitted), 90);
        assert_eq!(judge::worst_60s_exact(&admitted).tokens, 170);
    }
}
