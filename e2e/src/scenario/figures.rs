//! What else the main job has to reach: a late joiner's part, and how fast tokens move to a hot pod. Pure.

use std::collections::BTreeMap;

use crate::judge::{self, Arrival};
use crate::load::{Class, LoadReport, Offered};

/// The most tokens that each pod answered in any 60 s within `from_ms <= t < to_ms`.
#[must_use]
pub fn best_minute_by_pod(report: &LoadReport, from_ms: u64, to_ms: u64) -> BTreeMap<String, u64> {
    best_minutes(report.offered.iter().filter(|o| o.class == Class::Ok && (from_ms..to_ms).contains(&o.at_ms)))
}

/// The same of one ideal bucket that gets all of these requests, after what was admitted before them.
#[must_use]
pub fn ideal_minute_by_pod(
    report: &LoadReport,
    admitted: &[Arrival],
    budget: u64,
    from_ms: u64,
    to_ms: u64,
) -> BTreeMap<String, u64> {
    let offered: Vec<&Offered> = report.offered.iter().filter(|o| o.class != Class::Dropped).collect();
    let ideal = judge::ideally_admitted(admitted, offered, |o| arrival(o), budget, judge::WINDOW_MS);
    best_minutes(ideal.into_iter().filter(|o| (from_ms..to_ms).contains(&o.at_ms)))
}

fn best_minutes<'a>(offered: impl Iterator<Item = &'a Offered>) -> BTreeMap<String, u64> {
    let mut arrivals: BTreeMap<String, Vec<Arrival>> = BTreeMap::new();
    for offered in offered {
        if let Some(pod) = &offered.pod {
            arrivals.entry(pod.to_string()).or_default().push(arrival(offered));
        }
    }
    arrivals.into_iter().map(|(pod, arrivals)| (pod, judge::worst_60s_exact(&arrivals).tokens)).collect()
}

const fn arrival(offered: &Offered) -> Arrival {
    Arrival { at_ms: offered.at_ms, tokens: offered.tokens }
}

/// How much later than an ideal bucket the provider had admitted `tokens`, in seconds: the largest delay over all amounts up
/// to it. `None` when it never came that far.
#[must_use]
pub fn lag(admitted: &[Arrival], ideal: &[Arrival], tokens: u64) -> Option<f64> {
    let reached = |arrivals: &[Arrival]| {
        let mut sorted = arrivals.to_vec();
        sorted.sort_by_key(|a| a.at_ms);
        let mut sum = 0;
        sorted.into_iter().map(move |a| {
            sum += a.tokens;
            (sum, a.at_ms)
        })
    };
    let mine: Vec<(u64, u64)> = reached(admitted).collect();
    let mut worst = 0_u64;
    for (sum, at_ms) in reached(ideal) {
        let goal = sum.min(tokens);
        let (_, mine_ms) = *mine.iter().find(|(have, _)| *have >= goal)?;
        worst = worst.max(mine_ms.saturating_sub(at_ms));
        if sum >= tokens {
            return Some(worst as f64 / 1000.0);
        }
    }
    None
}

/// The ideal bucket's admissions of what was offered from `from_ms` on, after what was admitted before.
#[must_use]
pub fn ideal_from(admitted: &[Arrival], report: &LoadReport, budget: u64, from_ms: u64) -> Vec<Arrival> {
    let ideal = judge::ideal_admitted(admitted, &report.arrivals(), budget, judge::WINDOW_MS);
    ideal.admitted.into_iter().filter(|a| a.at_ms >= from_ms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, tokens: u64) -> Arrival {
        Arrival { at_ms: seconds * 1000, tokens }
    }

    #[test]
    fn lag_is_the_largest_delay_on_the_way() {
        let ideal = [at(0, 10), at(1, 10), at(2, 10), at(3, 10)];
        assert_eq!(lag(&ideal, &ideal, 30), Some(0.0));
        let late = [at(0, 10), at(4, 10), at(4, 10), at(4, 10)];
        assert_eq!(lag(&late, &ideal, 30), Some(3.0));
        assert_eq!(lag(&late, &ideal, 50), None);
    }
    #[test]
    fn a_pod_had_its_share_when_one_bucket_would_have_given_it_no_more() {
        let to = |pod: &str, seconds: u64, tokens: u64, class: Class| Offered {
            at_ms: seconds * 1000,
            tokens,
            class,
            status: None,
            pod: Some(pod.into()),
            latency_ms: 0.0,
            retry_after_s: None,
            retried_connect: false,
            error: None,
        };
        let offered = vec![
            to("a", 70, 60, Class::Ok),
            to("b", 71, 30, Class::Ok),
            to("b", 72, 30, Class::Limited),
            to("b", 99, 1, Class::Dropped),
        ];
        let report = LoadReport { offered, ..LoadReport::default() };
        assert_eq!(best_minute_by_pod(&report, 0, 100_000)["b"], 30);
        // 10 of the 100 are spent until 80 s.
        assert_eq!(ideal_minute_by_pod(&report, &[at(20, 10)], 100, 0, 100_000)["b"], 30);
        assert_eq!(ideal_minute_by_pod(&report, &[at(20, 10)], 130, 0, 100_000)["b"], 60);
        assert_eq!(ideal_minute_by_pod(&report, &[], 130, 72_000, 100_000)["b"], 30);
    }
}
