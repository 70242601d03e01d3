//! What all members together say of the traffic that they saw. Sums saturate.

use std::collections::BTreeMap;

use super::{Calls, MemberState, Minute, OutsideKind, OutsideUsage, Report, Reserved};

/// What ended well in `minute` (unix time in minutes) on the limit's deployments, in all of these processes. None while
/// one of them has not said so, or cannot: what is missing would be taken for traffic of others.
///
/// A process that lists its limits without this one has no deployment of it, and adds nothing.
#[must_use]
pub fn seen_by<'a>(reports: impl IntoIterator<Item = &'a Report>, limit: &str, minute: u64) -> Option<Minute> {
    let mut sum = Minute { at: minute, ..Minute::default() };
    for report in reports {
        if report.private || report.state == MemberState::Degraded {
            return None;
        }
        for usage in report.limits.as_ref()?.iter().filter(|usage| usage.name == limit) {
            let said = usage.minute.filter(|said| said.at == minute)?;
            sum.tokens = sum.tokens.saturating_add(said.tokens);
            sum.requests = sum.requests.saturating_add(said.requests);
        }
    }
    Some(sum)
}

/// What was reserved for the fleet's calls, as a percentage of what they used. The calls themselves stay in the
/// processes, so `p50` is the median of the processes' own medians, each counted as often as it has calls; `p99` is the
/// largest of theirs: of all calls together, 99 of 100 had at most that.
#[must_use]
pub fn reserved_by<'a>(reports: impl IntoIterator<Item = &'a Report>, limit: &str) -> Option<Reserved> {
    let limits = reports.into_iter().filter_map(|report| report.limits.as_ref()).flatten();
    let mut all: Vec<Reserved> =
        limits.filter(|usage| usage.name == limit).filter_map(|usage| usage.reserved).collect();
    all.sort_by_key(|reserved| reserved.p50);
    let calls = all.iter().fold(0, |sum: u64, reserved| sum.saturating_add(reserved.calls));
    let mut below = 0_u64;
    let median = all.iter().find(|reserved| {
        below = below.saturating_add(reserved.calls);
        below >= calls.div_ceil(2)
    })?;
    let p99 = all.iter().map(|reserved| reserved.p99).max()?;
    Some(Reserved { calls, p50: median.p50, p99 })
}

/// A process tells of a minute up to so many minutes after it, as its report is made anew only now and then.
const TOLD_WITHIN: u64 = 2;

/// Requests that waited for room of this limit in the last whole minute that each process told of; none while none did.
#[must_use]
pub fn waited_by<'a>(reports: impl IntoIterator<Item = &'a Report>, limit: &str, minute: u64) -> Option<u64> {
    let limits = reports.into_iter().filter_map(|report| report.limits.as_ref()).flatten();
    let told = limits.filter(|usage| usage.name == limit).filter_map(|usage| usage.minute);
    told.filter(|told| told.at + TOLD_WITHIN >= minute).map(|told| told.waited).reduce(u64::saturating_add)
}

/// Calls of the ledger in the last whole minute that each process told of; none while none did. `at` is `minute`.
#[must_use]
pub fn calls_by<'a>(reports: impl IntoIterator<Item = &'a Report>, minute: u64) -> Option<Calls> {
    let told = reports.into_iter().filter_map(|report| report.calls).filter(|told| told.at + TOLD_WITHIN >= minute);
    told.reduce(|a, b| Calls {
        at: minute,
        beats: a.beats.saturating_add(b.beats),
        draws: a.draws.saturating_add(b.draws),
    })
}

