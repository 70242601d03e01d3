use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::*;
use crate::controller::agent_pod::AgentPod;
use crate::controller::validate::{Member, Target};
use crate::ledger::{BookState, MemberRecord, Observation, Report};
use crate::litellm::Wanted;
use crate::plan;

const NOW: &str = "2026-11-24T12:00:00Z";

fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(uid: &str, started: &str) -> Arc<AgentPod> {
    let running = serde_json::json!({"running": {"startedAt": started}});
    let status = serde_json::json!({"name": "litellm", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": running});
    Arc::new(json(serde_json::json!({"metadata": {"uid": uid}, "status": {"containerStatuses": [status]}})))
}

fn member(id: &str, pod_uid: &str, ended: bool) -> Member {
    let report: Report = json(serde_json::json!({"pod": "p", "podUid": pod_uid, "container": "litellm", "worker": 1,
        "startedMs": 0, "agent": "0.1.0", "state": "Enforcing"}));
    Member { id: id.to_owned(), report, finished_ms: ended.then_some(1) }
}

/// One Deployment of four pods with one limit of 60,000 tokens.
fn fleet(pods: Vec<Arc<AgentPod>>, members: Vec<Member>) -> Validated {
    let target = Target {
        deployment: Arc::default(),
        container: "litellm".to_owned(),
        wanted: Wanted::default(),
        size: plan::Target { replicas: 4, most_replicas: None, surge: 0, workers: 1 },
        pods,
        pods_without_agent: 0,
    };
    let limit = EffectiveLimit { name: "gpt".to_owned(), tokens: Some(60_000), ..EffectiveLimit::default() };
    Validated { targets: vec![target], problems: Vec::new(), limits: Limits::Known(vec![limit]), members }
}

fn written(valid: &Validated, records: &[(&str, u64)]) -> PlanWrite {
    intent(valid, records, at_noon()).writes.remove(0)
}

/// When the ledger lost these members, of these pods.
fn written_without(valid: &Validated, records: &[(&str, u64)], lost: &[(&str, &str)]) -> PlanWrite {
    let lost = lost.iter().map(|(id, uid)| ((*id).to_owned(), member(id, uid, false).report)).collect();
    intent(valid, records, Observed { lost, ..at_noon() }).writes.remove(0)
}

fn intent(valid: &Validated, records: &[(&str, u64)], before: Observed) -> Intent {
    intent_after(&KnownBooks::default(), valid, records, before)
}

fn intent_after(known: &KnownBooks, valid: &Validated, records: &[(&str, u64)], before: Observed) -> Intent {
    let record = |&(id, share): &(&str, u64)| {
        (id.to_owned(), MemberRecord { share, spent: 40_000, until_ms: 30_000, ..MemberRecord::default() })
    };
    let book = BookState { members: records.iter().map(record).collect(), clock_ms: 1, ..BookState::default() };
    let books = [(BookId::new("gpt", Unit::Tokens), book)].into();
    let ledger = Observation { policy_version: None, reports: BTreeMap::new(), unreadable: Vec::new(), books };
    arrange(&budget(), &Observed { ledger: Some(Ok(ledger)), ..before }, valid, known)
}

fn at_noon() -> Observed {
    Observed { now: NOW.parse().unwrap(), ..Observed::default() }
}

fn budget() -> TokenBudget {
    json(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
        "metadata": {"name": "tb"}, "spec": {"targetRefs": [{"name": "litellm"}]}}))
}

fn shares(write: &PlanWrite) -> Vec<(&str, u64, bool)> {
    write.members.iter().map(|(id, m)| (id.as_str(), m.share, m.finished_ms.is_some())).collect()
}

#[test]
fn a_book_that_was_written_is_not_the_first_whatever_the_status_says() {
    let tb = TokenBudget::new("tb", json(serde_json::json!({"targetRefs": [{"name": "litellm"}]})));
    let first =
        |known: &KnownBooks| arrange(&tb, &at_noon(), &fleet(Vec::new(), Vec::new()), known).writes.remove(0).first;
    let (mut known, now) = (KnownBooks::default(), Instant::now());
    assert!(first(&known));
    known.wrote([BookId::new("gpt", Unit::Tokens)].into(), now);
    assert!(!first(&known), "its status could not be written, and a flush took the book");
    known.wrote(BTreeSet::new(), now);
    assert!(!first(&known), "its limit went, and came back within a window");
    known.wrote(BTreeSet::new(), now + Duration::from_millis(ledger::HOLD_MS));
    assert!(first(&known));
}

