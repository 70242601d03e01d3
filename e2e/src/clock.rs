//! Unix milliseconds that never jump backwards, and the signal to stop.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// How long it is from now, in Unix milliseconds, until this second of a minute (0 to 59).
#[must_use]
pub const fn until_second(now_ms: u64, second: u64) -> Duration {
    Duration::from_millis((second * 1000 + 60_000 - now_ms % 60_000) % 60_000)
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
    use super::*;

    #[test]
    fn it_is_less_than_a_minute_until_a_second_of_it() {
        assert_eq!(until_second(120_000 + 27_500, 30), Duration::from_millis(2500));
        assert_eq!(until_second(120_000 + 30_500, 30), Duration::from_millis(59_500));
        assert_eq!(until_second(120_000, 0), Duration::ZERO);
    }

    #[test]
    fn is_unix_time_and_does_not_go_back() {
        let a = unix_ms();
        let b = unix_ms();
        assert!(a > 1_600_000_000_000);
        assert!(b >= a);
    }
}
