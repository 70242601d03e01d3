//! Scales, ticks and numbers for people.

/// Maps a range of values onto a range of pixels.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    domain: (f64, f64),
    range: (f64, f64),
}

impl Scale {
    /// Maps `domain` onto `range`.
    pub const fn new(domain: (f64, f64), range: (f64, f64)) -> Self {
        Self { domain, range }
    }

    /// Where a value stands.
    pub fn at(&self, value: f64) -> f64 {
        let share = (value - self.domain.0) / (self.domain.1 - self.domain.0);
        share.mul_add(self.range.1 - self.range.0, self.range.0)
    }

    /// The values.
    pub const fn domain(&self) -> (f64, f64) {
        self.domain
    }
}

/// Ticks from 0 to at most `top`, at most about `most` of them, 1, 2 or 5 times
/// a power of ten apart, and at least 1 apart.
pub fn nice_ticks(top: f64, most: u32) -> Vec<f64> {
    let rough = (top / f64::from(most.max(1))).max(1.0);
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    every(step, top)
}

/// Multiples of `step` from 0 to `top`.
fn every(step: f64, top: f64) -> Vec<f64> {
    (0..1000_u32).map(|n| f64::from(n) * step).take_while(|tick| *tick <= top * 1.000_001).collect()
}

/// Ticks of a time axis of `span` seconds: at most 13, on round times.
pub fn time_ticks(span: f64) -> Vec<f64> {
    let steps = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
    let step = steps.into_iter().find(|step| span / step <= 12.0);
    every(step.unwrap_or(span / 12.0), span)
}

/// A time of an axis of `span` seconds: `m:ss`, or `h:mm` from two hours on.
pub fn clock(seconds: f64, span: f64) -> String {
    // Whole and not negative.
    let mut small = seconds.round() as u64;
    if span >= 7200.0 {
        small /= 60;
    }
    format!("{}:{:02}", small / 60, small % 60)
}

/// The unit of [`clock`].
pub const fn clock_unit(span: f64) -> &'static str {
    if span >= 7200.0 { "h:min" } else { "min:s" }
}

/// A number with thousands separators: `60,000`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separates_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(nice_ticks(73_200.0, 7), [0.0, 20_000.0, 40_000.0, 60_000.0]);
        assert_eq!(nice_ticks(2.0, 4), [0.0, 1.0, 2.0]);
        assert_eq!(time_ticks(300.0).len(), 11);
        assert!(time_ticks(100_000.0).len() <= 14);
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(75.0, 100.0), "1:15");
        assert_eq!(clock(7_260.0, 9_000.0), "2:01");
    }
}
