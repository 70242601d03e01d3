//! Writes the status when it changed, and an event for each transition.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tracing::{info, warn};

use super::Error;
use super::context::Context;
use super::memory::{Memory, Told, ToldEvent};
use super::scaling::Scaling;
use crate::api::{ConditionKind, FIELD_MANAGER, LimitOutside, LimitStatus, Reason, TokenBudget, TokenBudgetStatus};
use crate::causes::Causes;

/// How old the figures of the status may be.
const FIGURES: Duration = Duration::from_secs(15);

/// Events that say the same within this time of each other are one, with a count. A recorder takes 12 kB, so it is not kept
/// for longer.
const SERIES: Duration = Duration::from_secs(60);

/// What conditions said lately and say no more, by type, status and reason, and when that was written.
pub type Left = BTreeMap<(String, String, String), Instant>;

/// Writes what changed: transitions at once, figures at most every 15 s, and so what a condition comes back to.
///
/// # Errors
/// When the API server refuses or does not answer. An event that cannot be published is only logged.
pub async fn publish(
    tb: &TokenBudget,
    ctx: &Context,
    memory: &mut Memory,
    status: TokenBudgetStatus,
) -> Result<(), Error> {
    let now = Instant::now();
    forget_events(&mut memory.told.events, now);
    let old = memory.told.written.clone().unwrap_or_default();
    let mut events = Vec::new();
    if is_due(&old, &status, &memory.told.left, memory.told.figures_at, now) {
        write(tb, ctx, &status).await?;
        memory.told.figures_at = Some(now);
        leave(&mut memory.told.left, &old, &status, now);
        events = transitions(&old, &status);
        memory.told.written = Some(status.clone());
    }
    // Noted before they are sent: should they take longer than a pass may, they are not sent again.
    events.extend(scaled(&mut memory.told.scaling, &status, now));
    for event in events {
        info!(reason = %event.reason, note = event.note.as_deref().unwrap_or_default(), "event");
        let recorder = recorder_of(&event, &mut memory.told.events, Instant::now(), || ctx.recorder());
        if let Err(error) = recorder.publish(&event, &tb.object_ref(&())).await {
            warn!(error = %Causes(&error), "an event was not published");
        }
    }
    Ok(())
}

async fn write(tb: &TokenBudget, ctx: &Context, status: &TokenBudgetStatus) -> Result<(), Error> {
    let namespace = tb.namespace().unwrap_or_default();
    let patch = json!({"apiVersion": TokenBudget::api_version(&()), "kind": TokenBudget::kind(&()), "status": status});
    let params = PatchParams::apply(&format!("{FIELD_MANAGER}-status")).force();
    let api: Api<TokenBudget> = Api::namespaced(ctx.client.clone(), &namespace);
    ctx.ensure_leads()?;
    api.patch_status(&tb.name_any(), &params, &Patch::Apply(&patch)).await?;
    Ok(())
}

/// Whether it is written now: `figures_at` is when that was done last.
fn is_due(
    old: &TokenBudgetStatus,
    new: &TokenBudgetStatus,
    left: &Left,
    figures_at: Option<Instant>,
    now: Instant,
) -> bool {
    let figures_are_old = || figures_at.is_none_or(|at| now.duration_since(at) >= FIGURES);
    settled(old) != settled(new) && (figures_are_old() || essence(old) != essence(&calm(old, new, left, now)))
}

/// The status with what it said before for conditions that come back to what they left just now: one that flaps, as of a Redis
/// that answers every other second, would be written, and told, with each pass.
fn calm(old: &TokenBudgetStatus, new: &TokenBudgetStatus, left: &Left, now: Instant) -> TokenBudgetStatus {
    let mut calm = new.clone();
    let comes_back = |c: &Condition| left.get(&value_of(c)).is_some_and(|at| now.duration_since(*at) < FIGURES);
    for condition in calm.conditions.iter_mut().filter(|c| comes_back(c)) {
        if let Some(before) = old.conditions.iter().find(|o| o.type_ == condition.type_) {
            condition.clone_from(before);
        }
    }
    calm
}

