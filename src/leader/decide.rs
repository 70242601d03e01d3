//! What a replica should do about the Lease.

use std::time::Duration;

use super::Moment;

/// How long things take. The defaults are those of Kubernetes' own components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// How long the others leave a Lease alone that does not change.
    pub lease: Duration,
    /// How long after it sent its last successful renewal a leader may write. It must be well below `lease`.
    pub renew_deadline: Duration,
    /// How often to renew, and to look.
    pub retry: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew_deadline: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; none when it was released.
    pub holder: Option<String>,
    /// For how long, since its last change.
    pub lease: Duration,
    /// How many times the holder has changed.
    pub transitions: i32,
    /// The `resourceVersion`: another one is another renewal.
    pub version: String,
}

/// A Lease as it was seen, and when this version was seen first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// What it says; none when there was no Lease.
    pub record: Option<Record>,
    /// Since when, by this machine's clocks.
    pub since: Moment,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is no Lease: create it.
    Create,
    /// It is ours: renew it.
    Renew,
    /// It is free, or its holder has let it lapse: take it.
    TakeOver,
    /// It is another's: look again after this.
    Wait(Duration),
}

/// Decides from the Lease as it was last seen. `had` is the holder of the version before it was deleted, if it was: that
/// holder may still believe in it.
#[must_use]
pub fn decide(me: &str, observed: &Observed, had: Option<&str>, now: Moment, timings: Timings) -> Decision {
    let wait = |length: Duration| {
        let left = length.saturating_sub(now.monotonic.saturating_sub(observed.since.monotonic));
        Decision::Wait(left.min(timings.retry))
    };
    match &observed.record {
        None => match had {
            Some(holder) if holder != me && !now.surely_after(observed.since, timings.lease) => wait(timings.lease),
            _ => Decision::Create,
        },
        Some(record) => match record.holder.as_deref() {
            None => Decision::TakeOver,
            Some(holder) if holder == me => Decision::Renew,
            Some(_) if now.surely_after(observed.since, record.lease) => Decision::TakeOver,
            Some(_) => wait(record.lease),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment { monotonic: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) }
    }

    fn seen(holder: Option<&str>) -> Observed {
        let record = Record {
            holder: holder.map(str::to_owned),
            lease: Duration::from_secs(15),
            transitions: 1,
            version: "7".to_owned(),
        };
        Observed { record: Some(record), since: at(100) }
    }

    #[test]
    fn each_case() {
        let decide =
            |observed: &Observed, had: Option<&str>, now: u64| decide("me", observed, had, at(now), Timings::default());
        assert_eq!(decide(&seen(None), None, 100), Decision::TakeOver);
        assert_eq!(decide(&seen(Some("me")), None, 100), Decision::Renew);
        assert_eq!(decide(&seen(Some("you")), None, 101), Decision::Wait(Duration::from_secs(2)));
        assert_eq!(decide(&seen(Some("you")), None, 114), Decision::Wait(Duration::from_secs(1)));
        assert_eq!(decide(&seen(Some("you")), None, 115), Decision::TakeOver);
        let gone = Observed { record: None, since: at(100) };
        assert_eq!(decide(&gone, None, 100), Decision::Create);
        assert_eq!(decide(&gone, Some("me"), 100), Decision::Create);
        assert_eq!(decide(&gone, Some("you"), 101), Decision::Wait(Duration::from_secs(2)));
        assert_eq!(decide(&gone, Some("you"), 115), Decision::Create);
    }
}
