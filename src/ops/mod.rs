//! What an operator of the operator sees: logs, metrics, probes.

mod http;
mod metrics;
mod telemetry;

pub use http::{Readiness, router, serve};
pub use metrics::{BookLabels, LedgerErrorKind, Metrics, Outcome, Reading, Unit};
pub use telemetry::{TelemetryError, init};
