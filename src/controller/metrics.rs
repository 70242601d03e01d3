//! What of a pass goes to Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::apply::Applied;
use super::context::Context;
use super::observe::Observed;
use super::signed;
use super::traffic::minute_of;
use crate::api::{ConditionKind, TokenBudget, TokenBudgetStatus};
use crate::ledger::{
    self, BookId, LedgerError, MemberRecord, MemberState, Observation, PlannedBook, Report, calls_by, waited_by,
};
use crate::ops::{ConditionStatus, FleetReading, LedgerErrorKind, ProcessState, Reading, Unit};

/// Sets the series of a TokenBudget from a pass, and counts failures of the ledger.
pub fn set(tb: &TokenBudget, ctx: &Context, observed: &Observed, applied: &Applied, status: &TokenBudgetStatus) {
    let errors = [
        observed.ledger.as_ref().and_then(|l| l.as_ref().err()),
        applied.ledger.as_ref().and_then(|l| l.as_ref().err()),
    ];
    for error in errors.into_iter().flatten() {
        ctx.metrics.ledger_error(kind(error));
    }
    // What is of the limit, and not of a unit, is in its first row.
    let first = |name: &str| status.limits.iter().find(|row| row.name == name);
    let outside = |name: &str| first(name).and_then(|row| row.outside.as_ref());
    let reserved = |name: &str| first(name).and_then(|row| row.reserved_percent.as_ref());
    let readings: Vec<_> = status
        .limits
        .iter()
        .map(|row| {
            let unit = if row.unit == "tokens" { Unit::tokens } else { Unit::requests };
            let reading = Reading {
                budget: row.budget,
                spent: row.spent,
                worst: row.worst,
                pool: row.pool,
                aside: row.aside,
                safe_share: row.safe_share,
                granted: book(applied, &row.name, unit).map(|book| signed(book.lent)),
                learning: book(applied, &row.name, unit).map(|book| book.learning),
                members: row.members,
                denied: row.denied,
                outside: outside(&row.name).map(|o| if unit == Unit::tokens { o.tokens } else { o.requests }),
                reserved_percent: reserved(&row.name).map(|r| [r.p50, r.p99]),
                waited: waited_by(reports(observed), &row.name, minute_of(observed.now)).map(signed),
            };
            (row.name.as_str(), unit, reading)
        })
        .collect();
    let (namespace, name) = (tb.namespace().unwrap_or_default(), tb.name_any());
    ctx.metrics.set_budget(&namespace, &name, &readings);
    ctx.metrics.set_fleet(&namespace, &name, &fleet(observed, status));
}

/// What the processes say of themselves; nothing while the ledger does not answer.
fn reports(observed: &Observed) -> impl Iterator<Item = &Report> {
    observed.ledger.iter().flatten().flat_map(|seen| seen.reports.values())
}

/// What the ledger said of a book in this pass.
fn book<'a>(applied: &'a Applied, limit: &str, unit: Unit) -> Option<&'a PlannedBook> {
    let unit = match unit {
        Unit::tokens => ledger::Unit::Tokens,
        Unit::requests => ledger::Unit::Requests,
    };
    let planned = applied.ledger.as_ref()?.as_ref().ok()?;
    planned.books.get(&BookId::new(limit, unit))
}

fn fleet(observed: &Observed, status: &TokenBudgetStatus) -> FleetReading {
    let condition = |kind: ConditionKind| {
        let condition = status.conditions.iter().find(|c| c.type_ == kind.as_str())?;
        let status = match condition.status.as_str() {
            "True" => ConditionStatus::True,
            "False" => ConditionStatus::False,
            _ => ConditionStatus::Unknown,
        };
        Some((kind.as_str(), status))
    };
    let living = observed.targets.iter().flat_map(|t| &t.pods).filter(|p| p.is_living());
    let without: usize = observed.targets.iter().map(|t| t.pods_without_agent).sum();
    FleetReading {
        conditions: ConditionKind::ALL.into_iter().filter_map(condition).collect(),
        processes: observed.ledger.as_ref().and_then(|l| l.as_ref().ok()).map(processes),
        calls: calls_by(reports(observed), minute_of(observed.now)).map(|c| [signed(c.beats), signed(c.draws)]),
        pods_with_agent: signed(living.count()),
        pods_without_agent: signed(without),
    }
}

