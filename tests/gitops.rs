//! Argo CD's health check of `docs/gitops.md`, run by the Lua that Redis has.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::RedisServer;
use serde_json::{Value, json};
use tokenbudget::api::Reason;

/// The Lua in the page's block for `argocd-cm`.
fn health_check() -> String {
    let page = include_str!("../docs/gitops.md");
    let after = page.split_once("tokenbudget.dev_TokenBudget: |\n").expect("the page has the health check").1;
    after.split_once("```").expect("its block ends").0.to_owned()
}

fn tokenbudget(generation: i64, ready: &str, reason: &str) -> Value {
    let condition = json!({"type": "Ready", "status": ready, "reason": reason, "message": "why"});
    let other = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""});
    json!({"metadata": {"generation": 2}, "status": {"observedGeneration": generation, "conditions": [other, condition]}})
}

#[tokio::test]
async fn argo_cd_sees_what_the_condition_ready_says() {
    let server = RedisServer::start().await;
    let mut redis = server.connection().await;
    let script = format!(
        "local function health(obj)\n{}\nend\nlocal found = health(cjson.decode(ARGV[1]))\nreturn found.status",
        health_check()
    );
    for (object, expected) in [
        (json!({"metadata": {"generation": 1}}), "Progressing"),
        (tokenbudget(1, "True", "Ready"), "Progressing"),
        (tokenbudget(2, "True", "Ready"), "Healthy"),
        (tokenbudget(2, "False", "Paused"), "Suspended"),
        (tokenbudget(2, "False", "WindowNotPassed"), "Progressing"),
        (tokenbudget(2, "False", "Overlap"), "Degraded"),
    ] {
        let status: String =
            redis::cmd("EVAL").arg(&script).arg(0).arg(object.to_string()).query_async(&mut redis).await.unwrap();
        assert_eq!(status, expected, "{object}");
    }
}

#[test]
fn it_names_only_reasons_that_there_are() {
    let check = health_check();
    let named: Vec<&str> = check.split(" = true").filter_map(|part| part.rsplit([' ', '{']).next()).collect();
    assert!(named.len() > 5, "{named:?}");
    let known = |name: &str| Reason::ALL.iter().any(|reason| reason.as_str() == name);
    // What is behind the last `= true` is the rest of the script.
    assert!(named[..named.len() - 1].iter().all(|name| known(name)), "{named:?}");
}
