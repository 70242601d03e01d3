//! Exact max-min fairness in whole numbers.

/// Divides `room` among the demands so that the smallest is as large as possible, then the next, and so on; nobody gets
/// more than its demand. O(n log n). Equal demands differ by at most 1; who gets the odd unit depends on the position, so
/// sort the members first.
#[must_use]
pub fn max_min(room: u64, demands: &[u64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_by_key(|&i| (demands[i], i));

    let mut shares = vec![0; demands.len()];
    let mut left = room;
    let mut waiting = u64::try_from(demands.len()).unwrap_or(u64::MAX);
    for i in order {
        let share = demands[i].min(left / waiting);
        shares[i] = share;
        left -= share;
        waiting -= 1;
    }
    shares
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
            let (mut fast, mut slow) = (max_min(room, &demands), oracle(room, &demands));
            prop_assert!(fast.iter().zip(&slow).all(|(a, b)| a.abs_diff(*b) <= 1), "{fast:?} {slow:?}");
            fast.sort_unstable();
            slow.sort_unstable();
            prop_assert_eq!(fast, slow);
        }

        #[test]
        fn more_room_takes_from_nobody(room in 0..100_000_u64, more in 0..1_000_u64, demands in prop::collection::vec(0..80_000_u64, 0..30)) {
            let (before, after) = (max_min(room, &demands), max_min(room + more, &demands));
            prop_assert!(before.iter().zip(&after).all(|(a, b)| a <= b));
        }
    }
}