/// Processes by state, without those that have ended for sure: all that reported, and those of which only records are left.
fn processes(seen: &Observation) -> BTreeMap<ProcessState, i64> {
    let mut records: BTreeMap<&str, Vec<(&MemberRecord, u64)>> = BTreeMap::new();
    for book in seen.books.values() {
        for (id, record) in &book.members {
            records.entry(id).or_default().push((record, book.clock_ms));
        }
    }
    let ids: BTreeSet<&str> = seen.reports.keys().map(String::as_str).chain(records.keys().copied()).collect();
    let mut states = BTreeMap::new();
    for id in ids {
        let of = records.get(id).map_or(&[][..], Vec::as_slice);
        if of.iter().any(|(record, _)| record.ended_ms.is_some()) {
            continue;
        }
        let state = if of.iter().any(|(record, clock_ms)| record.lease_is_over(*clock_ms)) {
            ProcessState::Offline
        } else {
            match seen.reports.get(id).map(|report| report.state) {
                Some(MemberState::Starting) => ProcessState::Starting,
                Some(MemberState::Enforcing) => ProcessState::Enforcing,
                Some(MemberState::Observing) => ProcessState::Observing,
                Some(MemberState::Degraded) => ProcessState::Degraded,
                Some(MemberState::Unknown) | None => ProcessState::Unknown,
            }
        };
        *states.entry(state).or_default() += 1;
    }
    states
}

fn kind(error: &LedgerError) -> LedgerErrorKind {
    match error {
        LedgerError::Timeout { .. } => LedgerErrorKind::Timeout,
        LedgerError::Fenced => LedgerErrorKind::Fenced,
        LedgerError::Unreachable { .. } => LedgerErrorKind::Connection,
        LedgerError::InvalidUrl { .. }
        | LedgerError::InvalidCa
        | LedgerError::Malformed { .. }
        | LedgerError::Script { .. } => LedgerErrorKind::Reply,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ledger::{BookState, Planned, Report};

    fn report(state: &str) -> Report {
        serde_json::from_value(json!({"pod": "p", "podUid": "u", "container": "c", "worker": 1, "startedMs": 1,
            "agent": "0.1.0", "state": state}))
        .unwrap()
    }

    fn seen() -> Observation {
        let record = |until_ms, ended_ms| MemberRecord { until_ms, ended_ms, ..MemberRecord::default() };
        let members = [
            ("enforcing", record(200, None)),
            ("offline", record(50, None)),
            ("ended", record(200, Some(90))),
            ("mute", record(200, None)),
        ];
        let mut book = BookState { clock_ms: 100, ..BookState::default() };
        book.members = members.into_iter().map(|(id, record)| (id.to_owned(), record)).collect();
        let reports = [
            ("enforcing", "Enforcing"),
            ("offline", "Enforcing"),
            ("ended", "Enforcing"),
            ("starting", "Starting"),
            ("degraded", "Degraded"),
        ];
        Observation {
            reports: reports.into_iter().map(|(id, state)| (id.to_owned(), report(state))).collect(),
            books: BTreeMap::from([(BookId::new("gpt", ledger::Unit::Tokens), book)]),
            ..Observation::default()
        }
    }

    #[test]
    fn a_process_counts_once_and_not_after_its_end() {
        let expected = [
            (ProcessState::Enforcing, 1),
            (ProcessState::Starting, 1),
            (ProcessState::Degraded, 1),
            (ProcessState::Offline, 1),
            (ProcessState::Unknown, 1),
        ];
        assert_eq!(processes(&seen()), BTreeMap::from(expected));
    }

    #[test]
    fn conditions_come_from_the_status_and_processes_only_from_a_ledger_that_answers() {
        let status: TokenBudgetStatus = serde_json::from_value(json!({"conditions": [
            {"type": "Ready", "status": "False", "reason": "NoPods", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Enforcing", "status": "Unknown", "reason": "Pending", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}))
        .unwrap();
        let mut observed =
            Observed { now: jiff::Timestamp::UNIX_EPOCH, ledger: Some(Ok(seen())), ..Observed::default() };
        let known = fleet(&observed, &status);
        let expected = [("Enforcing", ConditionStatus::Unknown), ("Ready", ConditionStatus::False)];
        assert_eq!(known.conditions, BTreeMap::from(expected));
        assert!(known.processes.is_some());
        observed.ledger = Some(Err(LedgerError::Fenced));
        assert_eq!(fleet(&observed, &status).processes, None);
    }

    #[test]
    fn what_is_lent_is_unknown_without_the_ledger() {
        let lent = PlannedBook { clock_ms: 1, budget: 9, lent: 4, aside: 0, pool: 5, learning: true, created: true };
        let books = BTreeMap::from([(BookId::new("gpt", ledger::Unit::Tokens), lent)]);
        let planned = Planned { books, ..Planned::default() };
        let applied = Applied { ledger: Some(Ok(planned)), unattached: Vec::new() };
        assert_eq!(book(&applied, "gpt", Unit::tokens).map(|book| book.lent), Some(4));
        assert!(book(&applied, "gpt", Unit::requests).is_none());
        let away = Applied { ledger: Some(Err(LedgerError::Fenced)), unattached: Vec::new() };
        assert!(book(&away, "gpt", Unit::tokens).is_none());
    }
}
