//! An API server for unit tests, which says what it is told to.

use std::sync::{Arc, Mutex};

use kube::Client;

/// The body of a 403.
pub const REFUSED: &str =
    r#"{"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "may not"}"#;

/// The body of a 404 of an object.
pub const MISSING: &str =
    r#"{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"}"#;

/// Paths, each with a status and a body.
pub type Answers = &'static [(&'static str, u16, &'static str)];

/// A client of a server that answers each of these paths with a status and a body, any other with 404.
pub fn answering(answers: Answers) -> Client {
    recording(answers).0
}

/// The same, and the methods of all requests so far.
pub fn recording(answers: Answers) -> (Client, Arc<Mutex<Vec<String>>>) {
    let told = Arc::<Mutex<Vec<String>>>::default();
    let tells = told.clone();
    let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
        tells.lock().expect("nobody panics with it").push(request.method().to_string());
        async move {
            let path = request.uri().path();
            let known = answers.iter().find(|(known, ..)| *known == path);
            let (_, status, body) = known.copied().unwrap_or(("", 404, "404 page not found"));
            let answer = axum::http::Response::builder().status(status);
            answer.body(kube::client::Body::from(body.as_bytes().to_vec()))
        }
    });
    (Client::new(service, "llm"), told)
}
