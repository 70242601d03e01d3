//! The OpenAI API: reads a request, decides, and answers at the set pace.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::Answer;
use super::ledger::Ticket;
use super::settings::Settings;
use super::state::{State, Verdict};
use crate::clock::unix_ms;
use crate::request::{Endpoint, Request};
use crate::size::SplitMix64;

/// `GET /v1/models`.
pub async fn models(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let settings = state.settings();
    let data: Vec<Value> = settings
        .models
        .iter()
        .map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": "rig"}))
        .collect();
    Json(json!({"object": "list", "data": data}))
}

/// Ends an admitted request in the books, also when the client went away.
struct InFlight {
    state: Arc<State>,
    ticket: Ticket,
    /// Prompt plus what has been answered so far.
    tokens: u64,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.state.end(&self.ticket, self.tokens);
    }
}

/// Answers one request to `endpoint`.
pub async fn answer(
    endpoint: Endpoint,
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = match Request::parse(endpoint, &body) {
        Ok(request) => request,
        Err(message) => return error(StatusCode::BAD_REQUEST, &message, "invalid_request_error"),
    };
    let settings = state.settings();
    let number = state.next_number();
    let mut rng = SplitMix64::new(settings.seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let fails = rng.unit() < settings.failures.probability;
    let drops = rng.unit() < settings.failures.drop_probability;
    let latency = settings.latency_ms.draw(&mut rng).max(0.0);
    let choice_tokens = request.choice_tokens(&settings.answer, settings.seed);
    let tokens = request.cost(&settings.answer, settings.seed);
    let id = text(&headers, "x-request-id").or(request.user.as_deref());
    let from = (api_key(&headers), id);
    let ticket = match state.arrive(&settings, tokens, &request.model, from, fails) {
        Verdict::Admitted(ticket) => ticket,
        Verdict::Failed => return injected(&settings),
        Verdict::OverQuota { limit, spent, wait_ms } => return over_quota(&request, tokens, limit, spent, wait_ms),
    };
    let in_flight = InFlight { state, ticket, tokens: request.prompt_tokens };
    let pace = Pace {
        first_token: Instant::now()
            + Duration::from_secs_f64(latency / 1000.0)
            + Duration::from_millis(settings.first_token_ms),
        token_ms: settings.token_ms,
    };
    let streams = request.stream && endpoint != Endpoint::Embeddings;
    let answer =
        Answer { request, choice_tokens, id: settings.seed.rotate_left(32) ^ number, created: unix_ms() / 1000 };
    let mut response = if streams {
        sleep_until(pace.first_token - Duration::from_millis(settings.first_token_ms)).await;
        streamed(answer, in_flight, pace, settings.chunk_tokens, drops)
    } else {
        whole(&answer, in_flight, &pace, drops).await
    };
    if let Ok(value) = HeaderValue::from_str(&format!("req_{number:x}")) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// When tokens come.
struct Pace {
    first_token: Instant,
    token_ms: f64,
}

impl Pace {
    /// When token number `n` (from 1) of the answer is there.
    fn due(&self, n: u64) -> Instant {
        let ms = self.token_ms * n.saturating_sub(1) as f64;
        // A day caps what a wrong setting can do.
        self.first_token + Duration::from_secs_f64((ms / 1000.0).clamp(0.0, 86_400.0))
    }
}

/// The answer in one piece.
async fn whole(answer: &Answer, mut in_flight: InFlight, pace: &Pace, drops: bool) -> Response {
    sleep_until(pace.due(answer.choice_tokens)).await;
    in_flight.tokens += answer.answer_tokens();
    let body = answer.whole().to_string();
    let body = if drops {
        let half = Bytes::from(body).slice(..1);
        Body::from_stream(stream::once(async { Ok(half) }).chain(stream::once(cut())))
    } else {
        Body::from(body)
    };
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The answer as server-sent events.
fn streamed(answer: Answer, in_flight: InFlight, pace: Pace, chunk_tokens: u64, drops: bool) -> Response {
    let choices = answer.request.choices;
    let cut_at = drops.then(|| answer.answer_tokens() / 2);
    let events = answer.events(chunk_tokens);
    let start = (events, in_flight, pace, 0u64);
    let body = stream::try_unfold(start, move |(mut events, mut in_flight, pace, sent)| {
        let next = events.next();
        async move {
            let Some((event, tokens)) = next else {
                return Ok(None);
            };
            if cut_at.is_some_and(|cut_at| sent >= cut_at) && tokens > 0 {
                return cut().await;
            }
            let sent = sent + tokens;
            if tokens > 0 {
                sleep_until(pace.due(sent.div_ceil(choices))).await;
                in_flight.tokens += tokens;
            }
            Ok(Some((Bytes::from(event), (events, in_flight, pace, sent))))
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}

/// The error that makes the server drop the connection halfway, after a moment
/// in which what was written before gets out.
async fn cut<T>() -> io::Result<T> {
    sleep(Duration::from_millis(20)).await;
    Err(io::Error::new(io::ErrorKind::ConnectionAborted, "injected drop"))
}

/// A refusal that was asked for in the settings.
fn injected(settings: &Settings) -> Response {
    let status = StatusCode::from_u16(settings.failures.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "requests",
        _ => "server_error",
    };
    let mut response = error(status, "injected failure", kind);
    if let Some(seconds) = settings.failures.retry_after_s {
        put(&mut response, "retry-after", &seconds.to_string());
    }
    response
}

/// The 429 of a provider whose tokens-per-minute limit is reached.
fn over_quota(request: &Request, tokens: u64, limit: u64, spent: u64, wait_ms: Option<u64>) -> Response {
    let model = &request.model;
    let wait_ms = wait_ms.unwrap_or(crate::judge::WINDOW_MS);
    let message = format!(
        "Rate limit reached for {model} on tokens per min (TPM): Limit {limit}, Used {spent}, Requested {tokens}. Please try again in {wait_ms}ms."
    );
    let mut response = error(StatusCode::TOO_MANY_REQUESTS, &message, "tokens");
    let left = limit.saturating_sub(spent);
    for (name, value) in [
        ("retry-after", wait_ms.div_ceil(1000).to_string()),
        ("retry-after-ms", wait_ms.to_string()),
        ("x-ratelimit-limit-tokens", limit.to_string()),
        ("x-ratelimit-remaining-tokens", left.to_string()),
        ("x-ratelimit-reset-tokens", format!("{wait_ms}ms")),
    ] {
        put(&mut response, name, &value);
    }
    response
}

fn put(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// An error as the OpenAI API writes it.
fn error(status: StatusCode, message: &str, kind: &str) -> Response {
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS => json!("rate_limit_exceeded"),
        _ => Value::Null,
    };
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    (status, Json(body)).into_response()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The API key: a bearer token, or Azure's `api-key`; empty without one.
fn api_key(headers: &HeaderMap) -> &str {
    text(headers, "authorization")
        .map(|value| value.strip_prefix("Bearer ").unwrap_or(value))
        .or_else(|| text(headers, "api-key"))
        .unwrap_or_default()
}
