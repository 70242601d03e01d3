//! The arithmetic every claim is judged by: pure functions, whole numbers.
//!
//! A window of 60 s that starts at `t` holds `t` and not `t + 60 s`: a cost
//! admitted at `t` leaves exactly 60 s later.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The window of a tokens-per-minute budget, in milliseconds.
pub const WINDOW_MS: u64 = 60_000;
/// The length of one slot of a series, in milliseconds.
pub const SLOT_MS: u64 = 100;
/// Slots in one window.
pub const WINDOW_SLOTS: usize = 600;

/// A request at a moment: offered, or admitted, as the context says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// What it costs: prompt plus answer.
    pub tokens: u64,
}

/// The fullest window of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worst {
    /// Tokens in it.
    pub tokens: u64,
    /// Where it starts, in Unix milliseconds.
    pub from_ms: u64,
}

/// A rolling window of costs: the exact form of a tokens-per-minute bucket.
#[derive(Clone, Debug)]
pub struct RollingWindow {
    window_ms: u64,
    inside: VecDeque<Arrival>,
    sum: u64,
}

impl RollingWindow {
    /// An empty window of this length.
    #[must_use]
    pub const fn new(window_ms: u64) -> Self {
        Self { window_ms, inside: VecDeque::new(), sum: 0 }
    }

    /// Tokens in the window that ends at `now_ms`. Times must not go back.
    pub fn sum_at(&mut self, now_ms: u64) -> u64 {
        while let Some(first) = self.inside.front() {
            if first.at_ms.saturating_add(self.window_ms) > now_ms {
                break;
            }
            self.sum -= first.tokens;
            self.inside.pop_front();
        }
        self.sum
    }

    /// Puts a cost in, whether it fits or not.
    pub fn put(&mut self, arrival: Arrival) {
        self.sum_at(arrival.at_ms);
        self.sum = self.sum.saturating_add(arrival.tokens);
        self.inside.push_back(arrival);
    }

    /// Puts a cost in if the window stays within `budget`; says whether it did.
    pub fn admit(&mut self, arrival: Arrival, budget: u64) -> bool {
        let fits = self.sum_at(arrival.at_ms).saturating_add(arrival.tokens) <= budget;
        if fits {
            self.put(arrival);
        }
        fits
    }

    /// How long from `now_ms` until `tokens` more would fit, in milliseconds;
    /// `None` when they are more than the whole budget.
    pub fn wait_ms(&mut self, now_ms: u64, tokens: u64, budget: u64) -> Option<u64> {
        let mut sum = self.sum_at(now_ms);
        if tokens > budget {
            return None;
        }
        let mut wait = 0;
        for arrival in &self.inside {
            if sum + tokens <= budget {
                break;
            }
            sum -= arrival.tokens;
            wait = (arrival.at_ms + self.window_ms).saturating_sub(now_ms);
        }
        Some(wait)
    }
}

/// What one ideal central bucket would have admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ideal {
    /// Tokens admitted.
    pub tokens: u64,
    /// The requests admitted.
    pub admitted: Vec<Arrival>,
}

impl Ideal {
    /// Tokens admitted at `from_ms <= t < to_ms`.
    #[must_use]
    pub fn tokens_in(&self, from_ms: u64, to_ms: u64) -> u64 {
        tokens_in(&self.admitted, from_ms, to_ms)
    }
}

/// Tokens of the arrivals at `from_ms <= t < to_ms`.
#[must_use]
pub fn tokens_in(arrivals: &[Arrival], from_ms: u64, to_ms: u64) -> u64 {
    arrivals.iter().filter(|a| (from_ms..to_ms).contains(&a.at_ms)).map(|a| a.tokens).sum()
}

/// Runs `offered` through one ideal central bucket: in the order of arrival, a
/// request is admitted if the last `window_ms` hold at most `budget_tokens`
/// with it; an admitted cost leaves exactly `window_ms` later.
///
/// `warm` is what the provider admitted before the first offered request (only
/// the last window of it matters): a run that starts warm is not promised
/// tokens that are spent already. Both lists may be unsorted.
#[must_use]
pub fn ideal_admitted(warm: &[Arrival], offered: &[Arrival], budget_tokens: u64, window_ms: u64) -> Ideal {
    let admitted = ideally_admitted(warm, offered.to_vec(), |a| *a, budget_tokens, window_ms);
    Ideal { tokens: admitted.iter().map(|a| a.tokens).sum(), admitted }
}

/// The same for requests of which more is known than when they came and what they cost.
#[must_use]
pub fn ideally_admitted<T>(
    warm: &[Arrival],
    mut offered: Vec<T>,
    arrival: impl Fn(&T) -> Arrival,
    budget_tokens: u64,
    window_ms: u64,
) -> Vec<T> {
    offered.sort_by_key(|o| arrival(o).at_ms);
    let start = offered.first().map_or(u64::MAX, |o| arrival(o).at_ms);
    let mut bucket = RollingWindow::new(window_ms);
    let mut warm: Vec<Arrival> = warm.iter().copied().filter(|a| a.at_ms < start).collect();
    warm.sort_by_key(|a| a.at_ms);
    for arrival in warm {
        bucket.put(arrival);
    }
    offered.retain(|o| bucket.admit(arrival(o), budget_tokens));
    offered
}

