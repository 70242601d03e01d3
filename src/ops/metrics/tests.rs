//! Every family by its name, and series that go.

use std::collections::BTreeMap;

use super::*;

fn fleet() -> FleetReading {
    FleetReading {
        conditions: BTreeMap::from([("Ready", ConditionStatus::False)]),
        processes: Some(BTreeMap::from([(ProcessState::Enforcing, 2)])),
        calls: Some([360, 42]),
        pods_with_agent: 3,
        pods_without_agent: 1,
    }
}

#[test]
fn every_family_has_its_name() {
    let metrics = Metrics::new();
    metrics.reconciled(Outcome::Applied, Duration::from_millis(2));
    metrics.ledger_error(LedgerErrorKind::Timeout);
    metrics.ledger_called(Duration::from_micros(700));
    metrics.set_leader(true);
    metrics.set_leader(true);
    let reading = Reading {
        budget: 1000,
        spent: 200,
        worst: 990,
        pool: -5,
        granted: Some(994),
        aside: 11,
        safe_share: 250,
        learning: Some(true),
        members: 3,
        denied: 7,
        outside: Some(900),
        reserved_percent: Some([118, 640]),
        waited: Some(17),
    };
    metrics.set_budget("llm", "azure", &[("gpt", Unit::tokens, reading)]);
    metrics.set_fleet("llm", "azure", &fleet());
    let text = metrics.encode().unwrap();
    let one = r#"namespace="llm",tokenbudget="azure""#;
    let book = r#"{namespace="llm",tokenbudget="azure",limit="gpt",unit="tokens"}"#;
    for line in [
        "tokenbudget_reconcile_total{outcome=\"Applied\"} 1".to_owned(),
        "tokenbudget_reconcile_duration_seconds_count 1".to_owned(),
        format!("tokenbudget_budget{book} 1000"),
        format!("tokenbudget_spent{book} 200"),
        format!("tokenbudget_worst{book} 990"),
        format!("tokenbudget_pool{book} -5"),
        format!("tokenbudget_granted{book} 994"),
        format!("tokenbudget_aside{book} 11"),
        format!("tokenbudget_safe_share{book} 250"),
        format!("tokenbudget_learning{book} 1"),
        format!("tokenbudget_members{book} 3"),
        format!("tokenbudget_denied{book} 7"),
        format!("tokenbudget_outside{book} 900"),
        r#"tokenbudget_reserved_ratio{namespace="llm",tokenbudget="azure",limit="gpt",quantile="0.5"} 1.18"#.to_owned(),
        r#"tokenbudget_reserved_ratio{namespace="llm",tokenbudget="azure",limit="gpt",quantile="0.99"} 6.4"#.to_owned(),
        format!(r#"tokenbudget_waited{{{one},limit="gpt"}} 17"#),
        format!(r#"tokenbudget_calls{{{one},kind="beat"}} 360"#),
        format!(r#"tokenbudget_calls{{{one},kind="draw"}} 42"#),
        format!("tokenbudget_condition{{{one},type=\"Ready\",status=\"True\"}} 0"),
        format!("tokenbudget_condition{{{one},type=\"Ready\",status=\"False\"}} 1"),
        format!("tokenbudget_condition{{{one},type=\"Ready\",status=\"Unknown\"}} 0"),
        format!("tokenbudget_processes{{{one},state=\"Enforcing\"}} 2"),
        format!("tokenbudget_processes{{{one},state=\"Degraded\"}} 0"),
        format!("tokenbudget_pods{{{one},agent=\"true\"}} 3"),
        format!("tokenbudget_pods{{{one},agent=\"false\"}} 1"),
        "# UNIT tokenbudget_reconcile_duration_seconds seconds".to_owned(),
        "tokenbudget_ledger_duration_seconds_bucket{le=\"0.0005\"} 0".to_owned(),
        "tokenbudget_ledger_duration_seconds_bucket{le=\"0.001\"} 1".to_owned(),
        "tokenbudget_leader_changes_total 1".to_owned(),
        "tokenbudget_leader 1".to_owned(),
        "tokenbudget_ledger_errors_total{kind=\"Timeout\"} 1".to_owned(),
        format!("tokenbudget_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[test]
fn series_go_with_their_budget_limit_and_leader() {
    let metrics = Metrics::new();
    let has = |part: &str| metrics.encode().unwrap().contains(part);
    let known = Reading { outside: Some(1), reserved_percent: Some([100, 200]), ..Reading::default() };
    let all = [("a", Unit::tokens, known), ("b", Unit::requests, known)];
    metrics.set_budget("ns", "one", &all);
    metrics.set_budget("ns", "two", &all);
    metrics.set_budget("ns", "one", &all[..1]);
    assert!(!has(r#"tokenbudget="one",limit="b""#) && has(r#"tokenbudget="two",limit="b""#));
    metrics.set_budget("ns", "one", &[("a", Unit::tokens, Reading { outside: None, ..known })]);
    let (outside, reserved) = ("tokenbudget_outside{", "tokenbudget_reserved_ratio{");
    let one = r#"namespace="ns",tokenbudget="one""#;
    assert!(!has(&format!("{outside}{one}")) && has(&format!("{reserved}{one}")));
    metrics.set_budget("ns", "one", &[("a", Unit::tokens, Reading::default())]);
    assert!(!has(&format!("{reserved}{one}")));
    metrics.remove_budget("ns", "two");
    assert!(!has(r#"tokenbudget="two""#) && has(r#"tokenbudget="one""#));
    metrics.set_leader(false);
    assert!(!has("limit="));
}

#[test]
fn what_is_not_known_of_a_fleet_has_no_series() {
    let metrics = Metrics::new();
    let count = |part: &str| metrics.encode().unwrap().matches(part).count();
    metrics.set_fleet("ns", "one", &fleet());
    metrics.set_fleet("ns", "two", &fleet());
    assert_eq!([count("_condition{"), count("_processes{"), count("_pods{")], [6, 12, 4]);
    metrics.set_fleet("ns", "one", &FleetReading { processes: None, conditions: BTreeMap::new(), ..fleet() });
    assert_eq!([count("_condition{"), count("_processes{"), count("_pods{")], [3, 6, 4]);
    metrics.set_fleet("ns", "one", &fleet());
    metrics.remove_budget("ns", "one");
    assert_eq!([count("_condition{"), count("_processes{"), count("_pods{")], [3, 6, 2]);
    metrics.set_leader(false);
    assert_eq!(count("tokenbudget=\""), 0);

    let known = Reading { learning: Some(false), ..Reading::default() };
    metrics.set_budget("ns", "one", &[("a", Unit::tokens, known)]);
    assert_eq!(count("_learning{"), 1);
    metrics.set_budget("ns", "one", &[("a", Unit::tokens, Reading::default())]);
    assert_eq!(count("_learning{"), 0);
}
