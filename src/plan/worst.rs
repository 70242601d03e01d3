//! The most that was spent in any 60 s of the last hour, as the members reported it.
//!
//! Times are seconds by the caller's clock; it may stand still and go back.

use std::collections::VecDeque;

/// How long a figure counts, seconds: an hour.
const HOUR: u64 = 3_600;

/// Figures of so many seconds are one: the memory is bounded to 60 of them.
const STEP: u64 = 60;

/// The largest figure of the last hour, to a minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worst {
    /// The first second of each minute that is known, and its largest figure; the newest last.
    minutes: VecDeque<(u64, u64)>,
}

impl Worst {
    /// What another said at `now` (seconds) was the largest of the hour before: it counts for an hour from now on, as nobody
    /// knows any more when it was.
    #[must_use]
    pub fn said_before(now: u64, worst: u64) -> Self {
        let mut said = Self::default();
        said.note(now, worst);
        said
    }

    /// Takes in what was spent in the 60 s before `now` (seconds), and answers with the largest of the last hour.
    pub fn note(&mut self, now: u64, spent: u64) -> u64 {
        let minute = now / STEP * STEP;
        match self.minutes.back_mut() {
            Some((last, most)) if *last >= minute => *most = spent.max(*most),
            _ => self.minutes.push_back((minute, spent)),
        }
        while self.minutes.front().is_some_and(|(at, _)| at.saturating_add(HOUR) <= now) {
            self.minutes.pop_front();
        }
        self.minutes.iter().map(|(_, most)| *most).max().unwrap_or(spent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is the largest figure of an hour, and of at most a minute more.
        #[test]
        fn is_the_largest_of_the_last_hour(steps in prop::collection::vec((0_u64..400, 0_u64..1_000), 1..200)) {
            let (mut worst, mut now, mut all) = (Worst::default(), 1_790_000_000, Vec::new());
            for (step, spent) in steps {
                now += step;
                all.push((now, spent));
                let said = worst.note(now, spent);
                let since = |age: u64| all.iter().filter(|(at, _)| now - at < age).map(|(_, s)| *s).max().unwrap_or(0);
                prop_assert!(since(HOUR - STEP) <= said && said <= since(HOUR + STEP));
                prop_assert!(worst.minutes.len() <= 61);
            }
        }
    }

    #[test]
    fn what_another_said_counts_for_an_hour() {
        let mut worst = Worst::said_before(600, 9);
        assert_eq!([worst.note(660, 5), worst.note(600 + HOUR - 1, 4), worst.note(600 + HOUR, 3)], [9, 9, 5]);
    }

    #[test]
    fn a_clock_that_goes_back_loses_nothing() {
        let mut worst = Worst::default();
        assert_eq!([worst.note(10_000, 5), worst.note(9_000, 9), worst.note(10_000, 1)], [5, 9, 9]);
    }
}
