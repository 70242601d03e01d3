//! The rows of the status.

use super::*;
use crate::api::{LimitObserved, LimitOutside, ReservedPercent};
use crate::controller::limits::Limits;
use crate::controller::validate::Member;
use crate::ledger::{BookId, PlanWrite, Planned, PlannedBook, Policy, Report};
use crate::plan::Departed;

fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn planned(writes: &[PlanWrite]) -> Applied {
    let books = writes.iter().map(|write| (write.book.clone(), PlannedBook::of(&BookState::default()))).collect();
    Applied { ledger: Some(Ok(Planned { books, ..Planned::default() })), unattached: Vec::new() }
}

fn write(limit: &str, unit: Unit) -> PlanWrite {
    PlanWrite {
        book: BookId::new(limit, unit),
        budget: 1,
        aside: 0,
        level: 0,
        safe: 0,
        lease_ms: 0,
        first: false,
        members: BTreeMap::new(),
    }
}

fn intent(writes: Vec<PlanWrite>) -> Intent {
    let policy: Policy = json(serde_json::json!({"version": "", "tokenBudget": "a/b", "uid": "u", "mode": "Enforce",
        "reserve": "MaxTokens", "maxWaitMs": 0, "onLedgerLoss": "SafeShare", "leaseMs": 1, "beatMs": 1, "limits": []}));
    Intent {
        policy,
        writes,
        forgotten: Vec::new(),
        processes: 1,
        departed: Departed::default(),
        booted: BTreeMap::new(),
    }
}

fn rows(intent: &Intent, applied: &Applied, traffic: &Traffic, books: &Books<'_>) -> Vec<LimitStatus> {
    let tb: TokenBudget = json(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
        "metadata": {"name": "tb"}, "spec": {"targetRefs": [{"name": "litellm"}]}}));
    limit_rows(&tb, intent, applied, traffic, books, &mut Memory::default(), Timestamp::MIN)
}

#[test]
fn what_is_of_the_limit_stands_in_its_first_row() {
    let writes = vec![
        write("gpt", Unit::Tokens),
        write("gpt", Unit::Requests),
        write("o", Unit::Requests),
        write("x", Unit::Tokens),
    ];
    let applied = planned(&writes);
    let intent = intent(writes);
    let percent = ReservedPercent { p50: 118, p99: 640 };
    let observed = LimitObserved { tokens: 30_000, reported: 18_000 };
    let outside = LimitOutside { tokens: 12_000, requests: 9 };
    let traffic = Traffic {
        reserved: [("gpt".to_owned(), percent.clone()), ("o".to_owned(), percent.clone())].into(),
        observed: [("gpt".to_owned(), observed.clone())].into(),
        outside: [("gpt".to_owned(), outside.clone())].into(),
        past_router: Vec::new(),
    };
    let rows = rows(&intent, &applied, &traffic, &Books::new());
    let shown: Vec<_> = rows.into_iter().map(|row| (row.reserved_percent, row.observed, row.outside)).collect();
    let first = (Some(percent.clone()), Some(observed), Some(outside));
    assert_eq!(shown, [first, (None, None, None), (Some(percent), None, None), (None, None, None)]);
}

#[test]
fn what_a_process_had_spent_when_it_ended_goes_with_its_record() {
    let member = |spent, record, ended_ms| MemberRecord { spent, record, ended_ms, ..MemberRecord::default() };
    let members = [("live", member(30, 40, None)), ("killed", member(70, 20, Some(1)))];
    let members = members.into_iter().map(|(id, member)| (id.to_owned(), member)).collect();
    let state = BookState { members, ..BookState::default() };
    let writes = vec![write("gpt", Unit::Tokens)];
    let books = Books::from([(("gpt".to_owned(), Unit::Tokens), &state)]);
    let rows = rows(&intent(writes.clone()), &planned(&writes), &Traffic::default(), &books);
    assert_eq!(rows[0].spent, 50);
}

#[test]
fn rows_of_pods_are_bounded() {
    let members = (0..MOST_PODS + 1).map(|n| {
        let report: Report =
            json(serde_json::json!({"pod": format!("p-{n:03}"), "podUid": "u", "container": "litellm", "worker": 1,
            "startedMs": 0, "agent": "0.1.0", "state": "Enforcing"}));
        (format!("m-{n}"), report)
    });
    let members: Vec<_> = members.collect();
    let records = members.iter().map(|(id, _)| (id.clone(), MemberRecord { share: 7, ..MemberRecord::default() }));
    let state = BookState { members: records.collect(), ..BookState::default() };
    let books: Books<'_> = [(("gpt".to_owned(), Unit::Tokens), &state)].into();
    let member = |(id, report): (String, Report)| Member { id, report, finished_ms: None };
    let valid = Validated {
        targets: Vec::new(),
        problems: Vec::new(),
        limits: Limits::Known(Vec::new()),
        members: members.into_iter().map(member).collect(),
    };
    let rows = pod_rows(&valid, &books);
    assert_eq!((rows.len(), rows[99].pod.as_str(), rows[99].share), (MOST_PODS, "p-099", 7));
}

#[test]
fn the_workers_of_a_pod_are_one_row_for_each_limit_and_unit() {
    let member = |id: &str, pod: &str, state: &str| Member {
        id: id.to_owned(),
        report: json(serde_json::json!({"pod": pod, "podUid": "u", "container": "litellm", "worker": 1,
            "startedMs": 0, "agent": "0.1.0", "state": state})),
        finished_ms: None,
    };
    let book = |ids: &[&str]| {
        let record = MemberRecord { share: 7, until_ms: 1, ..MemberRecord::default() };
        BookState { members: ids.iter().map(|id| ((*id).to_owned(), record.clone())).collect(), ..BookState::default() }
    };
    let (all, one) = (book(&["b1", "a1", "a2"]), book(&["a1"]));
    let of = |limit: &str, unit| (limit.to_owned(), unit);
    let books: Books<'_> =
        [(of("gpt", Unit::Tokens), &all), (of("gpt", Unit::Requests), &all), (of("o", Unit::Tokens), &one)].into();
    let valid = Validated {
        targets: Vec::new(),
        problems: Vec::new(),
        limits: Limits::Known(Vec::new()),
        members: vec![
            member("b1", "b", "Enforcing"),
            member("a1", "a", "Degraded"),
            member("a2", "a", "Enforcing"),
            member("x", "x", "Enforcing"),
        ],
    };
    let rows = pod_rows(&valid, &books);
    let shown =
        |row: &PodStatus| format!("{} {} {} {} {} {}", row.pod, row.limit, row.unit, row.workers, row.share, row.state);
    let wanted = [
        "a gpt requests 2 14 Degraded",
        "a gpt tokens 2 14 Degraded",
        "a o tokens 1 7 Degraded",
        "b gpt requests 1 7 Enforcing",
        "b gpt tokens 1 7 Enforcing",
    ];
    assert_eq!(rows.iter().map(shown).collect::<Vec<_>>(), wanted);
}
