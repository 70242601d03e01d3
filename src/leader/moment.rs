//! A point in time by both clocks of this machine.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Start of the monotonic clock, as far as this process is concerned.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Now, by the monotonic clock and by the wall clock.
///
/// The monotonic clock stands still while a machine is suspended, the wall clock may be set. A time limit that must not be
/// overrun is over when either says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Since some fixed point of this process.
    pub monotonic: Duration,
    /// Since the Unix epoch.
    pub wall: Duration,
}

impl Moment {
    /// The time that it is.
    #[must_use]
    pub fn now() -> Self {
        Self {
            monotonic: START.elapsed(),
            wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
        }
    }

    /// Whether at least `length` has passed since `earlier`, by the monotonic clock: the later answer.
    #[must_use]
    pub fn surely_after(self, earlier: Self, length: Duration) -> bool {
        self.monotonic.saturating_sub(earlier.monotonic) >= length
    }

    /// Whether `length` may have passed since `earlier`, by either clock: the earlier answer.
    #[must_use]
    pub fn maybe_after(self, earlier: Self, length: Duration) -> bool {
        self.surely_after(earlier, length) || self.wall.saturating_sub(earlier.wall) >= length
    }
}
