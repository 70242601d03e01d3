//! An API server for unit tests, which says what it is told to.

use kube::Client;

/// The body of a 403.
pub const REFUSED: &str =
    r#"{"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "may not"}"#;

/// A client of a server that answers each of these paths with a status and a body, any other with 404.
pub fn answering(answers: &'static [(&'static str, u16, &'static str)]) -> Client {
    let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| async move {
        let path = request.uri().path();
        let known = answers.iter().find(|(known, ..)| *known == path);
        let (_, status, body) = known.copied().unwrap_or(("", 404, "404 page not found"));
        let answer = axum::http::Response::builder().status(status);
        answer.body(kube::client::Body::from(body.as_bytes().to_vec()))
    });
    Client::new(service, "llm")
}
