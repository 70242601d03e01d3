//! Logs: text on a terminal, else one JSON object a line.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// How often the file with the filter is read. A kubelet takes up to a minute to show a changed ConfigMap in it.
const REREAD: Duration = Duration::from_secs(2);

/// What of the logs can be changed while the program runs.
pub type Filter = reload::Handle<EnvFilter, Registry>;

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
pub fn init(filter: Option<&str>) -> Result<Filter, TelemetryError> {
    let filter = filter.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()));
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter.as_deref().unwrap_or("info"))?);
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = if std::io::stderr().is_terminal() { logs.boxed() } else { logs.json().flatten_event(true).boxed() };
    tracing_subscriber::registry().with(filter).with(logs).try_init()?;
    Ok(handle)
}

/// Reads the filter from a file, again and again: what it says last holds. Never ends.
pub async fn follow(path: PathBuf, filter: Filter) {
    let mut known = Ok(String::new());
    loop {
        let text = tokio::fs::read_to_string(&path).await.map_err(|error| error.to_string());
        if text != known {
            take(&path, text.clone(), &filter);
            known = text;
        }
        tokio::time::sleep(REREAD).await;
    }
}

fn take(path: &Path, text: Result<String, String>, filter: &Filter) {
    match text.and_then(|text| EnvFilter::try_new(text.trim()).map_err(|error| error.to_string())) {
        // Said before the change, as a filter without info would not show it.
        Ok(new) => {
            info!(file = %path.display(), filter = %new, "log filter");
            // Fails only when there is no log any more.
            let _ = filter.reload(new);
        }
        Err(error) => warn!(file = %path.display(), error, "no log filter can be read; the last one holds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_filter_that_can_be_read_holds() {
        let (_layer, handle) = reload::Layer::<EnvFilter, Registry>::new(EnvFilter::new("info"));
        let texts = [Err("no such file"), Ok("tokenbudget=debug\n"), Ok("no=such=level"), Ok("warn")];
        let held = texts.map(|text| {
            take(Path::new("filter"), text.map(str::to_owned).map_err(str::to_owned), &handle);
            handle.with_current(ToString::to_string).unwrap()
        });
        assert_eq!(held, ["info", "tokenbudget=debug", "tokenbudget=debug", "warn"]);
    }
}
