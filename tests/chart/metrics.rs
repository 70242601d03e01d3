//! `docs/metrics.md`, held to the operator's registry both ways.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokenbudget::api::ConditionKind;
use tokenbudget::ops::{ConditionStatus, FleetReading, LedgerErrorKind, Metrics, Outcome, Reading, Unit};

/// A metric by the name of its samples (a histogram's without `_bucket` and the like): its type, its labels and their
/// values.
pub type Registry = BTreeMap<String, (String, BTreeMap<String, BTreeSet<String>>)>;

/// Every metric with every value of its bounded labels.
pub fn registry() -> Registry {
    let metrics = Metrics::new();
    for outcome in [Outcome::Applied, Outcome::Waiting, Outcome::Standby, Outcome::Refused, Outcome::Failed] {
        metrics.reconciled(outcome, Duration::from_millis(2));
    }
    for kind in [LedgerErrorKind::Connection, LedgerErrorKind::Timeout, LedgerErrorKind::Fenced, LedgerErrorKind::Reply]
    {
        metrics.ledger_error(kind);
    }
    metrics.set_leader(true);
    let reading = Reading {
        learning: Some(false),
        granted: Some(1),
        outside: Some(1),
        reserved_percent: Some([100, 200]),
        waited: Some(1),
        ..Reading::default()
    };
    metrics.set_budget("llm", "tb", &[("gpt", Unit::tokens, reading), ("gpt", Unit::requests, reading)]);
    let conditions = ConditionKind::ALL.iter().map(|kind| (kind.as_str(), ConditionStatus::True)).collect();
    metrics.set_fleet(
        "llm",
        "tb",
        &FleetReading {
            conditions,
            processes: Some(BTreeMap::new()),
            calls: Some([120, 9]),
            ..FleetReading::default()
        },
    );
    read(&metrics.encode().unwrap())
}

fn read(text: &str) -> Registry {
    let mut registry = Registry::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            family = format!("{name}{suffix}");
            registry.insert(family.clone(), (kind.to_owned(), BTreeMap::new()));
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&family), "{line} is not of {family}");
            let labels =
                line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
            for (label, value) in labels.split(',').filter_map(|label| label.split_once('=')) {
                // The buckets of a histogram are its type, and no label of ours.
                if label != "le" {
                    let values = registry.get_mut(&family).unwrap().1.entry(label.to_owned()).or_default();
                    values.insert(value.trim_matches('"').to_owned());
                }
            }
        }
    }
    registry
}

/// The words in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    let page = include_str!("../../docs/metrics.md");
    let mut documented = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `tokenbudget_")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, unit, labels, meaning, _] = cells[..] else { panic!("not five columns: {row}") };
        assert!(!unit.is_empty() && !meaning.is_empty(), "{row}");
        documented.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), quoted(labels)));
    }
    let there = registry();
    let shown: BTreeMap<_, _> = there
        .iter()
        .map(|(name, (kind, labels))| (name.clone(), (kind.clone(), labels.keys().cloned().collect())))
        .collect();
    assert_eq!(documented, shown);
    let words = quoted(page);
    for (name, (_, labels)) in &there {
        for (label, values) in labels
            .iter()
            .filter(|(label, _)| ["status", "state", "outcome", "kind", "quantile"].contains(&label.as_str()))
        {
            for value in values {
                assert!(words.contains(value), "docs/metrics.md does not have {label}={value} of {name}");
            }
        }
    }
}

#[test]
fn a_unit_of_time_is_in_the_name_and_no_label_is_of_pods() {
    for (name, (kind, labels)) in registry() {
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        for label in labels.keys() {
            assert!(!["pod", "instance", "member", "container"].contains(&label.as_str()), "{name} has {label}");
        }
    }
}