#[test]
fn a_limit_that_takes_the_place_of_another_is_not_the_first() {
    let limit = |name: &str, derived: bool| EffectiveLimit {
        name: name.to_owned(),
        derived: derived.then(|| name.to_owned()),
        tokens: Some(60_000),
        ..EffectiveLimit::default()
    };
    let first = |before: &[EffectiveLimit], now: &[EffectiveLimit], name: &str| {
        let row = |l: &EffectiveLimit| api::LimitStatus {
            name: l.name.clone(),
            unit: Unit::Tokens.as_str().to_owned(),
            derived: l.derived.clone(),
            ..api::LimitStatus::default()
        };
        let status = api::TokenBudgetStatus { limits: before.iter().map(row).collect(), ..Default::default() };
        let spec = json(serde_json::json!({"targetRefs": [{"name": "litellm"}]}));
        let mut tb = TokenBudget::new("tb", spec);
        tb.status = Some(status);
        let limit = now.iter().find(|l| l.name == name).unwrap();
        Before::of(&tb, now).is_first(limit, Unit::Tokens)
    };
    let (a, b) = (limit("a", false), limit("b", false));
    let (x, y) = (limit("x", true), limit("y", true));
    let (a, b, x, y) = (&a, &b, &x, &y);
    let one = std::slice::from_ref::<EffectiveLimit>;
    let both = |one: &EffectiveLimit, other: &EffectiveLimit| [one.clone(), other.clone()];
    assert!(first(&[], one(a), "a"), "a new TokenBudget");
    assert!(!first(one(a), one(a), "a"), "its book was lost");
    assert!(!first(one(a), one(b), "b"), "a got another name");
    assert!(!first(one(x), one(a), "a"), "what was derived is explicit now");
    assert!(!first(one(a), one(x), "x"), "and the other way round");
    assert!(first(one(a), &both(a, b), "b"), "beside one that stays");
    assert!(first(one(x), one(y), "y"), "LiteLLM has another deployment in the place of x");
    assert!(first(&both(x, y), &[y.clone(), limit("z", true)], "z"));
}

#[test]
fn shares_stay_within_the_dead_band_of_what_the_ledger_has() {
    let valid = fleet(Vec::new(), vec![member("a", "1", false), member("b", "2", false)]);
    assert_eq!(shares(&written(&valid, &[("a", 30_200), ("b", 29_800)])), [("a", 30_200, false), ("b", 29_800, false)]);
    assert_eq!(shares(&written(&valid, &[("a", 30_300), ("b", 29_700)])), [("a", 30_000, false), ("b", 30_000, false)]);
}

#[test]
fn who_has_ended_and_who_has_no_record_gets_no_share() {
    let valid = fleet(Vec::new(), vec![member("a", "1", false), member("b", "2", true), member("c", "3", true)]);
    let write = written(&valid, &[("a", 15_000), ("b", 15_000)]);
    let a = 40_000 + 40_000 / 120 + (60_000 - 40_000 - 40_000 / 120 - 6_000);
    assert_eq!(shares(&write), [("a", a, false), ("b", 0, true), ("c", 0, true)]);
}

#[test]
fn a_safe_share_is_set_aside_for_each_grown_process_without_a_record() {
    let (old, young) = ("2026-11-24T11:59:00Z", "2026-11-24T11:59:45Z");
    let pods = vec![pod("1", old), pod("2", old), pod("3", young), pod("4", old)];
    // The first has a record, the second only a report, the third is young, the fourth was never heard.
    let valid = fleet(pods, vec![member("a", "1", false), member("b", "2", false)]);
    let write = written(&valid, &[("a", 15_000)]);
    assert_eq!((write.safe, write.aside), (15_000, 30_000));
}

/// The fleet at noon and some seconds, after a pass that left these books.
fn later(booted: BTreeMap<BookId, BookBooted>, seconds: i64, valid: &Validated, change: fn(&mut Observed)) -> Intent {
    let now = NOW.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
    let mut before = Observed { now, ..Observed::default() };
    change(&mut before);
    let mut books = KnownBooks::default();
    books.booted = booted;
    intent_after(&books, valid, &[], before)
}

