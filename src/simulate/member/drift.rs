//! How much faster than the ledger's clock this process's clock runs: the model of `Drift` in `agent/src/drift.py`.
//! A fast clock forgets charges too early, so the guard grows by what it may gain in a window.

use super::ring::WINDOW;

/// What the delay between stamp and arrival at the provider may differ by, in seconds.
const DELAY: f64 = 0.35;

/// What a clock may gain in a window while nothing is known of it (1 %), in seconds.
const UNKNOWN: f64 = 0.6;

/// The least time that is measured over, in seconds.
const SPAN: f64 = 60.0;

/// A clock that differs by more was not drifting: one of the two was set.
const STEP: f64 = 0.03;

/// What is known of the clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drift {
    /// Boot time of a call when it was sent, and the ledger's time in its answer.
    anchor: Option<(f64, f64)>,
    /// What the clock gains in a window: in the last span, and in the one before.
    gains: [Option<f64>; 2],
}

impl Drift {
    /// An answer: when its call was sent and when it was received (boot time), and the ledger's time in it, all in seconds.
    pub fn note(&mut self, sent: f64, received: f64, ledger: f64) {
        let Some((from, since)) = self.anchor else {
            self.anchor = Some((sent, ledger));
            return;
        };
        let (own, theirs) = (received - from, ledger - since);
        if own < SPAN && theirs > 0.0 && theirs < 2.0 * SPAN {
            return;
        }
        self.anchor = Some((sent, ledger));
        // The ledger's time is cut to milliseconds.
        let rate = own / (theirs - 0.001);
        if theirs > SPAN / 2.0 && (rate - 1.0).abs() < STEP {
            self.gains = [Some(WINDOW * (rate - 1.0).max(0.0)), self.gains[0]];
        }
    }

    /// How long a charge stays in the ring beyond its window, in seconds.
    #[must_use]
    pub fn guard(&self) -> f64 {
        let gain = match self.gains {
            [None, _] => UNKNOWN,
            [Some(last), before] => last.max(before.unwrap_or(0.0)),
        };
        DELAY + gain
    }
}
