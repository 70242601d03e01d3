//! The dead band: shares that would move by less stay as they are.
//!
//! A share that follows every request makes each tick write every member's record, and every process rewrite its
//! router's limits, for nothing. So small moves are left out, all or none: shares that stay were planned together, or
//! at least lie each within the band of what was.

/// The band is this part of an even share: 1 %. Half the floor, so that it never hides a newcomer.
const BAND_PART: u64 = 100;

/// A share that would move by less than this stays, in tokens or requests: 1 % of an even share of the budget. At least 1,
/// by which nothing stays but what is exact already.
///
/// All members together are within 1 % of the budget of the exact plan, a tenth of what is kept in the pool.
pub(super) fn band(budget: u64, members: u64) -> u64 {
    budget.checked_div(members).map_or(1, |even| (even / BAND_PART).max(1))
}

/// One member's shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    /// The share that it has.
    pub old: u64,
    /// The share that it would get.
    pub new: u64,
    /// What it is entitled to whatever it demands.
    pub floor: u64,
}

/// Whether all may keep their old shares. These may be anything, as they come from the ledger: they stay only if they fit
/// into the room themselves, so the band can never let the sum exceed it; and nobody stays below its floor, which is
/// above 0 wherever the room has a unit for each member.
pub(super) fn may_stay(room: u64, band: u64, moves: impl Iterator<Item = Move>) -> bool {
    let mut left = room;
    for Move { old, new, floor } in moves {
        if old.abs_diff(new) >= band || old < floor {
            return false;
        }
        match left.checked_sub(old) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stay(room: u64, band: u64, moves: &[(u64, u64, u64)]) -> bool {
        may_stay(room, band, moves.iter().map(|&(old, new, floor)| Move { old, new, floor }))
    }

    #[test]
    fn each_reason_to_move() {
        assert!(stay(100, 10, &[(50, 41, 2), (50, 59, 2)]));
        assert!(!stay(100, 10, &[(50, 40, 2), (50, 59, 2)]), "a whole band");
        assert!(!stay(99, 10, &[(50, 41, 2), (50, 58, 2)]), "no room for the old shares");
        assert!(!stay(100, 10, &[(1, 2, 2), (50, 59, 2)]), "below its floor");
    }

    #[test]
    fn the_band_is_a_hundredth_of_an_even_share() {
        assert_eq!(band(1_500_000, 20), 750);
        assert_eq!(band(60, 20), 1);
        assert_eq!(band(60, 0), 1);
    }
}
