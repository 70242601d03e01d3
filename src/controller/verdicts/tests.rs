//! What the conditions say.

use super::*;
use crate::api::{LimitOutside, LimitStatus};
use crate::controller::limits::EffectiveLimit;
use crate::controller::validate::Member;
use crate::ledger::{LedgerError, Planned};

fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn applied() -> Applied {
    Applied { ledger: Some(Ok(Planned::default())), unattached: Vec::new() }
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

fn tb(attach: &str) -> TokenBudget {
    json(serde_json::json!({
        "apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget", "metadata": {"name": "tb"},
        "spec": {"targetRefs": [{"name": "litellm"}], "attach": attach}
    }))
}

/// Two live pods without the agent.
fn target() -> crate::controller::validate::Target {
    crate::controller::validate::Target {
        deployment: std::sync::Arc::default(),
        container: "litellm".to_owned(),
        wanted: crate::litellm::Wanted::default(),
        size: crate::plan::Target { replicas: 2, most_replicas: None, surge: 0, workers: 1 },
        pods: Vec::new(),
        pods_without_agent: 2,
    }
}

#[test]
fn pods_without_agent_are_told_how_they_get_it() {
    let said = |attach: &str| {
        let valid = Validated {
            targets: vec![target()],
            problems: Vec::new(),
            limits: Limits::Known(Vec::new()),
            members: Vec::new(),
        };
        let verdict = attached(&tb(attach), &valid, &applied());
        assert_eq!(verdict.reason, Reason::PartiallyAttached);
        verdict.message
    };
    assert!(said("Automatic").contains("when the rollout replaces them"));
    assert!(said("Manual").contains("when you add it to the pod template"));
    assert!(said("Admission").contains("kubectl rollout restart"));
}

#[test]
fn a_ledger_that_is_away_says_what_processes_do_meanwhile() {
    let said = |policy: &str| {
        let tb: TokenBudget = json(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb"}, "spec": {"targetRefs": [{"name": "litellm"}], "onLedgerLoss": policy}}));
        let away = || Some(Err(LedgerError::Timeout { after: std::time::Duration::from_secs(1) }));
        let observed = Observed { ledger: away(), ..Observed::default() };
        let verdict = ledger(&tb, &observed, &Applied { ledger: None, unattached: Vec::new() });
        assert_eq!((verdict.holds, verdict.reason), (Some(false), Reason::LedgerUnreachable));
        verdict.message
    };
    assert!(said("SafeShare").ends_with("and after 30 s at most their safe share"));
    assert!(said("Open").ends_with("and after 30 s by LiteLLM's own limits (onLedgerLoss: Open)"));
}

/// One pod that is ready, whose process says that it has deployments of these limits.
fn serving(limits: &[&str], had: Option<&[&str]>) -> Validated {
    let pod =
        serde_json::json!({"metadata": {"uid": "u"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let had = had.map(|had| had.iter().map(|name| serde_json::json!({"name": name})).collect::<Vec<_>>());
    let report = serde_json::json!({"pod": "p", "podUid": "u", "container": "litellm", "worker": 1, "startedMs": 0,
        "agent": "0.1.0", "state": "Enforcing", "limits": had});
    let limit = |name: &&str| EffectiveLimit { name: (*name).to_owned(), tokens: Some(9), ..EffectiveLimit::default() };
    let target = crate::controller::validate::Target {
        pods: vec![std::sync::Arc::new(json(pod))],
        pods_without_agent: 0,
        ..target()
    };
    Validated {
        targets: vec![target],
        problems: Vec::new(),
        limits: Limits::Known(limits.iter().map(limit).collect()),
        members: vec![Member { id: "m".to_owned(), report: json(report), finished_ms: None }],
    }
}

#[test]
fn a_limit_that_selects_nothing_is_said_after_a_window() {
    let mut memory = Memory::default();
    let mut verdict = |valid: &Validated, second: i64| {
        let observed = Observed { now: Timestamp::from_second(second).unwrap(), ..Observed::default() };
        enforcing(&tb("Automatic"), &observed, valid, &applied(), &mut memory)
    };
    let typo = serving(&["gpt", "typo"], Some(&["gpt"]));
    assert_eq!(verdict(&typo, 100).reason, Reason::WindowNotPassed);
    assert_eq!(verdict(&typo, 159).reason, Reason::WindowNotPassed);
    let found = verdict(&typo, 160);
    assert_eq!((found.holds, found.reason), (Some(false), Reason::LimitMatchesNothing));
    assert!(found.message.starts_with("limit typo holds nothing"), "{}", found.message);
    assert_eq!(verdict(&serving(&["gpt", "typo"], Some(&["gpt", "typo"])), 161).reason, Reason::Enforcing);
    assert_eq!(verdict(&typo, 162).reason, Reason::Enforcing, "it may have been added just now");
    assert_eq!(verdict(&typo, 222).reason, Reason::LimitMatchesNothing);
    assert_eq!(verdict(&serving(&["gpt"], None), 223).reason, Reason::Enforcing, "an agent that does not say");
}

#[test]
fn a_clock_that_was_set_back_keeps_nothing_waiting() {
    let mut memory = Memory::default();
    memory.fleet.whole_since = Some(Timestamp::from_second(9_000).unwrap());
    let mut reason = |second: i64| {
        let observed = Observed { now: Timestamp::from_second(second).unwrap(), ..Observed::default() };
        enforcing(&tb("Automatic"), &observed, &serving(&["gpt"], Some(&["gpt"])), &applied(), &mut memory).reason
    };
    assert_eq!((reason(100), reason(160)), (Reason::WindowNotPassed, Reason::Enforcing));
}

#[test]
fn without_a_deployment_nothing_is_said_of_its_pods() {
    let valid = Validated { targets: Vec::new(), ..serving(&[], None) };
    let verdicts = [
        attached(&tb("Automatic"), &valid, &applied()),
        enforcing(&tb("Automatic"), &Observed::default(), &valid, &applied(), &mut Memory::default()),
    ];
    assert!(verdicts.iter().all(|v| v.holds.is_none() && v.reason == Reason::Pending), "{verdicts:?}");
}

#[test]
fn a_process_that_is_on_its_own_enforces_nothing_where_it_may() {
    let tb: TokenBudget = json(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
        "metadata": {"name": "tb"}, "spec": {"targetRefs": [{"name": "litellm"}], "onLedgerLoss": "Open"}}));
    let verdict = |until_ms| {
        let record = crate::ledger::MemberRecord { until_ms, ..Default::default() };
        let book = crate::ledger::BookState {
            clock_ms: 100,
            members: [("m".to_owned(), record)].into(),
            ..Default::default()
        };
        let books = [(crate::ledger::BookId::new("gpt", crate::ledger::Unit::Tokens), book)].into();
        let seen = crate::ledger::Observation { books, ..Default::default() };
        let observed = Observed { ledger: Some(Ok(seen)), ..Observed::default() };
        enforcing(&tb, &observed, &serving(&["gpt"], None), &applied(), &mut Memory::default())
    };
    assert_eq!(verdict(100).reason, Reason::WindowNotPassed);
    let offline = verdict(99);
    assert_eq!((offline.holds, offline.reason), (Some(false), Reason::WaitingForProcesses));
    assert!(offline.message.starts_with("pod p does not reach the ledger"), "{}", offline.message);
}

#[test]
fn the_one_before_serves_until_the_ledger_that_is_named_answers() {
    let unreached = Some(LedgerError::Timeout { after: std::time::Duration::from_secs(1) });
    let observed = Observed { unreached, ..Observed::default() };
    let verdict = ledger(&tb("Automatic"), &observed, &applied());
    assert_eq!((verdict.holds, verdict.reason), (Some(false), Reason::LedgerUnreachable));
    assert!(verdict.message.contains("goes on by the one before it"), "{}", verdict.message);
}

#[test]
fn a_fleet_that_does_not_get_ready_is_told_from_one_without_pods() {
    let verdict = |pods: serde_json::Value| {
        let mut valid = serving(&["gpt"], Some(&["gpt"]));
        valid.targets[0].pods = json::<Vec<_>>(pods).into_iter().map(std::sync::Arc::new).collect();
        let enforcing = enforcing(&tb("Automatic"), &Observed::default(), &valid, &applied(), &mut Memory::default());
        (attached(&tb("Automatic"), &valid, &applied()).reason, enforcing.reason, enforcing.message)
    };
    let (attached, enforcing, message) = verdict(serde_json::json!([{"metadata": {"uid": "u"}}]));
    assert_eq!((attached, enforcing), (Reason::AllPodsAttached, Reason::WaitingForProcesses));
    assert_eq!(message, "none of 1 pods is ready: kubectl describe pods says why");
    let (attached, enforcing, _) = verdict(serde_json::json!([]));
    assert_eq!((attached, enforcing), (Reason::NoPods, Reason::NoPods));
}

#[test]
fn a_process_that_stays_behind_the_policy_does_not_enforce_it() {
    let mut memory = Memory::default();
    let mut verdict = |has: &str, stored: &str, second: i64| {
        let seen = crate::ledger::Observation { policy_version: Some(stored.to_owned()), ..Default::default() };
        let now = Timestamp::from_second(second).unwrap();
        let observed = Observed { now, ledger: Some(Ok(seen)), ..Observed::default() };
        let mut valid = serving(&["gpt"], Some(&["gpt"]));
        valid.members[0].report.policy = has.to_owned();
        enforcing(&tb("Automatic"), &observed, &valid, &applied(), &mut memory).reason
    };
    assert_eq!(verdict("one", "one", 0), Reason::WindowNotPassed);
    assert_eq!(verdict("one", "one", 60), Reason::Enforcing);
    assert_eq!(verdict("one", "two", 61), Reason::Enforcing, "it has just been written");
    assert_eq!(verdict("one", "two", 90), Reason::Enforcing);
    assert_eq!(verdict("one", "two", 91), Reason::WaitingForProcesses);
    assert_eq!(verdict("two", "two", 93), Reason::WindowNotPassed);
    assert_eq!(verdict("two", "two", 153), Reason::Enforcing);
    assert_eq!(
        verdict("one", "three", 154),
        Reason::WaitingForProcesses,
        "a new one is no excuse for one that was behind"
    );
}
