//! The course of an election, as this replica sees it. Pure: it says what to read and write, and is told what came of it.

use std::time::Duration;

use super::{Decision, Moment, Observed, Record, Timings, decide};

/// The shortest wait: rounding must not make a busy loop.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);

/// Proof of leadership, for a bounded time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderToken {
    /// When the renewal that it rests on was sent, and how long it lasts from there; none lasts for ever.
    bound: Option<(Moment, Duration)>,
}

impl LeaderToken {
    /// A token for a replica that runs without an election.
    #[must_use]
    pub const fn unbounded() -> Self {
        Self { bound: None }
    }

    /// Whether this replica may write now.
    #[must_use]
    pub fn is_valid(&self, now: Moment) -> bool {
        self.bound.is_none_or(|(sent, length)| !now.maybe_after(sent, length))
    }

    /// How long it is valid at most from now.
    #[must_use]
    pub fn remaining(&self, now: Moment) -> Duration {
        self.bound
            .map_or(Duration::MAX, |(sent, length)| length.saturating_sub(now.monotonic.saturating_sub(sent.monotonic)))
    }
}

/// A write to the Lease, guarded by the version that it replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// What to write; `version` is what it must still be, and empty for a Lease that must not be there yet.
    pub record: Record,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the Lease, and tell [`Elector::read`].
    Read,
    /// Write it, and tell [`Elector::written`].
    Write(Write),
    /// Nothing for so long.
    Sleep(Duration),
}

/// What came of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was taken; the Lease has this version now.
    Stored(String),
    /// Somebody else was first, or nobody knows: it may have been taken, or may be later.
    Failed,
}

/// One replica in an election.
#[derive(Clone, Debug)]
pub struct Elector {
    me: String,
    timings: Timings,
    /// The Lease as it was seen last, and since when this version.
    observed: Option<Observed>,
    /// Whether that may be acted on: not before the next look after a write that failed.
    fresh: bool,
    /// The holder by the last Lease that there was, for when it is deleted.
    had: Option<String>,
    /// When the last request was sent.
    asked: Option<Moment>,
    token: Option<LeaderToken>,
}

impl Elector {
    /// A replica that has not looked yet.
    #[must_use]
    pub fn new(me: &str, timings: Timings) -> Self {
        Self { me: me.to_owned(), timings, observed: None, fresh: false, had: None, asked: None, token: None }
    }

    /// What to do now.
    #[must_use]
    pub fn step(&self, now: Moment) -> Step {
        let Some(observed) = self.observed.as_ref().filter(|_| self.fresh) else {
            return self.pause(self.asked, now).map_or(Step::Read, Step::Sleep);
        };
        let found = observed.record.clone().unwrap_or_default();
        let write = |transitions: i32| {
            let holder = Some(self.me.clone());
            let version = found.version.clone();
            Step::Write(Write { record: Record { holder, lease: self.timings.lease, transitions, version } })
        };
        match decide(&self.me, observed, self.had.as_deref(), now, self.timings) {
            Decision::Create => write(0),
            Decision::TakeOver => write(found.transitions.saturating_add(1)),
            // Without a token an answer was lost, or we were away: the write renews it, if nobody has taken it.
            Decision::Renew => {
                let renewed = self.token(now).and_then(|token| token.bound).map(|(sent, _)| sent);
                self.pause(renewed, now).map_or_else(|| write(found.transitions), Step::Sleep)
            }
            Decision::Wait(left) => match self.pause(self.asked, now) {
                Some(pause) => Step::Sleep(left.min(pause).max(SHORTEST_SLEEP)),
                None => Step::Read,
            },
        }
    }

    /// What is left of the pause after a request.
    fn pause(&self, request: Option<Moment>, now: Moment) -> Option<Duration> {
        let passed = now.monotonic.saturating_sub(request?.monotonic);
        self.timings.retry.checked_sub(passed).filter(|left| !left.is_zero())
    }

    /// The Lease was asked for at `sent`, and the answer had come at `now`.
    pub fn read(&mut self, record: Option<Record>, sent: Moment, now: Moment) {
        self.asked = Some(sent);
        let same = self.observed.as_ref().filter(|seen| {
            seen.record.as_ref().map(|record| &record.version) == record.as_ref().map(|record| &record.version)
        });
        // Not before the answer came: the version may be as young as that.
        let since = same.map_or(now, |seen| seen.since);
        if let Some(record) = &record {
            self.had.clone_from(&record.holder);
        }
        self.observed = Some(Observed { record, since });
        self.fresh = true;
    }

    /// The Lease was asked for at `sent`, without an answer.
    pub const fn unread(&mut self, sent: Moment) {
        self.asked = Some(sent);
    }

    /// A write that was sent at `sent` ended at `now`.
    pub fn written(&mut self, write: &Write, outcome: Written, sent: Moment, now: Moment) {
        self.asked = Some(sent);
        match outcome {
            Written::Stored(version) => {
                let record = Record { version, ..write.record.clone() };
                let leads = record.holder.as_deref() == Some(self.me.as_str());
                self.token = leads.then_some(LeaderToken { bound: Some((sent, self.timings.renew_deadline)) });
                self.had.clone_from(&record.holder);
                self.observed = Some(Observed { record: Some(record), since: now });
            }
            Written::Failed => self.fresh = false,
        }
    }

    /// Proof that this replica leads, if it does.
    #[must_use]
    pub fn token(&self, now: Moment) -> Option<LeaderToken> {
        self.token.clone().filter(|token| token.is_valid(now))
    }

    /// Who holds the Lease, as far as is known.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.observed.as_ref()?.record.as_ref()?.holder.as_deref()
    }

    /// Whether the Lease was ever seen.
    #[must_use]
    pub const fn has_looked(&self) -> bool {
        self.observed.is_some()
    }

    /// Ends the leadership at once, before the others are told.
    pub fn resign(&mut self) {
        self.token = None;
    }

    /// The write that tells the others that they need not wait; none when the Lease is not ours.
    #[must_use]
    pub fn release(&self) -> Option<Write> {
        let record = self.observed.as_ref()?.record.as_ref()?;
        let ours = record.holder.as_deref() == Some(self.me.as_str()) && self.token.is_none();
        ours.then(|| Write { record: Record { holder: None, ..record.clone() } })
    }
}

#[cfg(test)]
mod tests;
