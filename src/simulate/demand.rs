//! What clients ask for: a trace, drawn from a seed or read from a file.

use super::judge::Arrival;
use super::size::{Size, SplitMix64};

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offered {
    /// When, in seconds from the start.
    pub at: f64,
    /// What it costs, in tokens.
    pub tokens: u64,
    /// What it is charged when it is admitted, in tokens: at least `tokens`, unless estimates may be too low.
    pub reserve: u64,
    /// Until the end of its answer, in seconds.
    pub latency: f64,
    /// Chooses the process, 0 to 1.
    pub dice: f64,
}

impl Offered {
    /// For the judge.
    #[must_use]
    pub fn arrival(&self) -> Arrival {
        Arrival { at_ms: (self.at * 1000.0) as u64, tokens: self.tokens }
    }
}

/// Synthetic demand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Tokens a minute, as a multiple of the budget.
    pub load: f64,
    /// The budget, in tokens per minute.
    pub budget: u64,
    /// Sizes of requests, in tokens.
    pub size: Size,
    /// What is reserved, as a multiple of what it costs.
    pub over: f64,
    /// Latency of the provider, in seconds.
    pub latency: Size,
    /// Requests that come at once.
    pub burst: u32,
}

impl Demand {
    /// The trace of so many seconds.
    #[must_use]
    pub fn trace(&self, seconds: f64, seed: u64) -> Vec<Offered> {
        let mut rng = SplitMix64::new(seed);
        // A request of more than a twentieth of the budget is a matter of its own.
        let most = (self.budget / 20).max(1);
        let rate = self.load * self.budget as f64 / 60.0 / self.size.mean / f64::from(self.burst.max(1));
        let mut trace = Vec::new();
        let mut at = 0.0;
        loop {
            at += rng.exponential() / rate;
            if at >= seconds {
                return trace;
            }
            for _ in 0..self.burst.max(1) {
                let tokens = self.size.draw_whole(&mut rng).clamp(1, most);
                let reserve = ((tokens as f64 * self.over).ceil() as u64).max(1);
                let latency = self.latency.draw(&mut rng);
                trace.push(Offered { at, tokens, reserve, latency, dice: rng.unit() });
            }
        }
    }
}

/// Why a recorded trace cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the trace: {problem}; a line is seconds,tokens[,reserve[,latency]]")]
pub struct BadTrace {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// Reads a recorded trace: CSV of `seconds,tokens[,reserve[,latency]]`, in the order of time; a heading is passed over.
///
/// # Errors
/// [`BadTrace`] names the first line that cannot be read.
pub fn read_trace(text: &str, seed: u64) -> Result<Vec<Offered>, BadTrace> {
    let mut rng = SplitMix64::new(seed);
    let mut trace: Vec<Offered> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let bad = |problem: &str| BadTrace { line: number + 1, problem: problem.to_owned() };
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        if line.trim().is_empty() || (number == 0 && fields[0].parse::<f64>().is_err()) {
            continue;
        }
        let number_at = |place: usize, name: &str| match fields.get(place).map(|text| text.parse::<f64>()) {
            None => Ok(None),
            Some(Ok(value)) if value.is_finite() && value >= 0.0 => Ok(Some(value)),
            Some(_) => Err(bad(&format!("{name} is not a number of at least 0"))),
        };
        let at = number_at(0, "seconds")?.unwrap_or(0.0);
        let Some(tokens) = number_at(1, "tokens")? else { return Err(bad("tokens is missing")) };
        let reserve = number_at(2, "reserve")?.unwrap_or(tokens);
        let latency = number_at(3, "latency")?.unwrap_or(0.0);
        if trace.last().is_some_and(|last| last.at > at) {
            return Err(bad("it is earlier than the line before"));
        }
        trace.push(Offered { at, tokens: tokens as u64, reserve: reserve as u64, latency, dice: rng.unit() });
    }
    Ok(trace)
}
