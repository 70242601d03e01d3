//! What an operator of the operator sees: logs, metrics, probes.

mod http;
mod metrics;
mod telemetry;

pub use http::{Readiness, listen, router, serve};
pub use metrics::{
    BookLabels, ConditionStatus, FleetReading, LedgerErrorKind, Metrics, Outcome, ProcessState, Reading, Unit,
};
pub use telemetry::{Filter, TelemetryError, follow, init};