/// What all these processes sent to providers in the last 5 minutes without asking the router, by kind.
#[must_use]
pub fn outside_of_router<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Vec<OutsideUsage> {
    let mut sums: BTreeMap<OutsideKind, OutsideUsage> = BTreeMap::new();
    for usage in reports.into_iter().flat_map(|report| &report.outside) {
        let none = OutsideUsage { requests: 0, tokens: 0, ..*usage };
        let sum = sums.entry(usage.kind).or_insert(none);
        sum.requests = sum.requests.saturating_add(usage.requests);
        sum.tokens = sum.tokens.saturating_add(usage.tokens);
    }
    sums.into_values().filter(|sum| sum.requests > 0 || sum.tokens > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(figures: &str) -> Report {
        let member = r#""pod": "p", "podUid": "u", "container": "c", "worker": 1, "startedMs": 0, "agent": "a""#;
        Report::read(&format!(r#"{{{member}, "state": "Enforcing", {figures}}}"#)).unwrap()
    }

    fn minute(at: u64, tokens: u64) -> Report {
        let minute = format!(r#"{{"at": {at}, "tokens": {tokens}, "requests": 2}}"#);
        report(&format!(r#""limits": [{{"name": "gpt", "minute": {minute}}}]"#))
    }

    #[test]
    fn waits_and_calls_are_summed_up_over_those_that_told_of_them_lately() {
        let report = |at: u64| {
            let minute = format!(r#"{{"at": {at}, "tokens": 1, "requests": 2, "waited": 5}}"#);
            report(&format!(
                r#""limits": [{{"name": "gpt", "minute": {minute}}}], "calls": {{"at": {at}, "beats": 120, "draws": 9}}"#
            ))
        };
        let reports = [report(8), report(9), report(5)];
        assert_eq!(waited_by(&reports, "gpt", 10), Some(10));
        assert_eq!(waited_by(&reports, "other", 10), None);
        assert_eq!(calls_by(&reports, 10).map(|sum| (sum.beats, sum.draws)), Some((240, 18)));
        assert_eq!(calls_by(&reports, 12), None);
    }

    #[test]
    fn a_minute_is_known_when_every_process_has_told_of_it() {
        let sum = |reports: &[Report]| seen_by(reports, "gpt", 7).map(|sum| (sum.tokens, sum.requests));
        assert_eq!(sum(&[]), Some((0, 0)));
        assert_eq!(sum(&[minute(7, 10), minute(7, 5), report(r#""limits": [{"name": "other"}]"#)]), Some((15, 4)));
        assert_eq!(sum(&[minute(7, u64::MAX), minute(7, 5)]), None, "an amount that is none");
        let degraded = Report { state: MemberState::Degraded, ..minute(7, 5) };
        let private = Report { private: true, ..minute(7, 5) };
        let unknown = report(r#""limits": [{"name": "gpt"}]"#);
        for silent in [minute(6, 5), minute(8, 5), degraded, private, unknown, report(r#""problems": []"#)] {
            assert_eq!(sum(&[minute(7, 10), silent.clone()]), None, "{silent:?}");
        }
    }

    #[test]
    fn the_median_counts_calls_and_the_tail_is_the_worst() {
        let reserved = |calls: u64, p50: u64, p99: u64| {
            let reserved = format!(r#"{{"calls": {calls}, "p50": {p50}, "p99": {p99}}}"#);
            report(&format!(r#""limits": [{{"name": "gpt", "reserved": {reserved}}}]"#))
        };
        let of = |reports: &[Report]| reserved_by(reports, "gpt").map(|r| (r.calls, r.p50, r.p99));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[reserved(0, 100, 200), minute(7, 1)]), None);
        assert_eq!(of(&[reserved(2, 300, 300), reserved(256, 110, 120)]), Some((258, 110, 300)));
        assert_eq!(of(&[reserved(10, 100, 200), reserved(10, 300, 400)]), Some((20, 100, 400)));
        assert_eq!(of(&[reserved(10, 100, 200), reserved(11, 300, 150)]), Some((21, 300, 200)));
    }

    #[test]
    fn kinds_are_summed() {
        let one =
            r#""outside": [{"kind": "passthrough", "requests": 2, "tokens": 30}, {"kind": "later", "requests": 1}]"#;
        let two =
            r#""outside": [{"kind": "passthrough", "requests": 1, "tokens": 0}, {"kind": "batch", "requests": 0}]"#;
        let sums = outside_of_router(&[report(one), report(two)]);
        let sums: Vec<_> = sums.iter().map(|s| (s.kind.as_str(), s.requests, s.tokens)).collect();
        assert_eq!(sums, [("other", 1, 0), ("passthrough", 3, 30)]);
    }
}
