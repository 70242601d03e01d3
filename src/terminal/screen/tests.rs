use serde_json::json;

use super::*;

fn budgets(status: serde_json::Value) -> Vec<TokenBudget> {
    vec![
        serde_json::from_value(json!({
            "apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "gpt-4o", "namespace": "llm"},
            "spec": {"targetRefs": [{"name": "litellm"}]}, "status": status,
        }))
        .unwrap(),
    ]
}

fn ready(status: &str, reason: &str, message: &str) -> serde_json::Value {
    json!([{"type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-24T12:00:00Z"}])
}

fn pod(name: &str, figures: [i64; 4], workers: i64, state: &str) -> serde_json::Value {
    let [share, grant, spent, denied] = figures;
    json!({"pod": name, "limit": "gpt", "unit": "tokens", "share": share, "grant": grant, "spent": spent,
        "denied": denied, "workers": workers, "state": state})
}

fn hot() -> serde_json::Value {
    json!({"target": "litellm", "replicas": "3/3", "conditions": ready("True", "Ready", "the fleet stays within its budget"),
    "limits": [{"name": "gpt", "unit": "tokens", "budget": 60_000, "spent": 57_900, "denied": 4_200, "pool": 600, "pressurePercent": 100,
        "aside": 0, "safeShare": 10_000, "members": 4}],
    "pods": [
        pod("litellm-7d4b-x1", [30_000, 35_000, 34_000, 4_200], 1, "Enforcing"),
        pod("litellm-7d4b-x2", [20_000, 20_000, 19_900, 0], 1, "Starting"),
        pod("litellm-7d4b-x3", [10_000, 4_400, 4_000, 0], 2, "Offline"),
    ]})
}

#[test]
fn a_hot_fleet_looks_like_this() {
    let expected = "\
llm/gpt-4o  Enforce  3/3 pods of litellm  Ready

  gpt  [###############################################--]  97 %  57,900 of 60,000 tokens per minute
  pool 600  denied 4,200  safe share 10,000  members 4  pressure 100 %
    POD                                          SHARE   GRANT   SPENT  DENIED  STATE
    litellm-7d4b-x1  [###################|##-]  30,000  35,000  34,000   4,200  Enforcing
    litellm-7d4b-x2  [############|          ]  20,000  20,000  19,900       0  Starting
    litellm-7d4b-x3  [###   |                ]  10,000   4,400   4,000       0  Offline    2 workers

# spent in the last 60 s   - granted, not spent   | share
";
    let picture = render(&budgets(hot()), 100, false);
    assert_eq!(picture, expected);
}

#[test]
fn what_is_wrong_is_said() {
    let message = "the ledger does not answer; processes spend at most their safe share";
    let status = json!({"target": "litellm", "replicas": "2/3", "conditions": ready("False", "LedgerUnreachable", message),
        "limits": [{"name": "gpt", "unit": "requests", "budget": 100, "spent": 120, "denied": 0, "pool": -20, "aside": 10,
            "safeShare": 1, "members": 101, "outside": {"tokens": 0, "requests": 7}}]});
    let expected = "\
llm/gpt-4o  Enforce  2/3 pods of litellm  LedgerUnreachable
  the ledger does not answer; processes spend at most their safe share

  gpt  [################################]  120 %  120 of 100 requests per minute
  pool -20  denied 0  safe share 1  members 101  set aside 10  others spend 7
  101 more processes: a status has 100 rows, the metrics have the sums

# spent in the last 60 s   - granted, not spent   | share
";
    assert_eq!(render(&budgets(status), 80, false), expected);
}

#[test]
fn a_budget_without_status_says_what_to_look_for() {
    let mut two = budgets(serde_json::Value::Null);
    two.extend(budgets(json!({})));
    let expected = "\
llm/gpt-4o  Enforce  no status
  The operator has not answered yet: does it run, and watch this namespace?

llm/gpt-4o  Enforce
";
    assert_eq!(render(&two, usize::MAX, false), expected);
}

#[test]
fn colours_change_nothing_but_the_colour_and_no_line_is_wider_than_the_terminal() {
    let all = budgets(hot());
    for width in [20, 60, 100, 300] {
        let (plain, coloured) = (render(&all, width, false), render(&all, width, true));
        assert!(plain.lines().all(|line| line.chars().count() <= width), "{plain}");
        assert!(coloured.contains("\x1b[1mllm/gpt-4o\x1b[0m"), "{coloured}");
        let bare: String = ["0", "1", "2", "31", "32", "33"]
            .iter()
            .fold(coloured, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(bare, plain);
    }
}

#[test]
fn bars_show_something_as_something_and_never_more_than_their_cells() {
    assert_eq!(cells_of(0, 0, None, 100, 10), "          ");
    assert_eq!(cells_of(1, 1, None, 1_000_000, 10), "#         ");
    assert_eq!(cells_of(40, 60, Some(100), 100, 10), "####--   |");
    assert_eq!(cells_of(i64::MAX, i64::MAX, Some(i64::MAX), 1, 4), "###|");
    assert_eq!(cells_of(-5, -5, None, 0, 4), "    ");
}

#[test]
fn a_pod_stands_under_the_limit_and_unit_that_its_row_is_of() {
    let limit = |unit: &str| {
        json!({"name": "gpt", "unit": unit, "budget": 9, "spent": 0, "denied": 0, "pool": 0, "aside": 0, "safeShare": 1,
            "members": 1})
    };
    let mut requests = pod("of-requests", [1, 1, 1, 0], 1, "Enforcing");
    requests["unit"] = json!("requests");
    let status = json!({"limits": [limit("tokens"), limit("requests")],
        "pods": [pod("of-tokens", [2, 2, 2, 0], 1, "Enforcing"), requests]});
    let picture = render(&budgets(status), 100, false);
    let places: Vec<usize> = ["tokens per", "of-tokens", "requests per", "of-requests"]
        .iter()
        .map(|text| {
            assert_eq!(picture.matches(text).count(), 1, "{text}\n{picture}");
            picture.find(text).unwrap()
        })
        .collect();
    assert!(places.is_sorted(), "{picture}");
}

#[test]
fn a_limit_is_green_to_90_percent_and_yellow_to_100() {
    let colour = |spent: i64| {
        let mut status = hot();
        status["limits"][0]["spent"] = json!(spent);
        let picture = render(&budgets(status), 100, true);
        let bar = picture.split("  [\x1b[").nth(1).unwrap();
        bar.split('m').next().unwrap().to_owned()
    };
    assert_eq!([54_000, 54_001, 60_000, 60_001].map(colour), ["32", "33", "33", "31"]);
}