fn value_of(condition: &Condition) -> (String, String, String) {
    (condition.type_.clone(), condition.status.clone(), condition.reason.clone())
}

/// Takes note of what conditions say no more, as this was written.
fn leave(left: &mut Left, old: &TokenBudgetStatus, new: &TokenBudgetStatus, now: Instant) {
    left.retain(|_, at| now.duration_since(*at) < FIGURES);
    let gone = old.conditions.iter().filter(|o| !new.conditions.iter().any(|c| same(Some(o), c) && o.type_ == c.type_));
    left.extend(gone.map(|condition| (value_of(condition), now)));
}

/// The events that the size of the fleet is worth. Without its ledger it is not known.
fn scaled(scaling: &mut Scaling, status: &TokenBudgetStatus, now: Instant) -> Vec<Event> {
    let answers = |c: &Condition| c.type_ == ConditionKind::LedgerReachable.as_str() && c.status == "True";
    if !status.conditions.iter().any(answers) {
        return Vec::new();
    }
    let notes = scaling.note(&status.limits, now);
    notes.iter().map(|note| event(EventType::Normal, "Rebalanced", "Plan", note)).collect()
}

/// The recorder of the last event with the same reason and action if that said the same, else a new one.
fn recorder_of<R: Clone>(event: &Event, told: &mut Told<R>, now: Instant, new: impl FnOnce() -> R) -> R {
    let key = (event.reason.clone(), event.action.clone());
    let before = told.remove(&key).filter(|told| told.note == event.note);
    let recorder = before.map_or_else(new, |told| told.recorder);
    told.insert(key, ToldEvent { note: event.note.clone(), recorder: recorder.clone(), at: now });
    recorder
}

fn forget_events<R>(told: &mut Told<R>, now: Instant) {
    if !told.is_empty() {
        told.retain(|_, event| now.duration_since(event.at) < SERIES);
        told.shrink_to_fit();
    }
}

/// The status without what moves by itself: what members of an idle fleet hold swings a little around what they may keep.
fn settled(status: &TokenBudgetStatus) -> TokenBudgetStatus {
    let mut status = status.clone();
    if status.limits.iter().all(|row| row.spent == 0 && row.denied == 0) {
        for row in &mut status.limits {
            (row.pool, row.pressure_percent) = (0, 0);
        }
        for row in &mut status.pods {
            row.grant = 0;
        }
    }
    status
}

/// The status without its figures: a change in it is a transition. Which pods there are is a figure, too: while a large fleet
/// rolls, they are others in each pass, and the conditions say what is wrong with one.
fn essence(status: &TokenBudgetStatus) -> TokenBudgetStatus {
    let mut status = status.clone();
    (status.used, status.denied, status.utilization, status.replicas) = (None, None, None, None);
    status.outside.clear();
    status.pods.clear();
    for row in &mut status.limits {
        (row.spent, row.worst, row.denied, row.reserved_percent, row.observed) = (0, 0, 0, None, None);
        (row.pool, row.pressure_percent, row.aside, row.members) = (0, 0, 0, 0);
        // That there is something is no figure.
        row.outside = row.outside.as_ref().map(|_| LimitOutside::default());
    }
    for condition in &mut status.conditions {
        condition.message.clear();
    }
    status
}

