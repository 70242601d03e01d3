//! `docs/gitops.md`: the health check in a Lua 5.1 (Redis', where a script may set no globals either), and the entries that
//! the operator owns.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::RedisServer;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};
use tokenbudget::api::{AttachPolicy, FIELD_MANAGER, Reason, TokenBudget};
use tokenbudget::litellm::{Wanted, asks_for_agent, attachment};

const PAGE: &str = include_str!("../docs/gitops.md");

/// The blocks of code in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    PAGE.split(&fence).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
}

fn budget(status: &str, reason: &str) -> Value {
    json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "conditions": [
        {"type": "Attached", "status": "False", "reason": "NoPods", "message": "other"},
        {"type": "Ready", "status": status, "reason": reason, "message": "why"}
    ]}})
}

#[tokio::test]
async fn the_health_check_knows_every_reason() {
    let script = format!(
        "local function health(obj) {} end local hs = health(cjson.decode(ARGV[1])) return {{hs.status, hs.message}}",
        blocks("lua")[0]
    );
    let server = RedisServer::start().await;
    let redis = server.connection().await;
    let ask = async |object: Value| -> (String, String) {
        let mut redis = redis.clone();
        let command = redis::cmd("EVAL").arg(&script).arg(0).arg(object.to_string()).to_owned();
        command.query_async(&mut redis).await.unwrap()
    };
    for reason in Reason::ALL {
        let expected = match reason {
            Reason::PartiallyAttached
            | Reason::WaitingForDeclaredLimits
            | Reason::WaitingForProcesses
            | Reason::WindowNotPassed
            | Reason::Learning
            | Reason::OverBudget
            | Reason::Pending => "Progressing",
            Reason::NoPods | Reason::Paused => "Suspended",
            _ => "Degraded",
        };
        let answer = ask(budget("False", reason.as_str())).await;
        assert_eq!(answer, (expected.to_owned(), format!("{}: why", reason.as_str())));
    }
    assert_eq!(ask(budget("True", "Observing")).await.0, "Healthy");
    assert_eq!(ask(budget("True", "Ready")).await.0, "Healthy");
    let mut old = budget("True", "Ready");
    old["metadata"]["generation"] = json!(3);
    let mut leaving = budget("True", "Ready");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for waits in [old, leaving, json!({"metadata": {"generation": 1}}), json!({"metadata": {}, "status": {}})] {
        assert_eq!(ask(waits).await, ("Progressing".to_owned(), "waiting for the operator".to_owned()));
    }
}

#[test]
fn the_example_of_admission_asks_for_the_agent() {
    let (budget, deployment) = blocks("yaml")[2].split_once("---\n").unwrap();
    let budget: TokenBudget = serde_saphyr::from_str(budget).unwrap();
    assert_eq!(budget.spec.attach, AttachPolicy::Admission);
    let mut deployment: Value = serde_saphyr::from_str(deployment).unwrap();
    deployment["spec"]["selector"] = json!({});
    assert_eq!(asks_for_agent(&serde_json::from_value(deployment).unwrap()), Ok(()));
}

#[test]
fn the_manual_entries_are_those_of_the_operator() {
    let deployment: Deployment = serde_json::from_value(json!({"metadata": {"name": "litellm"}, "spec": {
        "selector": {}, "template": {"spec": {"containers": [{"name": "litellm"}]}}}}))
    .unwrap();
    let made = attachment(&deployment, &Wanted::default()).unwrap().patch;
    let manual: Value = serde_saphyr::from_str(blocks("yaml").last().unwrap()).unwrap();
    assert_eq!(manual["spec"], made["spec"]);

    // The table names the same.
    let table: String = PAGE.lines().filter(|line| line.starts_with('|')).collect();
    let spec = &made["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let lists = [(&container["env"], "name"), (&container["volumeMounts"], "mountPath"), (&spec["volumes"], "name")];
    for (list, key) in lists {
        for entry in list.as_array().unwrap() {
            assert!(table.contains(&format!("`{}`", entry[key].as_str().unwrap())), "{entry}");
        }
    }
    let application: Value = serde_saphyr::from_str(blocks("yaml")[1]).unwrap();
    assert_eq!(application["spec"]["ignoreDifferences"][0]["managedFieldsManagers"], json!([FIELD_MANAGER]));
}
