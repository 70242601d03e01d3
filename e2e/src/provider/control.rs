//! The rig's own routes: settings, usage and arrivals.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ledger::{Filter, Seen, Totals};
use super::settings::Settings;
use super::state::State;
use crate::clock::unix_ms;
use crate::judge::{self, Arrival, SLOT_MS, Worst};

/// What a question is about; every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Range {
    /// Only this model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Only this API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// From here, in Unix milliseconds (rounded down to a slot); `since_ms` is
    /// the same. Default: the start of the books.
    #[serde(alias = "since_ms", skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<u64>,
    /// Until here, without it (rounded up to a slot). Default: now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_ms: Option<u64>,
    /// `false` leaves the series out of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<bool>,
}

impl Range {
    /// From `from_ms` to `to_ms`, all models and keys.
    #[must_use]
    pub fn between(from_ms: u64, to_ms: u64) -> Self {
        Self { from_ms: Some(from_ms), to_ms: Some(to_ms), ..Self::default() }
    }

    /// The same for one model only.
    #[must_use]
    pub fn model(mut self, model: &str) -> Self {
        self.model = Some(model.to_owned());
        self
    }

    /// The same without the series.
    #[must_use]
    pub const fn totals_only(mut self) -> Self {
        self.series = Some(false);
        self
    }

    fn filter(&self) -> Filter {
        Filter { model: self.model.clone(), key: self.key.clone() }
    }
}

/// The series of an answer: one number per slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Tokens admitted, by arrival.
    pub admitted: Vec<u64>,
    /// Requests admitted, by arrival.
    pub requests: Vec<u32>,
    /// Tokens really used, by end.
    pub ended: Vec<u64>,
    /// Requests refused (injected failures and the provider's own quota).
    pub failed_requests: Vec<u32>,
    /// Tokens those would have cost.
    pub failed_tokens: Vec<u64>,
}

/// Sums of one model and key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairTotals {
    /// The model.
    pub model: String,
    /// The API key.
    pub key: String,
    /// The sums.
    #[serde(flatten)]
    pub totals: Totals,
}

/// The answer of `GET /usage`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Start of the first slot below, in Unix milliseconds.
    pub start_ms: u64,
    /// End of the last slot, in Unix milliseconds.
    pub end_ms: u64,
    /// Milliseconds in a slot.
    pub slot_ms: u64,
    /// The series, unless they were not wanted.
    #[serde(flatten)]
    pub series: Option<Series>,
    /// Sums over the range.
    pub totals: Totals,
    /// The same by model and key.
    pub by: Vec<PairTotals>,
    /// The largest sum of admitted tokens in 600 consecutive slots within the
    /// range.
    pub worst_60s: Worst,
    /// The same to the millisecond, from single arrivals; absent when the ring
    /// does not reach back to the range's start.
    pub worst_60s_exact: Option<Worst>,
    /// The longest time without an admission in the range, its edges included,
    /// in milliseconds.
    pub longest_gap_ms: u64,
    /// Requests under way now, of all models and keys.
    pub in_flight: u64,
}

/// The answer of `GET /arrivals`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Arrivals {
    /// Whether the ring still holds all of the range.
    pub complete: bool,
    /// Oldest first; refused ones too, with their status.
    pub arrivals: Vec<Seen>,
}

impl Arrivals {
    /// Time and cost of what was admitted.
    #[must_use]
    pub fn admitted(&self) -> Vec<Arrival> {
        let admitted = self.arrivals.iter().filter(|seen| seen.admitted());
        admitted.map(Seen::arrival).collect()
    }
}

/// Computes the answer of `GET /usage`.
pub fn usage(state: &State, range: &Range) -> Usage {
    let filter = range.filter();
    let books = state.books();
    let ledger = &books.ledger;
    let now = unix_ms();
    let from = range.from_ms.unwrap_or(0);
    let to = range.to_ms.map_or(now + 1, |to| to.min(now + 1));
    let (start_ms, slots) = ledger.slots(&filter, from, to);
    let end_ms = start_ms + slots.len() as u64 * SLOT_MS;
    let by = ledger.totals(&filter, start_ms, end_ms);
    let single: Vec<Arrival> =
        ledger.arrivals(&filter, start_ms, end_ms).filter(|seen| seen.admitted()).map(Seen::arrival).collect();
    let complete = ledger.reaches_back_to(start_ms);
    let in_flight = ledger.in_flight();
    drop(books);

    let admitted: Vec<u64> = slots.iter().map(|s| s.admitted_tokens).collect();
    let longest_gap_ms = if complete {
        judge::longest_gap(&single, start_ms, end_ms)
    } else {
        let starts = (0..).map(|n| start_ms + n * SLOT_MS);
        let busy: Vec<Arrival> = starts
            .zip(&slots)
            .filter(|(_, slot)| slot.requests > 0)
            .map(|(at_ms, _)| Arrival { at_ms, tokens: 0 })
            .collect();
        judge::longest_gap(&busy, start_ms, end_ms)
    };
    Usage {
        start_ms,
        end_ms,
        slot_ms: SLOT_MS,
        totals: slots.iter().fold(Totals::default(), Totals::with),
        by: by.into_iter().map(|(model, key, totals)| PairTotals { model, key, totals }).collect(),
        worst_60s: judge::worst_60s(start_ms, &admitted),
        worst_60s_exact: complete.then(|| judge::worst_60s_exact(&single)),
        longest_gap_ms,
        in_flight,
        series: (range.series != Some(false)).then(|| Series {
            requests: slots.iter().map(|s| s.requests).collect(),
            ended: slots.iter().map(|s| s.ended_tokens).collect(),
            failed_requests: slots.iter().map(|s| s.failed_requests).collect(),
            failed_tokens: slots.iter().map(|s| s.failed_tokens).collect(),
            admitted,
        }),
    }
}

/// Computes the answer of `GET /arrivals`.
pub fn arrivals(state: &State, range: &Range) -> Arrivals {
    let filter = range.filter();
    let books = state.books();
    let from = range.from_ms.unwrap_or(0).max(books.ledger.start_ms());
    let to = range.to_ms.unwrap_or(u64::MAX);
    Arrivals {
        complete: books.ledger.reaches_back_to(from),
        arrivals: books.ledger.arrivals(&filter, from, to).cloned().collect(),
    }
}

/// `GET /usage`.
pub async fn get_usage(Shared(state): Shared<Arc<State>>, Query(range): Query<Range>) -> Json<Usage> {
    Json(usage(&state, &range))
}

/// `DELETE /usage` and `POST /usage/reset`.
pub async fn reset(Shared(state): Shared<Arc<State>>) -> StatusCode {
    state.reset();
    StatusCode::NO_CONTENT
}

/// `GET /arrivals`.
pub async fn get_arrivals(Shared(state): Shared<Arc<State>>, Query(range): Query<Range>) -> Json<Arrivals> {
    Json(arrivals(&state, &range))
}

/// `GET /settings`.
pub async fn get_settings(Shared(state): Shared<Arc<State>>) -> Json<Arc<Settings>> {
    Json(state.settings())
}

/// `PUT /settings`: the fields that are named change, the others stay.
pub async fn put_settings(Shared(state): Shared<Arc<State>>, Json(patch): Json<Value>) -> Response {
    match state.patch(&patch) {
        Ok(settings) => Json(settings).into_response(),
        Err(message) => (StatusCode::BAD_REQUEST, Json(json!({"error": message}))).into_response(),
    }
}
