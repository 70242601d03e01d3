//! Alerts and dashboard: what they ask for is there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::helm::{CHART, config_map, objects, of_kind, only, render};
use super::metrics::{Registry, registry};

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Every metric of ours that a query names, with its matchers.
fn selectors(query: &str) -> Vec<(&str, &str)> {
    query
        .match_indices("tokenbudget_")
        .map(|(at, _)| {
            let name = word(&query[at..]);
            let rest = &query[at + name.len()..];
            let matchers =
                rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
            (name, matchers)
        })
        .collect()
}

/// The labels in `by (...)` and `on (...)`.
fn grouping(query: &str) -> BTreeSet<&str> {
    let lists = ["by (", "on ("].into_iter().flat_map(|start| query.split(start).skip(1));
    lists.flat_map(|rest| rest.split_once(')').map_or("", |(list, _)| list).split(',')).map(str::trim).collect()
}

/// Asserts that the registry has all that a query asks for.
fn check(query: &str, registry: &Registry) {
    let found = selectors(query);
    assert!(!found.is_empty(), "no metric in {query}");
    for (name, matchers) in found {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let family = registry.get(name).or_else(|| registry.get(histogram?).filter(|(kind, _)| kind == "histogram"));
        let Some((kind, labels)) = family else { panic!("there is no metric {name}: {query}") };
        let plain = kind != "histogram" || name.ends_with("_sum") || name.ends_with("_count");
        assert!(plain || name.ends_with("_bucket"), "a histogram has no series {name}: {query}");
        for label in grouping(query) {
            let known = labels.contains_key(label) || (label == "le" && name.ends_with("_bucket"));
            assert!(known, "{name} has no label {label}: {query}");
        }
        for matcher in matchers.split(',').filter(|matcher| !matcher.is_empty()) {
            let label = word(matcher);
            let values = labels.get(label).unwrap_or_else(|| panic!("{name} has no label {label}: {query}"));
            let wanted = matcher[label.len()..].trim_start_matches(['=', '~', '!']).trim_matches('"');
            for value in wanted.split('|').filter(|value| !value.starts_with('$')) {
                assert!(values.contains(value), "{name} has no {label}={value}: {query}");
            }
        }
    }
}

