//! Unix milliseconds that never jump backwards, and the signal to stop.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The wall clock and the monotonic clock, read together once per process.
static ORIGIN: OnceLock<(Instant, u64)> = OnceLock::new();

/// Now, in Unix milliseconds.
///
/// The wall clock is read once, at the first call; afterwards the monotonic
/// clock is added, so a correction of the system time does not bend a series.
#[must_use]
pub fn unix_ms() -> u64 {
    let (start, unix) = ORIGIN.get_or_init(|| {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        (Instant::now(), u64::try_from(unix).unwrap_or(u64::MAX))
    });
    unix.saturating_add(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Comes back when the process is asked to stop (SIGINT or SIGTERM).
///
/// # Errors
/// When the signals cannot be watched.
pub async fn interrupted() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_unix_time_and_does_not_go_back() {
        let a = super::unix_ms();
        let b = super::unix_ms();
        assert!(a > 1_600_000_000_000);
        assert!(b >= a);
    }
}
