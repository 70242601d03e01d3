//! Exact max-min fairness in whole numbers.

/// Divides `room` among the demands so that the smallest is as large as possible, then the next, and so on; nobody gets
/// more than its demand, and nothing is left over that anybody wants. O(n log n). Equal demands differ by at most 1: the
/// odd units go to the first ones.
#[must_use]
pub fn max_min(room: u64, demands: &[u64]) -> Vec<u64> {
    Level::of(room, demands).shares(demands)
}

/// How high the water stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// Who demands more than this gets this much; `u64::MAX`: everybody gets what it demands.
    pub full: u64,
    /// How many of them get 1 unit more.
    odd: u64,
}

impl Level {
    /// Of these demands in this room. O(n log n).
    pub(super) fn of(room: u64, demands: &[u64]) -> Self {
        let mut rising = demands.to_vec();
        rising.sort_unstable();
        let mut left = room;
        for (&demand, waiting) in rising.iter().zip((1..=rising.len() as u64).rev()) {
            if u128::from(demand) * u128::from(waiting) > u128::from(left) {
                return Self { full: left / waiting, odd: left % waiting };
            }
            left -= demand;
        }
        Self { full: u64::MAX, odd: 0 }
    }

    /// What each of the demands gets.
    pub(super) fn shares(self, demands: &[u64]) -> Vec<u64> {
        let Self { full, mut odd } = self;
        let share = |&demand: &u64| {
            if demand <= full {
                return demand;
            }
            let one = u64::from(odd > 0);
            odd -= one;
            full + one
        };
        demands.iter().map(share).collect()
    }
}

/// Divides `total` evenly among `n`, to the unit: the odd units go to the first ones.
pub(super) fn even(total: u64, n: u64) -> impl Iterator<Item = u64> {
    let (each, odd) = (total.checked_div(n).unwrap_or(0), total.checked_rem(n).unwrap_or(0));
    (0..n).map(move |place| each + u64::from(place < odd))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One unit at a time to the poorest that still wants one.
    fn oracle(room: u64, demands: &[u64]) -> Vec<u64> {
        let mut shares = vec![0; demands.len()];
        for _ in 0..room {
            let poorest = (0..demands.len()).filter(|&i| shares[i] < demands[i]).min_by_key(|&i| shares[i]);
            match poorest {
                Some(i) => shares[i] += 1,
                None => break,
            }
        }
        shares
    }

    proptest! {
        #[test]
        fn agrees_with_handing_out_one_by_one(room in 0..400_u64, demands in prop::collection::vec(0..80_u64, 0..12)) {
            prop_assert_eq!(max_min(room, &demands), oracle(room, &demands));
        }

        #[test]
        fn more_room_takes_from_nobody(room in 0..100_000_u64, more in 0..1_000_u64, demands in prop::collection::vec(0..80_000_u64, 0..30)) {
            let (before, after) = (max_min(room, &demands), max_min(room + more, &demands));
            prop_assert!(before.iter().zip(&after).all(|(a, b)| a <= b));
        }
    }

    #[test]
    fn amounts_near_the_end_of_u64_do_not_overflow() {
        assert_eq!(max_min(u64::MAX, &[u64::MAX, u64::MAX]), [u64::MAX / 2 + 1, u64::MAX / 2]);
        assert_eq!(max_min(u64::MAX, &[u64::MAX]), [u64::MAX]);
    }
}
