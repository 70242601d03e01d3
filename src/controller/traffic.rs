//! What processes said of their traffic, beside what LiteLLM's own counters say: minute by minute, which the memory keeps. No IO.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::evidence::Evidence;
use super::limits::Limits;
use super::memory::Memory;
use super::observe::Observed;
use super::signed;
use super::validate::Validated;
use crate::api::{LimitObserved, LimitOutside, OutsideTraffic, ReservedPercent};
use crate::ledger::{Observation, Report, outside_of_router, reserved_by, seen_by};
use crate::plan::Amounts;

/// What is known of the traffic.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By the limit's name: what was reserved as a percentage of what was used.
    pub reserved: BTreeMap<String, ReservedPercent>,
    /// By the limit's name: LiteLLM's own counters beside the reports.
    pub observed: BTreeMap<String, LimitObserved>,
    /// By the limit's name: what its quota is spent for outside, a minute.
    pub outside: BTreeMap<String, LimitOutside>,
    /// What the processes themselves sent past the router in the last 5 minutes.
    pub past_router: Vec<OutsideTraffic>,
}

/// The processes that live, by id: not ended by the kubelet's evidence, nor by their last call.
pub fn alive<'a>(seen: &'a Observation, evidence: &'a Evidence) -> impl Iterator<Item = (&'a String, &'a Report)> {
    let has_left = |id: &String| seen.books.values().any(|b| b.members.get(id).is_some_and(|m| m.ended_ms.is_some()));
    let has_ended = |r: &Report| evidence.end_of(r).is_some();
    seen.reports.iter().filter(move |(id, report)| !has_ended(report) && !has_left(id))
}

/// Unix time in minutes.
pub fn minute_of(now: Timestamp) -> u64 {
    u64::try_from(now.as_second() / 60).unwrap_or(0)
}

/// Compares what can be compared by now, and sums up the rest.
#[must_use]
pub fn traffic(observed: &Observed, valid: &Validated, evidence: &Evidence, memory: &mut Memory) -> Traffic {
    let (Some(Ok(seen)), Limits::Known(limits)) = (&observed.ledger, &valid.limits) else {
        return Traffic::default();
    };
    let living: Vec<(&String, &Report)> = alive(seen, evidence).collect();
    let reports = || living.iter().map(|(_, report)| *report);
    let audit = &mut memory.fleet.outside;
    // A report that cannot be read is a process whose traffic is not known.
    let ids = living.iter().map(|(id, _)| id.as_str()).chain(seen.unreadable.iter().map(String::as_str));
    audit.members(minute_of(observed.now), ids);
    audit.keep(&limits.iter().map(|limit| limit.name.as_str()).collect::<BTreeSet<_>>());
    audit.compare(|limit, minute| {
        let sum = seen_by(reports(), limit, minute).filter(|_| seen.unreadable.is_empty())?;
        Some(Amounts { tokens: sum.tokens, requests: sum.requests })
    });

    let mut traffic = Traffic::default();
    for limit in limits {
        if let Some(sum) = reserved_by(reports(), &limit.name) {
            let percent = ReservedPercent { p50: signed(sum.p50), p99: signed(sum.p99) };
            traffic.reserved.insert(limit.name.clone(), percent);
        }
        if let Some(both) = audit.compared(&limit.name) {
            let (tokens, reported) = (signed(both.counted.tokens), signed(both.reported.tokens));
            traffic.observed.insert(limit.name.clone(), LimitObserved { tokens, reported });
        }
        if let Some(sum) = audit.of(&limit.name) {
            let outside = LimitOutside { tokens: signed(sum.tokens), requests: signed(sum.requests) };
            traffic.outside.insert(limit.name.clone(), outside);
        }
    }
    // Of a process that has been silent for a lease, nobody knows what its last 5 minutes were.
    let answering = living.iter().filter(|(id, _)| !seen.is_silent(id)).map(|(_, report)| *report);
    traffic.past_router = outside_of_router(answering)
        .into_iter()
        .map(|sum| OutsideTraffic {
            kind: sum.kind.as_str().to_owned(),
            requests: signed(sum.requests),
            tokens: signed(sum.tokens),
        })
        .collect();
    traffic
}

#[cfg(test)]
mod tests {
    use super::super::limits::EffectiveLimit;
    use super::*;
    use crate::ledger::{BookId, BookState, MemberRecord, Unit};

    const START: i64 = 1_790_000_000 / 60;

