//! An API server for unit tests, which says what it is told to.

use std::sync::{Arc, Mutex};

use kube::Client;

use super::{Context, Settings};
use crate::leader::Leadership;
use crate::ops::Metrics;

/// The body of a 403.
pub const REFUSED: &str =
    r#"{"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "may not"}"#;

/// The body of a 404 of an object.
pub const MISSING: &str =
    r#"{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"}"#;

/// Paths, each with a status and a body.
pub type Answers = &'static [(&'static str, u16, &'static str)];

/// An operator that leads, has no settings of its own, and talks to this API server.
pub fn context(client: Client) -> Context {
    Context::new(client, Settings::default(), Leadership::always(), Metrics::default())
}

/// A client of a server that answers each of these paths with a status and a body, any other with 404.
pub fn answering(answers: Answers) -> Client {
    recording(answers).0
}

/// What was asked of a server: method, path and body of each request.
pub type Asked = Arc<Mutex<Vec<(String, String, String)>>>;

/// The same, and what was asked so far.
pub fn recording(answers: Answers) -> (Client, Asked) {
    let told = Asked::default();
    let tells = told.clone();
    let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
        let tells = tells.clone();
        async move {
            let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
            let body = request.into_body().collect_bytes().await.expect("a body");
            let body = String::from_utf8_lossy(&body).into_owned();
            tells.lock().expect("nobody panics with it").push((method, path.clone(), body));
            let known = answers.iter().find(|(known, ..)| *known == path);
            let (_, status, body) = known.copied().unwrap_or(("", 404, "404 page not found"));
            let answer = axum::http::Response::builder().status(status);
            answer.body(kube::client::Body::from(body.as_bytes().to_vec()))
        }
    });
    (Client::new(service, "llm"), told)
}