/// May have 24 pods in place of 4.
fn larger(mut valid: Validated) -> Validated {
    valid.targets[0].size.replicas = 24;
    valid
}

fn asides(intent: &Intent) -> Vec<u64> {
    intent.writes.iter().map(|write| write.aside).collect()
}

#[test]
fn what_is_set_aside_is_the_safe_share_that_each_process_may_have_booted_with() {
    let orphan = || pod("1", "2026-11-24T11:59:00Z");
    let before = later(BTreeMap::new(), 0, &fleet(vec![orphan()], Vec::new()), |_| {}).booted;
    let cut = later(before, 1, &larger(fleet(vec![orphan()], Vec::new())), |_| {});
    assert_eq!((cut.writes[0].safe, asides(&cut)), (2_500, vec![15_000]));
    let stays = later(cut.booted, 9_000, &larger(fleet(vec![orphan()], Vec::new())), |_| {});
    assert_eq!(asides(&stays), [15_000], "as long as it has no record");
    let slow = ["2", "3", "4"].map(|uid| pod(uid, "2026-11-24T12:00:01Z"));
    let pods = [&[orphan()], &slow[..]].concat();
    let beside = later(stays.booted, 9_001, &larger(fleet(pods, Vec::new())), |_| {});
    assert_eq!(asides(&beside), [15_000 + 3 * 2_500], "those that started after the change go by the new one");
    let without = later(beside.booted, 9_002, &larger(fleet(slow.to_vec(), Vec::new())), |_| {});
    assert_eq!(asides(&without), [3 * 2_500]);
}

#[test]
fn a_process_that_is_counted_after_the_change_started_before_it() {
    let young = || vec![pod("1", "2026-11-24T12:00:00Z")];
    let before = later(BTreeMap::new(), 1, &fleet(young(), Vec::new()), |_| {}).booted;
    let cut = later(before, 2, &larger(fleet(young(), Vec::new())), |_| {});
    assert_eq!(asides(&cut), [0]);
    assert_eq!(asides(&later(cut.booted, 31, &larger(fleet(young(), Vec::new())), |_| {})), [15_000]);
}

#[test]
fn a_silent_member_may_lose_its_record_and_has_the_safe_share_that_it_was_told() {
    let valid = || fleet(vec![pod("1", "2026-11-24T11:00:00Z")], vec![member("a", "1", false)]);
    // Its lease is over, and it has its record still.
    let with_record = |known: BTreeMap<BookId, BookBooted>, seconds: i64, valid: &Validated| {
        let now = NOW.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
        let record = MemberRecord { record: 15_000, off: 15_000, until_ms: 1, ..MemberRecord::default() };
        let book = BookState { members: [("a".to_owned(), record)].into(), clock_ms: 2, ..BookState::default() };
        let seen = Observation { books: [(BookId::new("gpt", Unit::Tokens), book)].into(), ..Observation::default() };
        let mut books = KnownBooks::default();
        books.booted = known;
        arrange(&budget(), &Observed { now, ledger: Some(Ok(seen)), ..Observed::default() }, valid, &books)
    };
    let before = with_record(BTreeMap::new(), 0, &valid());
    let cut = with_record(before.booted, 1, &larger(valid()));
    let later_on = with_record(cut.booted, 9_000, &larger(valid()));
    let flushed = later(later_on.booted, 9_001, &larger(valid()), |_| {});
    assert_eq!((flushed.writes[0].safe, asides(&flushed)), (2_500, vec![15_000]));
}

#[test]
fn a_file_that_could_not_be_written_has_the_safe_share_of_before() {
    let valid = || larger(fleet(Vec::new(), Vec::new()));
    let before = later(BTreeMap::new(), 0, &fleet(Vec::new(), Vec::new()), |_| {}).booted;
    let old = later(before, 1, &valid(), |observed| observed.old_files = true);
    let still = later(old.booted, 9_000, &valid(), |observed| observed.old_files = true);
    let new = larger(fleet(vec![pod("1", "2026-11-24T14:29:59Z")], Vec::new()));
    assert_eq!(asides(&later(still.booted, 9_030, &new, |_| {})), [15_000], "it started with the old file");
}

