//! What is said of traffic outside.

use super::*;
use crate::api::{LimitOutside, ReservedPercent};
use crate::ledger::{BookId, PlanWrite, Planned, PlannedBook, Policy};
use crate::plan::Departed;

fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn applied() -> Applied {
    Applied { ledger: Some(Ok(Planned::default())), unattached: Vec::new() }
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
    Intent { policy, writes, forgotten: Vec::new(), processes: 1, departed: Departed::default() }
}

fn rows(intent: &Intent, applied: &Applied, traffic: &Traffic, books: &Books<'_>) -> Vec<LimitStatus> {
    let tb: TokenBudget = json(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
        "metadata": {"name": "tb"}, "spec": {"targetRefs": [{"name": "litellm"}]}}));
    limit_rows(&tb, intent, applied, traffic, books, &mut Memory::default(), Timestamp::MIN)
}

fn row(spent: i64, outside: Option<i64>) -> TokenBudgetStatus {
    let row = LimitStatus {
        name: "gpt".to_owned(),
        unit: "tokens".to_owned(),
        budget: 60_000,
        spent,
        outside: outside.map(|tokens| LimitOutside { tokens, requests: 9 }),
        ..LimitStatus::default()
    };
    TokenBudgetStatus { limits: vec![row], ..TokenBudgetStatus::default() }
}

#[test]
fn traffic_outside_comes_after_what_the_fleet_itself_spends() {
    let verdict = |spent, outside| within(&row(spent, outside), &applied());
    assert_eq!(verdict(60_000, None).reason, Reason::WithinBudget);
    assert_eq!(verdict(60_001, Some(9_000)).reason, Reason::OverBudget);
    let outside = verdict(60_000, Some(12_345));
    assert_eq!((outside.holds, outside.reason), (Some(false), Reason::TrafficOutside));
    assert_eq!(
        outside.message,
        "limit gpt: others spend about 12000 tokens a minute of the same quota, by LiteLLM's own counters; attach the \
         Deployment that they come from to this TokenBudget (spec.targetRefs), or lower the budget by as much"
    );
    assert_eq!(verdict(0, Some(12_499)).message, outside.message);
}

#[test]
fn amounts_are_rounded_to_two_digits() {
    let all = [0, 7, 99, 100, 104, 105, 999, 9_949, 9_950, 1_250_000, i64::MAX];
    let rounded: Vec<i64> = all.into_iter().map(rounded).collect();
    assert_eq!(rounded[..10], [0, 7, 99, 100, 100, 110, 1_000, 9_900, 10_000, 1_300_000]);
    assert!(rounded[10] > i64::MAX / 100 * 99);
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
    let outside = LimitOutside { tokens: 12_000, requests: 9 };
    let traffic = Traffic {
        reserved: [("gpt".to_owned(), percent.clone()), ("o".to_owned(), percent.clone())].into(),
        outside: [("gpt".to_owned(), outside.clone())].into(),
        past_router: Vec::new(),
    };
    let rows = rows(&intent, &applied, &traffic, &Books::new());
    let shown: Vec<_> = rows.into_iter().map(|row| (row.reserved_percent, row.outside)).collect();
    assert_eq!(shown, [(Some(percent.clone()), Some(outside)), (None, None), (Some(percent), None), (None, None)]);
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
fn pods_without_agent_are_told_how_they_get_it() {
    let said = |attach: &str| {
        let tb: TokenBudget = json(serde_json::json!({
            "apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget", "metadata": {"name": "tb"},
            "spec": {"targetRefs": [{"name": "litellm"}], "attach": attach}
        }));
        let target = crate::controller::validate::Target {
            deployment: std::sync::Arc::default(),
            container: "litellm".to_owned(),
            wanted: crate::litellm::Wanted::default(),
            size: crate::plan::Target { replicas: 2, most_replicas: None, surge: 0, workers: 1 },
            pods: Vec::new(),
            pods_without_agent: 2,
        };
        let valid = Validated {
            targets: vec![target],
            problems: Vec::new(),
            limits: Limits::Known(Vec::new()),
            members: Vec::new(),
        };
        let verdict = attached(&tb, &valid, &applied());
        assert_eq!(verdict.reason, Reason::PartiallyAttached);
        verdict.message
    };
    assert!(said("Automatic").contains("when the rollout replaces them"));
    assert!(said("Manual").contains("when you add it to the pod template"));
    assert!(said("Admission").contains("kubectl rollout restart"));
}
