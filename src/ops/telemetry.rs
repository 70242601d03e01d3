//! Logs: text on a terminal, else one JSON object a line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error("--log or RUST_LOG is not a filter such as info or tokenbudget=debug,kube=warn")]
    Filter(#[from] ParseError),
    /// Somebody was first.
    #[error("logging is set up already")]
    Twice(#[from] TryInitError),
}

/// Starts logging to standard error, by the filter that is given, else by `RUST_LOG`, else from `info` up.
///
/// # Errors
/// [`TelemetryError`]
pub fn init(filter: Option<&str>) -> Result<(), TelemetryError> {
    let filter = filter.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()));
    let filter = EnvFilter::try_new(filter.as_deref().unwrap_or("info"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        logs.finish().try_init()?;
    } else {
        logs.json().flatten_event(true).finish().try_init()?;
    }
    Ok(())
}
