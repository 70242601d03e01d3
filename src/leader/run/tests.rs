use std::sync::Mutex;

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::routing::any;
use serde_json::{Value, json};

use super::*;

/// An API server with one Lease. It can be cut off.
#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    versions: Arc<Mutex<u64>>,
    cut_off: Arc<Mutex<bool>>,
}

impl Server {
    async fn start(&self) -> kube::Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(any(answer)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        kube::Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap()
    }

    fn holder(&self) -> String {
        let lease = self.lease.lock().unwrap();
        lease.as_ref().map(|lease| lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()).unwrap_or_default()
    }
}

async fn answer(State(server): State<Server>, method: Method, body: String) -> (StatusCode, Json<Value>) {
    if *server.cut_off.lock().unwrap() {
        return std::future::pending().await;
    }
    let status = |code: StatusCode, reason: &str| {
        let code_number = code.as_u16();
        (
            code,
            Json(json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
            "reason": reason, "code": code_number})),
        )
    };
    let mut stored = server.lease.lock().unwrap();
    if method == Method::GET {
        return stored
            .clone()
            .map_or_else(|| status(StatusCode::NOT_FOUND, "NotFound"), |lease| (StatusCode::OK, Json(lease)));
    }
    let mut lease: Value = serde_json::from_str(&body).unwrap();
    let expected = stored.as_ref().map_or(Value::Null, |lease| lease["metadata"]["resourceVersion"].clone());
    if lease["metadata"].get("resourceVersion").cloned().unwrap_or(Value::Null) != expected {
        return status(StatusCode::CONFLICT, "Conflict");
    }
    let mut versions = server.versions.lock().unwrap();
    *versions += 1;
    lease["metadata"]["resourceVersion"] = json!(versions.to_string());
    *stored = Some(lease.clone());
    (StatusCode::OK, Json(lease))
}

fn config(identity: &str) -> Config {
    let timings = Timings {
        lease: Duration::from_secs(1),
        renew_deadline: Duration::from_millis(600),
        retry: Duration::from_millis(100),
    };
    Config { namespace: "ns".to_owned(), name: "tokenbudget".to_owned(), identity: identity.to_owned(), timings }
}

#[tokio::test]
async fn one_leads_gives_back_and_the_next_follows() {
    let server = Server::default();
    let client = server.start().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (mut first, work) = run(client.clone(), config("a"), async move { stopped.await.unwrap_or(()) });
    let work = tokio::spawn(work);
    assert!(first.gained().await);
    assert_eq!(server.holder(), "a");

    let (mut second, other) = run(client, config("b"), std::future::pending());
    tokio::spawn(other);
    sleep(Duration::from_millis(1500)).await;
    assert!(first.leads() && !second.leads(), "renewals keep the second away");

    stop.send(()).unwrap();
    work.await.unwrap();
    assert!(!first.leads());
    timeout(Duration::from_millis(700), second.gained()).await.unwrap();
    assert_eq!(server.holder(), "b");
}

#[tokio::test]
async fn without_an_api_server_the_leader_stops_by_itself_and_comes_back() {
    let server = Server::default();
    let client = server.start().await;
    let (mut leadership, work) = run(client, config("a"), std::future::pending());
    tokio::spawn(work);
    assert!(leadership.gained().await);
    *server.cut_off.lock().unwrap() = true;
    timeout(Duration::from_millis(800), leadership.lost()).await.unwrap();
    assert!(leadership.token().is_none());
    *server.cut_off.lock().unwrap() = false;
    timeout(Duration::from_secs(2), leadership.gained()).await.unwrap();
}

#[test]
fn without_an_election_everybody_leads() {
    let leadership = Leadership::always();
    assert!(leadership.leads());
}

#[test]
fn identities_differ_between_processes_of_one_pod() {
    assert_ne!(unique_identity("pod"), unique_identity("pod"));
    assert!(unique_identity("pod").starts_with("pod_"));
}