/// The events that a change of the status is worth.
fn transitions(old: &TokenBudgetStatus, new: &TokenBudgetStatus) -> Vec<Event> {
    let mut events: Vec<Event> = changed(old, new)
        .map(|c| {
            let mends = c.status == "True" || is_waiting(&c.reason);
            event(if mends { EventType::Normal } else { EventType::Warning }, &c.reason, &c.type_, &c.message)
        })
        .collect();
    for row in &new.limits {
        let before = row_of(old, row);
        if let Some(before) = before.filter(|b| b.budget > row.budget) {
            let note = format!("limit {}: {} -> {} {} a minute", row.name, before.budget, row.budget, row.unit);
            events.push(event(EventType::Normal, "BudgetCut", "Plan", &note));
        }
        // WithinBudget comes and goes with the load, and is no event; this stays for minutes.
        if let Some(outside) = row.outside.as_ref().filter(|_| before.is_none_or(|b| b.outside.is_none())) {
            let note = format!("limit {}: others spend {} tokens a minute of the same quota", row.name, outside.tokens);
            events.push(event(EventType::Warning, Reason::TrafficOutside.as_str(), "Plan", &note));
        }
    }
    events
}

/// The conditions with another status or reason, one of each reason: others say why they wait for the ledger, and its own what
/// is wrong with it. `WithinBudget` comes and goes with the load, and `Ready` with the others.
fn changed<'a>(old: &TokenBudgetStatus, new: &'a TokenBudgetStatus) -> impl Iterator<Item = &'a Condition> {
    let untold = [ConditionKind::Ready, ConditionKind::WithinBudget].map(ConditionKind::as_str);
    let ledgers = |c: &&Condition| c.type_ == ConditionKind::LedgerReachable.as_str();
    let (ledgers, others): (Vec<_>, Vec<_>) = new
        .conditions
        .iter()
        .filter(|c| !untold.contains(&c.type_.as_str()) && c.status != "Unknown")
        .filter(|c| !same(old.conditions.iter().find(|o| o.type_ == c.type_), c))
        .partition(ledgers);
    let mut told = BTreeSet::new();
    ledgers.into_iter().chain(others).filter(move |c| told.insert(&c.reason))
}

/// The row of the same limit and unit in another status.
fn row_of<'a>(status: &'a TokenBudgetStatus, row: &LimitStatus) -> Option<&'a LimitStatus> {
    status.limits.iter().find(|other| other.name == row.name && other.unit == row.unit)
}

fn same(old: Option<&Condition>, new: &Condition) -> bool {
    old.is_some_and(|old| old.status == new.status && old.reason == new.reason)
}

/// Reasons that pass by themselves: no warning.
fn is_waiting(reason: &str) -> bool {
    [
        Reason::PartiallyAttached,
        Reason::WaitingForProcesses,
        Reason::WindowNotPassed,
        Reason::WaitingForDeclaredLimits,
        Reason::Observing,
        Reason::NoPods,
    ]
    .iter()
    .any(|r| r.as_str() == reason)
}

