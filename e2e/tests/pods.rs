//! Following a Deployment's pods, against a made-up Kubernetes API.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::time::Duration;

use axum::body::Body;
use axum::extract::RawQuery;
use axum::routing::get;
use axum::{Json, Router};
use futures::{StreamExt as _, stream};
use rig::load::TargetWatch;
use serde_json::{Value, json};

fn pod(name: &str, version: u32, ready: &str, deleting: bool) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "llm", "uid": name, "resourceVersion": version.to_string()},
        "spec": {"containers": []},
        "status": {"podIP": "127.1.2.3", "conditions": [{"type": "Ready", "status": ready}]}});
    if deleting {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    pod
}

async fn deployment() -> Json<Value> {
    Json(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "litellm", "namespace": "llm"},
        "spec": {"selector": {"matchLabels": {"app": "litellm"}},
            "template": {"metadata": {"labels": {"app": "litellm"}}, "spec": {"containers": []}}}}))
}

/// The list holds a Ready pod and one that is not; the watch makes the second
/// one Ready, then starts to delete the first.
async fn pods(RawQuery(query): RawQuery) -> Body {
    let query = query.unwrap();
    assert!(query.contains("labelSelector=app%3Dlitellm"), "{query}");
    if !query.contains("watch=true") {
        let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "2"},
            "items": [pod("a", 1, "True", false), pod("b", 2, "False", false)]});
        return Body::from(list.to_string());
    }
    let events = [pod("b", 3, "True", false), pod("a", 4, "True", true)];
    let events = stream::iter(events).then(|pod| async move {
        tokio::time::sleep(Duration::from_millis(400)).await;
        Ok::<_, std::io::Error>(format!("{}\n", json!({"type": "MODIFIED", "object": pod})))
    });
    Body::from_stream(events.chain(stream::pending()))
}

#[tokio::test]
async fn pods_that_become_ready_or_leave_are_followed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let api = Router::new()
        .route("/apis/apps/v1/namespaces/llm/deployments/litellm", get(deployment))
        .route("/api/v1/namespaces/llm/pods", get(pods));
    tokio::spawn(async move { axum::serve(listener, api).await });
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();

    let missing = TargetWatch::deployment(client.clone(), "llm", "nothing", 4000).await;
    assert!(format!("{:#}", missing.unwrap_err()).contains("Deployment llm/nothing"));

    let targets = TargetWatch::deployment(client, "llm", "litellm", 4000).await.unwrap();
    let names = || targets.ready().iter().map(|t| t.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(), ["a"]);
    assert_eq!(&*targets.ready()[0].url, "http://127.1.2.3:4000");
    let mut seen = vec![names()];
    for _ in 0..100 {
        if seen.last() != Some(&names()) {
            seen.push(names());
        }
        if names() == ["b"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(seen, [vec!["a"], vec!["a", "b"], vec!["b"]]);
}