/// The fullest 60 s of a series of 100 ms slots that starts at `start_ms`: the
/// largest sum of any 600 consecutive slots, or of all if there are fewer.
/// The first of equals wins.
#[must_use]
pub fn worst_60s(start_ms: u64, slots: &[u64]) -> Worst {
    let mut worst = Worst { tokens: 0, from_ms: start_ms };
    let mut sum = 0;
    for (end, tokens) in slots.iter().enumerate() {
        sum += tokens;
        let from = (end + 1).saturating_sub(WINDOW_SLOTS);
        if let Some(left) = end.checked_sub(WINDOW_SLOTS).and_then(|i| slots.get(i)) {
            sum -= left;
        }
        if sum > worst.tokens {
            worst = Worst { tokens: sum, from_ms: start_ms + from as u64 * SLOT_MS };
        }
    }
    worst
}

/// The fullest 60 s, exact to the millisecond: over windows that end with an
/// arrival. Never less than the same from slots. The list may be unsorted.
#[must_use]
pub fn worst_60s_exact(arrivals: &[Arrival]) -> Worst {
    let mut sorted = arrivals.to_vec();
    sorted.sort_by_key(|a| a.at_ms);
    let mut window = RollingWindow::new(WINDOW_MS);
    let mut worst = Worst::default();
    for arrival in sorted {
        window.put(arrival);
        if window.sum > worst.tokens {
            worst = Worst { tokens: window.sum, from_ms: window.inside.front().map_or(arrival.at_ms, |a| a.at_ms) };
        }
    }
    worst
}

/// Tokens in the last 60 s at the end of each slot: the curve of the plot.
#[must_use]
pub fn rolling_60s(slots: &[u64]) -> Vec<u64> {
    let mut sum = 0;
    slots
        .iter()
        .enumerate()
        .map(|(end, tokens)| {
            sum += tokens;
            if let Some(left) = end.checked_sub(WINDOW_SLOTS).and_then(|i| slots.get(i)) {
                sum -= left;
            }
            sum
        })
        .collect()
}

/// Adds arrivals up into 100 ms slots over `from_ms <= t < to_ms`.
#[must_use]
pub fn slots(arrivals: &[Arrival], from_ms: u64, to_ms: u64) -> Vec<u64> {
    let n = to_ms.saturating_sub(from_ms).div_ceil(SLOT_MS);
    let mut slots = vec![0; usize::try_from(n).unwrap_or(0)];
    for arrival in arrivals.iter().filter(|a| a.at_ms < to_ms) {
        let slot = arrival.at_ms.checked_sub(from_ms).map(|d| d / SLOT_MS);
        let slot = slot.and_then(|s| usize::try_from(s).ok());
        if let Some(slot) = slot.and_then(|s| slots.get_mut(s)) {
            *slot += arrival.tokens;
        }
    }
    slots
}

/// The longest time without an arrival in `from_ms..to_ms`, in milliseconds,
/// the edges included: no arrival at all gives the whole range.
#[must_use]
pub fn longest_gap(arrivals: &[Arrival], from_ms: u64, to_ms: u64) -> u64 {
    let mut times: Vec<u64> = arrivals.iter().map(|a| a.at_ms).filter(|t| (from_ms..to_ms).contains(t)).collect();
    times.sort_unstable();
    times.push(to_ms);
    let mut last = from_ms;
    let mut longest = 0;
    for time in times {
        longest = longest.max(time.saturating_sub(last));
        last = time;
    }
    longest
}

/// `tokens` as a share of `budget`, rounded UP to a tenth of a percent, so that
/// 100.01 % never prints as 100.0 %: `percent_up(60_001, 60_000)` is `100.1%`.
#[must_use]
pub fn percent_up(tokens: u64, budget: u64) -> String {
    if budget == 0 {
        return if tokens == 0 { "0.0%" } else { "inf%" }.to_owned();
    }
    let tenths = (u128::from(tokens) * 1000).div_ceil(u128::from(budget));
    format!("{}.{}%", tenths / 10, tenths % 10)
}

/// What was admitted at the provider as a share of what an ideal central bucket would have admitted, between two moments:
/// 1.0 is all of it. Nothing possible counts as all used.
///
/// It is the mean over all ends within the last window before `end_ms`. A demand of many times the budget is admitted in one
/// burst a minute: with a single end, a fleet that is some seconds late had all of the last burst or nothing of it, by chance.
#[must_use]
pub fn used(admitted: &[Arrival], ideal: &[Arrival], from_ms: u64, end_ms: u64) -> f64 {
    let counted = |list: &[Arrival]| -> f64 {
        let within = list.iter().filter(|a| (from_ms..end_ms).contains(&a.at_ms));
        within.map(|a| a.tokens as f64 * ((end_ms - a.at_ms) as f64 / WINDOW_MS as f64).min(1.0)).sum()
    };
    let possible = counted(ideal);
    if possible > 0.0 { counted(admitted) / possible } else { 1.0 }
}