fn event(type_: EventType, reason: &str, action: &str, note: &str) -> Event {
    let end = (0..=note.len().min(1000)).rev().find(|&at| note.is_char_boundary(at)).unwrap_or(0);
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note[..end].to_owned()),
        action: action.to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{OutsideTraffic, PodStatus, ReservedPercent};

    fn status(spent: i64, budget: i64, members: i64, reason: &str) -> TokenBudgetStatus {
        let condition: Condition = serde_json::from_value(json!({
            "type": "Attached", "status": "False", "reason": reason, "message": format!("{spent}"),
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }))
        .unwrap();
        let row = LimitStatus { name: "a".into(), unit: "tokens".into(), budget, spent, members, ..Default::default() };
        TokenBudgetStatus { limits: vec![row], conditions: vec![condition], ..Default::default() }
    }

    #[test]
    fn events_that_say_something_else_are_others() {
        let (mut told, mut made, now) = (Told::default(), 0, Instant::now());
        let mut recorder = |reason: &str, note: &str| {
            recorder_of(&event(EventType::Normal, reason, "Plan", note), &mut told, now, || {
                made += 1;
                made
            })
        };
        assert_eq!((recorder("BudgetCut", "a"), recorder("BudgetCut", "a"), recorder("BudgetCut", "b")), (1, 1, 2));
        assert_eq!((recorder("Rebalanced", "b"), recorder("BudgetCut", "b")), (3, 2));
    }

    #[test]
    fn a_recorder_is_kept_for_as_long_as_its_event_may_come_again() {
        let (mut told, start) = (Told::default(), Instant::now());
        let flap = event(EventType::Warning, "LedgerUnreachable", "LedgerReachable", "gone");
        recorder_of(&flap, &mut told, start, || 1);
        forget_events(&mut told, start + SERIES / 2);
        assert_eq!(recorder_of(&flap, &mut told, start + SERIES / 2, || 2), 1);
        forget_events(&mut told, start + SERIES);
        assert_eq!(recorder_of(&flap, &mut told, start + SERIES, || 2), 1, "it came again meanwhile");
        forget_events(&mut told, start + SERIES * 2);
        assert!(told.is_empty() && told.capacity() == 0);
    }

    #[test]
    fn figures_and_messages_are_no_transition() {
        assert_eq!(essence(&status(1, 10, 1, "NoPods")), essence(&status(2, 10, 1, "NoPods")));
        assert_eq!(essence(&status(1, 10, 1, "NoPods")), essence(&status(1, 10, 2, "NoPods")));
        assert_ne!(essence(&status(1, 10, 1, "NoPods")), essence(&status(1, 11, 1, "NoPods")));
        assert_ne!(essence(&status(1, 10, 1, "NoPods")), essence(&status(1, 10, 1, "AllPodsAttached")));
    }

    #[test]
    fn a_fleet_that_rolls_is_written_each_15_s_and_told_when_it_is_whole() {
        let rolled = |members: i64| {
            let mut status = status(0, 10, members, "LedgerAnswers");
            (status.conditions[0].type_, status.conditions[0].status) = ("LedgerReachable".into(), "True".into());
            status.replicas = Some(format!("{members}/60"));
            status.pods = (0..members).map(|i| PodStatus { pod: i.to_string(), ..PodStatus::default() }).collect();
            status.limits[0].aside = 60 - members;
            status
        };
        let start = Instant::now();
        let (mut scaling, mut written, mut figures_at) = (Scaling::default(), rolled(1), Some(start));
        scaling.said_before(&written.limits);
        let (mut writes, mut events) = (0, Vec::new());
        for second in 1..600 {
            let (status, now) = (rolled(second.min(60)), start + Duration::from_secs(second.unsigned_abs()));
            events.extend(scaled(&mut scaling, &status, now));
            if is_due(&written, &status, &Left::new(), figures_at, now) {
                events.extend(transitions(&written, &status));
                (written, figures_at, writes) = (status, Some(now), writes + 1);
            }
        }
        let notes: Vec<_> = events.into_iter().filter_map(|event| event.note).collect();
        assert_eq!((writes, notes), (4, vec!["limit a: 60 processes share it now, 1 before".to_owned()]));
        assert_eq!(written, rolled(60));
    }

    #[test]
    fn a_condition_that_flaps_is_written_each_15_s_and_one_that_was_quiet_at_once() {
        let start = Instant::now();
        let of = |reason: &str| status(1, 10, 1, reason);
        let (mut left, mut written, mut figures_at) = (Left::new(), of("LedgerAnswers"), Some(start));
        let mut is_written = |second: u64, status: TokenBudgetStatus| {
            let now = start + Duration::from_secs(second);
            let due = is_due(&written, &status, &left, figures_at, now);
            if due {
                leave(&mut left, &written, &status, now);
                (written, figures_at) = (status, Some(now));
            }
            due
        };
        let flap = |second: u64| of(if second.is_multiple_of(2) { "LedgerUnreachable" } else { "LedgerAnswers" });
        let writes: Vec<u64> = (2..62).filter(|second| is_written(*second, flap(*second))).collect();
        assert_eq!(writes, [2, 17, 32, 47]);
        assert!(is_written(62, of("LedgerUnreachable")), "what came back stays, and is told with the figures");
        assert!(!is_written(63, of("LedgerUnreachable")));
        assert!(is_written(64, of("Learning")), "something new");
        assert!(is_written(80, of("LedgerAnswers")));
        assert!(is_written(96, status(2, 10, 1, "LedgerAnswers")), "figures");
        assert!(is_written(97, status(2, 10, 1, "LedgerUnreachable")), "after a quiet time");
        assert!(!is_written(98, status(2, 10, 1, "LedgerAnswers")));
        assert!(is_written(99, status(2, 9, 1, "LedgerAnswers")), "another budget");
    }

    #[test]
    fn what_an_idle_fleet_holds_is_no_news() {
        let with = |spent: i64, pool: i64, grant: i64| TokenBudgetStatus {
            limits: vec![LimitStatus { spent, pool, ..LimitStatus::default() }],
            pods: vec![PodStatus { grant, ..PodStatus::default() }],
            ..TokenBudgetStatus::default()
        };
        assert_eq!(settled(&with(0, 100, 9)), settled(&with(0, 90, 8)));
        assert_ne!(settled(&with(1, 100, 9)), settled(&with(1, 90, 9)));
        assert_ne!(settled(&with(1, 100, 9)), settled(&with(1, 100, 8)));
        assert_ne!(settled(&with(1, 100, 9)), settled(&with(0, 100, 9)));
    }

    #[test]
    fn traffic_outside_is_a_transition_and_its_figures_are_none() {
        let with = |tokens: Option<i64>, p50: i64| {
            let mut status = status(1, 10, 1, "NoPods");
            status.limits[0].outside = tokens.map(|tokens| LimitOutside { tokens, requests: 1 });
            status.limits[0].reserved_percent = Some(ReservedPercent { p50, p99: 1 });
            status.outside = vec![OutsideTraffic { kind: "batch".into(), requests: p50, tokens: 0 }];
            status
        };
        assert_eq!(essence(&with(Some(1), 1)), essence(&with(Some(2), 2)));
        assert_eq!(essence(&with(None, 1)), essence(&status(1, 10, 1, "NoPods")));
        assert_ne!(essence(&with(Some(1), 1)), essence(&with(None, 1)));
        let events = transitions(&with(None, 1), &with(Some(7_000), 1));
        let events: Vec<_> =
            events.iter().map(|e| (e.reason.as_str(), e.note.as_deref().unwrap_or_default())).collect();
        assert_eq!(events, [("TrafficOutside", "limit a: others spend 7000 tokens a minute of the same quota")]);
        assert!(transitions(&with(Some(1), 1), &with(Some(2), 1)).is_empty());
    }

    #[test]
    fn events_tell_of_transitions_once() {
        let reasons = |old: &TokenBudgetStatus, new: &TokenBudgetStatus| -> Vec<String> {
            transitions(old, new).into_iter().map(|e| e.reason).collect()
        };
        let first = status(1, 10, 2, "NoPods");
        assert_eq!(reasons(&TokenBudgetStatus::default(), &first), ["NoPods"]);
        assert!(reasons(&first, &status(5, 10, 2, "NoPods")).is_empty());
        assert_eq!(reasons(&first, &status(1, 5, 3, "AttachContested")), ["AttachContested", "BudgetCut"]);
    }

    #[test]
    fn conditions_of_one_reason_are_one_event_with_the_ledgers_own_message() {
        let condition = |kind: ConditionKind, message: &str| Condition {
            type_: kind.as_str().to_owned(),
            message: message.to_owned(),
            ..status(1, 10, 1, "LedgerUnreachable").conditions[0].clone()
        };
        let mut new = status(1, 10, 1, "LedgerUnreachable");
        new.conditions =
            vec![condition(ConditionKind::Attached, "waits"), condition(ConditionKind::LedgerReachable, "is gone")];
        let events = transitions(&TokenBudgetStatus::default(), &new);
        assert_eq!(events.iter().map(|e| e.note.as_deref()).collect::<Vec<_>>(), [Some("is gone")]);
        assert!(transitions(&new, &new).is_empty());
    }
}