#[test]
fn a_limit_in_the_place_of_others_has_their_safe_shares() {
    let limit = |name: &str, tokens, derived: bool| EffectiveLimit {
        name: name.to_owned(),
        tokens: Some(tokens),
        derived: derived.then(|| name.to_owned()),
        ..Default::default()
    };
    let after = |old: &[&EffectiveLimit], new: &[&EffectiveLimit]| {
        let orphan = |limits: &[&EffectiveLimit]| Validated {
            limits: Limits::Known(limits.iter().copied().cloned().collect()),
            ..fleet(vec![pod("1", "2026-11-24T11:59:00Z")], Vec::new())
        };
        let before = later(BTreeMap::new(), 0, &orphan(old), |_| {}).booted;
        asides(&later(before, 1, &orphan(new), |_| {}))
    };
    let (big, other) = (&limit("big", 60_000, false), &limit("other", 20_000, false));
    let (x, y) = (&limit("x", 60_000, true), &limit("y", 40_000, true));
    assert_eq!(after(&[big], &[other]), [15_000], "another name and a smaller budget");
    assert_eq!(after(&[big], &[big, other]), [15_000, 5_000], "beside one that stays");
    assert_eq!(after(&[x, y], &[big]), [25_000], "several in one");
    assert_eq!(after(&[big], &[y]), [15_000], "explicit, then derived");
    assert_eq!(after(&[x], &[y]), [10_000], "each about its own");
}

#[test]
fn a_safe_share_is_set_aside_for_each_member_that_the_ledger_lost_and_whose_pod_is_gone() {
    let valid = fleet(vec![pod("1", "2026-11-24T11:59:00Z")], vec![member("a", "1", false)]);
    // The first is counted by its pod, the second is back.
    let write = written_without(&valid, &[("b", 15_000)], &[("a", "1"), ("b", "2"), ("c", "3")]);
    assert_eq!((write.safe, write.aside), (15_000, 30_000));
}

#[test]
fn a_pod_counts_the_workers_that_it_began_with() {
    let old = "2026-11-24T11:00:00Z";
    let mut valid = fleet(vec![pod("u1", old)], vec![member("a", "u1", false)]);
    valid.targets[0].size.workers = 4;
    assert!(written(&valid, &[("a", 0)]).aside > 0, "three of four have no record");
    let before = Observed { other_workers: [("u1".to_owned(), 1)].into(), ..at_noon() };
    assert_eq!(intent(&valid, &[("a", 0)], before).writes[0].aside, 0);
}

#[test]
fn a_crash_loop_that_was_never_answered_leaves_nothing_to_count() {
    let crashes = fleet(vec![pod("u1", "2026-11-24T11:59:00Z")], Vec::new());
    let before = intent(&crashes, &[], at_noon());
    assert_eq!(before.writes[0].aside, 15_000, "it lives, and may come to it");
    let after = Observed { departed: before.departed, ..at_noon() };
    assert_eq!(intent(&fleet(Vec::new(), Vec::new()), &[], after).writes[0].aside, 0);
}

#[test]
fn one_that_ended_without_a_record_counts_for_a_window() {
    let old = "2026-11-24T11:00:00Z";
    let (two, members) = (vec![pod("u1", old), pod("u2", old)], vec![member("a", "u1", false)]);
    let before = intent(&fleet(two.clone(), members), &[("a", 0)], at_noon());
    assert_eq!(before.writes[0].aside, 15_000, "u2 has no record");
    // Then both pods end.
    let after = |seconds: i64| {
        let now = NOW.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
        Observed { now, departed: before.departed.clone(), ..Observed::default() }
    };
    let next = intent(&fleet(Vec::new(), Vec::new()), &[("a", 0)], after(1));
    assert_eq!(next.writes[0].aside, 15_000, "a has its record");
    let away = Observed { ledger: Some(Err(ledger::LedgerError::Fenced)), ..after(1) };
    assert_eq!(arrange(&budget(), &away, &fleet(two, Vec::new()), &KnownBooks::default()).departed, before.departed);
    let last = Observed { departed: next.departed, ..after(66) };
    assert_eq!(intent(&fleet(Vec::new(), Vec::new()), &[("a", 0)], last).writes[0].aside, 0);
}
