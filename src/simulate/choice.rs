//! Which of the live processes a request goes to: Zipf by place, or measured parts.

use super::demand::Offered;

/// Chooses among the live processes.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    upto: Vec<f64>,
}

impl Choice {
    /// Among `live` processes; the one at place `i` gets requests by `(i + 1)^-skew`, so 0 is even.
    #[must_use]
    pub fn zipf(skew: f64, live: usize) -> Self {
        let mut upto: Vec<f64> = (0..live).map(|i| ((i + 1) as f64).powf(-skew)).collect();
        let sum: f64 = upto.iter().sum();
        let mut total = 0.0;
        for weight in &mut upto {
            total += *weight / sum;
            *weight = total;
        }
        Self { upto }
    }

    /// The place for this throw (0 to 1); `turned`: the last is the most asked. `None` when nobody lives.
    #[must_use]
    pub fn place(&self, dice: f64, turned: bool) -> Option<usize> {
        let last = self.upto.len().checked_sub(1)?;
        let place = self.upto.partition_point(|upto| *upto <= dice).min(last);
        Some(if turned { last - place } else { place })
    }
}

/// Bends the throws of a trace so that an even choice ([`Choice::zipf`] with 0) follows these measured parts of the demand,
/// one for each member; with more or fewer members than parts the parts are stretched over them.
pub fn follow_parts(trace: &mut [Offered], parts: &[f64]) {
    let sum: f64 = parts.iter().sum();
    if sum <= 0.0 {
        return;
    }
    for offered in trace {
        let (mut left, mut place) = (offered.dice * sum, 0);
        while place + 1 < parts.len() && left >= parts[place] {
            left -= parts[place];
            place += 1;
        }
        let within = if parts[place] > 0.0 { (left / parts[place]).clamp(0.0, 1.0 - 1e-9) } else { 0.5 };
        offered.dice = (place as f64 + within) / parts.len() as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_by_hand() {
        // Weights 1 and 1/2: two thirds and one third.
        let choice = Choice::zipf(1.0, 2);
        assert_eq!(
            [0.0, 0.66, 0.67, 0.999].map(|dice| choice.place(dice, false)),
            [Some(0), Some(0), Some(1), Some(1)]
        );
        assert_eq!(choice.place(0.0, true), Some(1));
        assert_eq!(Choice::zipf(1.0, 0).place(0.5, false), None);
    }

    #[test]
    fn measured_parts_are_followed_and_stretched() {
        let at = |dice| Offered { at: 0.0, tokens: 1, reserve: 1, latency: 0.0, dice };
        let mut trace: Vec<Offered> = (0..100).map(|i| at((f64::from(i) + 0.5) / 100.0)).collect();
        follow_parts(&mut trace, &[70.0, 30.0]);
        let count = |members: usize, place: usize| {
            let choice = Choice::zipf(0.0, members);
            trace.iter().filter(|o| choice.place(o.dice, false) == Some(place)).count()
        };
        assert_eq!([count(2, 0), count(2, 1)], [70, 30]);
        assert_eq!([count(4, 0), count(4, 1), count(4, 2), count(4, 3)], [35, 35, 15, 15]);
    }
}
