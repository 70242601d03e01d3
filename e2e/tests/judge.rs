//! The judge against examples worked by hand and against naive oracles.

use proptest::prelude::*;
use rig::judge::{
    Arrival, WINDOW_MS, Worst, ideal_admitted, longest_gap, percent_up, rolling_60s, slots, tokens_in, used, worst_60s,
    worst_60s_exact,
};

fn at(at_ms: u64, tokens: u64) -> Arrival {
    Arrival { at_ms, tokens }
}

#[test]
fn a_cost_leaves_exactly_one_window_later() {
    let offered = [at(0, 60), at(59_999, 50), at(60_000, 50)];
    let ideal = ideal_admitted(&[], &offered, 100, WINDOW_MS);
    assert_eq!(ideal.admitted, vec![at(0, 60), at(60_000, 50)]);
    assert_eq!(ideal.tokens, 110);
    assert_eq!(ideal.tokens_in(0, 60_000), 60);
}

#[test]
fn a_request_too_big_is_skipped_and_a_later_small_one_goes() {
    let offered = [at(1, 101), at(2, 100), at(3, 1)];
    let ideal = ideal_admitted(&[], &offered, 100, WINDOW_MS);
    assert_eq!(ideal.admitted, vec![at(2, 100)]);
}

#[test]
fn a_warm_start_counts_what_was_spent() {
    let warm = [at(90_000, 80), at(10_000, 1_000), at(100_000, 7)];
    let offered = [at(100_000, 30), at(100_001, 20), at(150_000, 30)];
    let ideal = ideal_admitted(&warm, &offered, 100, WINDOW_MS);
    assert_eq!(ideal.admitted, vec![at(100_001, 20), at(150_000, 30)]);
}

#[test]
fn worst_60s_of_slots() {
    assert_eq!(worst_60s(5, &[]), Worst { tokens: 0, from_ms: 5 });
    assert_eq!(worst_60s(5, &[1, 2]), Worst { tokens: 3, from_ms: 5 });
    let mut series = vec![0; 1300];
    series[100] = 5;
    series[699] = 5;
    series[1299] = 9;
    assert_eq!(worst_60s(0, &series), Worst { tokens: 10, from_ms: 10_000 });
    series[700] = 100;
    assert_eq!(worst_60s(0, &series).tokens, 109);
}

#[test]
fn gaps_count_the_edges() {
    assert_eq!(longest_gap(&[], 10, 50), 40);
    assert_eq!(longest_gap(&[at(12, 1), at(20, 1)], 10, 50), 30);
    assert_eq!(longest_gap(&[at(45, 1), at(0, 1), at(60, 1)], 10, 50), 35);
}

#[test]
fn percent_rounds_up() {
    assert_eq!(percent_up(60_000, 60_000), "100.0%");
    assert_eq!(percent_up(60_001, 60_000), "100.1%");
    assert_eq!(percent_up(59_700, 60_000), "99.5%");
    assert_eq!(percent_up(0, 60_000), "0.0%");
    assert_eq!(percent_up(5, 0), "inf%");
    assert_eq!(percent_up(u64::MAX, u64::MAX), "100.0%");
}

#[test]
fn used_is_a_share() {
    let list = |tokens| [at(10_000, tokens), at(70_000, tokens)];
    assert!((used(&list(94), &list(100), 0, 130_000) - 0.94).abs() < 1e-9);
    assert!((used(&list(94), &[], 0, 130_000) - 1.0).abs() < 1e-9, "nothing was possible");
    assert!(used(&list(94), &list(100), 200_000, 260_000) >= 1.0, "nothing of it is in the range");
}

#[test]
fn where_the_end_falls_in_a_minute_hardly_changes_what_was_used() {
    // The whole budget in 10 s of each minute, as a demand of many times the budget has it; ours 5 s late.
    let burst = |late: u64| -> Vec<Arrival> {
        (0..10).flat_map(|minute| (0..10).map(move |s| at(minute * WINDOW_MS + s * 1000 + late, 100))).collect()
    };
    let (ideal, mine) = (burst(0), burst(5000));
    for end_ms in (180_000..300_000).step_by(1000) {
        let single = tokens_in(&mine, 0, end_ms) as f64 / tokens_in(&ideal, 0, end_ms) as f64;
        let mean = used(&mine, &ideal, 0, end_ms);
        assert!((0.96..0.985).contains(&mean), "{end_ms}: {mean}");
        assert!((0.85..=1.0).contains(&single), "{end_ms}: {single}");
    }
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    prop::collection::vec((0..200_000u64, 1..400u64), 0..300)
        .prop_map(|list| list.into_iter().map(|(t, c)| at(t, c)).collect())
}

/// The bucket, said in the plainest way: sum everything admitted, every time.
fn naive_ideal(warm: &[Arrival], offered: &[Arrival], budget: u64) -> Vec<Arrival> {
    let mut offered = offered.to_vec();
    offered.sort_by_key(|a| a.at_ms);
    let start = offered.first().map_or(0, |a| a.at_ms);
    let warm: Vec<Arrival> = warm.iter().filter(|a| a.at_ms < start).copied().collect();
    let mut admitted: Vec<Arrival> = Vec::new();
    for a in offered {
        let held: u64 = warm.iter().chain(&admitted).filter(|b| b.at_ms + WINDOW_MS > a.at_ms).map(|b| b.tokens).sum();
        if held + a.tokens <= budget {
            admitted.push(a);
        }
    }
    admitted
}

proptest! {
    #[test]
    fn ideal_is_the_naive_one(warm in arrivals(), offered in arrivals(), budget in 1..5_000u64) {
        let ideal = ideal_admitted(&warm, &offered, budget, WINDOW_MS);
        prop_assert_eq!(&ideal.admitted, &naive_ideal(&warm, &offered, budget));
        prop_assert_eq!(ideal.tokens, tokens_in(&ideal.admitted, 0, u64::MAX));
    }

    #[test]
    fn no_window_is_above_the_budget(offered in arrivals(), budget in 1..5_000u64) {
        let ideal = ideal_admitted(&[], &offered, budget, WINDOW_MS);
        prop_assert!(worst_60s_exact(&ideal.admitted).tokens <= budget);
        let series = slots(&ideal.admitted, 0, 200_000);
        prop_assert!(worst_60s(0, &series).tokens <= budget);
        prop_assert!(rolling_60s(&series).into_iter().max().unwrap_or(0) <= budget);
    }

    #[test]
    fn worst_from_slots_is_the_naive_one(series in prop::collection::vec(0..50u64, 0..1_500)) {
        let naive = if series.len() <= 600 {
            series.iter().sum()
        } else {
            series.windows(600).map(|w| w.iter().sum::<u64>()).max().unwrap_or(0)
        };
        prop_assert_eq!(worst_60s(0, &series).tokens, naive);
        prop_assert_eq!(rolling_60s(&series).into_iter().max().unwrap_or(0), naive);
    }

    #[test]
    fn exact_is_the_naive_one_and_never_below_slots(offered in arrivals()) {
        let naive = offered
            .iter()
            .map(|a| tokens_in(&offered, a.at_ms, a.at_ms + WINDOW_MS))
            .max()
            .unwrap_or(0);
        let exact = worst_60s_exact(&offered);
        prop_assert_eq!(exact.tokens, naive);
        prop_assert_eq!(tokens_in(&offered, exact.from_ms, exact.from_ms + WINDOW_MS), naive);
        prop_assert!(exact.tokens >= worst_60s(0, &slots(&offered, 0, 200_000)).tokens);
    }
}