    /// A member that says this of a minute.
    fn report(minute: i64, tokens: u64) -> Report {
        Report::read(&format!(
            r#"{{"pod": "p", "podUid": "u", "container": "c", "worker": 1, "startedMs": 0, "agent": "a", "state": "Enforcing",
                "limits": [{{"name": "gpt", "reserved": {{"calls": 9, "p50": 118, "p99": 640}},
                             "minute": {{"at": {minute}, "tokens": {tokens}, "requests": 1}}}}],
                "outside": [{{"kind": "passthrough", "requests": 12, "tokens": 3400}}]}}"#
        ))
        .unwrap()
    }

    /// Members a and b, which had spent this much in the last whole minute.
    fn observed(second: i64, tokens: [u64; 2]) -> Observed {
        let minute = second / 60 - 1;
        let member = |id: &str, tokens| (id.to_owned(), report(minute, tokens));
        let record = |id: &str| (id.to_owned(), MemberRecord { until_ms: 30_000, ..MemberRecord::default() });
        let book = BookState { clock_ms: 1, members: ["a", "b"].map(record).into(), ..BookState::default() };
        let seen = Observation {
            reports: [member("a", tokens[0]), member("b", tokens[1])].into(),
            books: [(BookId::new("gpt", Unit::Tokens), book)].into(),
            ..Observation::default()
        };
        let now = Timestamp::from_second(second).unwrap();
        Observed { now, ledger: Some(Ok(seen)), ..Observed::default() }
    }

    fn seen(observed: &mut Observed) -> &mut Observation {
        observed.ledger.as_mut().unwrap().as_mut().unwrap()
    }

    fn valid() -> Validated {
        let limit = EffectiveLimit { name: "gpt".to_owned(), tokens: Some(60_000), ..EffectiveLimit::default() };
        Validated { targets: Vec::new(), problems: Vec::new(), limits: Limits::Known(vec![limit]), members: Vec::new() }
    }

    fn pass(observed: &Observed, memory: &mut Memory) -> Traffic {
        traffic(observed, &valid(), &Evidence::default(), memory)
    }

    /// The passes of a minute: the counters of the one before are read 3 s into it, when the reports are not there yet.
    fn minute(minute: i64, counted: u64, change: impl Fn(&mut Observed), memory: &mut Memory) -> Option<LimitOutside> {
        let mut early = observed(minute * 60 + 3, [0, 0]);
        seen(&mut early).reports.values_mut().for_each(|r| *r = report(minute - 2, 0));
        change(&mut early);
        let counted = Amounts { tokens: counted, requests: 9 };
        memory.fleet.outside.counted(minute_of(early.now) - 1, Some([("gpt".to_owned(), counted)].into()));
        let said = pass(&early, memory).outside;
        let mut later = observed(minute * 60 + 14, [1_000, 2_000]);
        change(&mut later);
        let traffic = pass(&later, memory);
        assert!(said.is_empty() || traffic.outside == said, "nothing changes before the reports are there");
        traffic.outside.get("gpt").cloned()
    }

    #[test]
    fn traffic_outside_is_what_no_report_has() {
        let mut memory = Memory::default();
        let _ = pass(&observed(START * 60 - 1, [0, 0]), &mut memory);
        let fine = |_: &mut Observed| {};
        assert_eq!(minute(START + 1, 10_000, fine, &mut memory), None);
        let outside = Some(LimitOutside { tokens: 7_000, requests: 7 });
        assert_eq!(minute(START + 2, 10_000, fine, &mut memory), outside);
    }

    #[test]
    fn both_counts_of_a_minute_are_told() {
        let mut memory = Memory::default();
        let _ = pass(&observed(START * 60 - 1, [0, 0]), &mut memory);
        let _ = minute(START + 1, 3_100, |_| {}, &mut memory);
        let told = pass(&observed((START + 1) * 60 + 20, [1_000, 2_000]), &mut memory).observed;
        assert_eq!(told["gpt"], LimitObserved { tokens: 3_100, reported: 3_000 });
    }

    #[test]
    fn one_report_that_cannot_be_read_or_has_changed_hands_leaves_it_open() {
        let unreadable = |o: &mut Observed| seen(o).unreadable.push("c".to_owned());
        let private = |o: &mut Observed| seen(o).reports.values_mut().for_each(|r| r.private = true);
        for change in [unreadable, private] {
            let mut memory = Memory::default();
            for at in START..START + 5 {
                assert_eq!(minute(at, 10_000, change, &mut memory), None);
            }
        }
    }

    #[test]
    fn who_has_left_is_no_member_and_who_is_silent_has_no_traffic() {
        let mut observed = observed(START * 60, [1, 2]);
        let traffic = pass(&observed, &mut Memory::default());
        assert_eq!(traffic.reserved["gpt"], ReservedPercent { p50: 118, p99: 640 });
        let passed = |requests, tokens| OutsideTraffic { kind: "passthrough".to_owned(), requests, tokens };
        assert_eq!(traffic.past_router, [passed(24, 6_800)]);

        let book = seen(&mut observed).books.values_mut().next().unwrap();
        book.members.get_mut("a").unwrap().ended_ms = Some(1);
        assert_eq!(alive(seen(&mut observed), &Evidence::default()).map(|(id, _)| id).collect::<Vec<_>>(), ["b"]);
        assert_eq!(pass(&observed, &mut Memory::default()).past_router, [passed(12, 3_400)]);
        seen(&mut observed).books.values_mut().for_each(|book| book.clock_ms = 30_001);
        assert!(pass(&observed, &mut Memory::default()).past_router.is_empty());
    }
}