fn rules(values: &[&str]) -> Vec<Value> {
    let values = [&["prometheusRule.enabled=true"], values].concat();
    let object = only(&objects(&render(&values)), "PrometheusRule");
    object["spec"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_query_for_what_is_not_there_is_found_out() {
    let registry = registry();
    check(r#"sum by (state) (tokenbudget_processes{state=~"Offline|Degraded",namespace=~"$namespace"})"#, &registry);
    check("histogram_quantile(0.9, sum by (le) (rate(tokenbudget_reconcile_duration_seconds_bucket[5m])))", &registry);
    for wrong in [
        "tokenbudget_budgets > 0",
        r#"tokenbudget_spent{pod="x"}"#,
        r#"tokenbudget_processes{state="Asleep"}"#,
        "sum by (pod) (tokenbudget_spent)",
        "tokenbudget_reconcile",
        "tokenbudget_reconcile_duration_seconds",
        "up",
    ] {
        assert!(std::panic::catch_unwind(|| check(wrong, &registry)).is_err(), "{wrong}");
    }
}

#[test]
fn alerts_ask_for_what_is_there_and_have_a_runbook() {
    let page = include_str!("../../docs/alerts.md");
    let headings: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let registry = registry();
    let rules = rules(&[]);
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(names, headings, "docs/alerts.md");
    for rule in &rules {
        // The namespace of what was scraped is Prometheus' label.
        let query = rule["expr"].as_str().unwrap().replace(r#"{namespace="ops"}"#, "");
        check(&query, &registry);
        let name = rule["alert"].as_str().unwrap();
        let url =
            format!("https://github.com/tokenbudget/tokenbudget/blob/main/docs/alerts.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], url);
        assert!(["info", "warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        let text = format!("{}{}", rule["annotations"]["summary"], rule["annotations"]["description"]);
        for label in text.split("$labels.").skip(1).map(word) {
            assert!(grouping(&query).contains(label), "{name} says {label}, which its query does not keep");
        }
    }
}

#[test]
fn alerts_follow_their_values() {
    assert!(of_kind(&objects(&render(&[])), "PrometheusRule").is_empty());
    let all = rules(&[]).len();
    let some = rules(&[
        "prometheusRule.disabled={TokenBudgetNotReady,TokenBudgetNoLeader}",
        "prometheusRule.alertLabels.team=llm",
        "prometheusRule.alertLabels.severity=page",
        "prometheusRule.runbookUrl=https://wiki/tb",
    ]);
    assert_eq!(some.len(), all - 2);
    for rule in &some {
        assert_ne!(rule["alert"], "TokenBudgetNotReady");
        assert_eq!((&rule["labels"]["team"], &rule["labels"]["severity"]), (&"llm".into(), &"page".into()));
        assert!(rule["annotations"]["runbook_url"].as_str().unwrap().starts_with("https://wiki/tb#tokenbudget"));
    }
    let exprs: Vec<_> = rules(&[]).iter().map(|rule| rule["expr"].to_string()).collect();
    let leads = exprs.iter().find(|expr| expr.contains("tokenbudget_leader")).unwrap();
    assert!(leads.contains(r#"tokenbudget_leader{namespace=\"ops\"} == 1"#), "another release's: {leads}");
    let labelled = render(&["prometheusRule.enabled=true", "prometheusRule.labels.release=prom"]);
    assert_eq!(only(&objects(&labelled), "PrometheusRule")["metadata"]["labels"]["release"], "prom");
}

#[test]
fn the_dashboard_asks_for_what_is_there() {
    let file = std::fs::read_to_string(format!("{CHART}/files/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&file).unwrap();
    let registry = registry();
    let mut asked = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_i64().unwrap()), "{}", panel["title"]);
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            check(query, &registry);
            asked.extend(selectors(query).into_iter().map(|(name, _)| name.to_owned()));
            for label in target["legendFormat"].as_str().unwrap().split("{{").skip(1).map(word) {
                assert!(grouping(query).contains(label), "{}: no label {label}", panel["title"]);
            }
        }
    }
    for name in registry.keys() {
        let shown = asked.iter().any(|metric| metric == name || metric.strip_suffix("_bucket") == Some(name));
        assert!(shown, "{name} is in no panel");
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            check(query, &registry);
            assert!(query.ends_with(&format!(", {})", variable["name"].as_str().unwrap())), "{query}");
        }
    }
}

#[test]
fn the_dashboard_is_where_grafana_looks() {
    assert_eq!(of_kind(&objects(&render(&[])), "ConfigMap").len(), 1, "only that of the log");
    let map = config_map(&objects(&render(&["dashboard.enabled=true"])), "-dashboard");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let file = std::fs::read_to_string(format!("{CHART}/files/dashboard.json")).unwrap();
    let shown: Value = serde_json::from_str(map["data"]["tokenbudget.json"].as_str().unwrap()).unwrap();
    assert_eq!(shown, serde_json::from_str::<Value>(&file).unwrap());
    let map = config_map(
        &objects(&render(&[
            "dashboard.enabled=true",
            "dashboard.labels.x=y",
            "dashboard.annotations.grafana_folder=LLM",
        ])),
        "-dashboard",
    );
    assert_eq!(
        (&map["metadata"]["labels"]["x"], &map["metadata"]["annotations"]["grafana_folder"]),
        (&"y".into(), &"LLM".into())
    );
}

#[test]
fn prometheus_keeps_the_namespace_of_the_tokenbudget() {
    let values = ["serviceMonitor.enabled=true", "serviceMonitor.interval=7s", "serviceMonitor.labels.release=prom"];
    for (value, pointer, what) in [
        ("serviceMonitor.scrapeTimeout=5s", "/spec/endpoints/0/scrapeTimeout", "5s"),
        ("serviceMonitor.relabelings[0].action=keep", "/spec/endpoints/0/relabelings/0/action", "keep"),
        ("serviceMonitor.metricRelabelings[0].action=drop", "/spec/endpoints/0/metricRelabelings/0/action", "drop"),
    ] {
        let monitor = only(&objects(&render(&[&values[..], &[value]].concat())), "ServiceMonitor");
        assert_eq!(monitor.pointer(pointer).and_then(Value::as_str), Some(what), "{value}");
    }
    let monitor = only(&objects(&render(&values)), "ServiceMonitor");
    assert_eq!(monitor["spec"]["endpoints"][0]["honorLabels"], true);
    assert_eq!(monitor["spec"]["endpoints"][0]["interval"], "7s");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prom");
}
