//! How much of a budget is at hand for whoever asks: the more, the less a member gives back of what it does not use.

/// Part of the budget that is in the pool when the pressure is at its most, from 0 to 1.
pub const EMPTY: f64 = 0.04;

/// Part of the budget that is in the pool when there is no pressure, from 0 to 1.
pub const FULL: f64 = 0.2;

/// How full the pool is, from 0 (at most [`EMPTY`] of the budget) to 1 (at least [`FULL`]). `Book.apply` of the agent has
/// the same rule; the vectors hold both to it.
#[must_use]
pub fn slack(pool: i64, budget: u64) -> f64 {
    if budget == 0 {
        return 0.0;
    }
    ((pool as f64 / budget as f64 - EMPTY) / (FULL - EMPTY)).clamp(0.0, 1.0)
}

/// The pressure on the members to give back, in percent: 0 with slack 1, 100 with slack 0.
#[must_use]
pub fn pressure_percent(pool: i64, budget: u64) -> i64 {
    ((1.0 - slack(pool, budget)) * 100.0).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_rises_as_the_pool_runs_out() {
        let pressures = [1_000, 200, 120, 40, 0, -500].map(|pool| pressure_percent(pool, 1_000));
        assert_eq!(pressures, [0, 0, 50, 100, 100, 100]);
        assert_eq!(pressure_percent(0, 0), 100);
    }
}
