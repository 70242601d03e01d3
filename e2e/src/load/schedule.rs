//! When requests are offered: a steady part and bursts, merged by time.

use std::time::Duration;

use crate::size::SplitMix64;

use super::spec::{Burst, LoadSpec, Pacing};

/// The moments of a load, from its start, in order; ends at its duration.
#[derive(Clone, Debug)]
pub struct Schedule {
    rng: SplitMix64,
    rate: f64,
    pacing: Pacing,
    burst: Option<Burst>,
    end: Duration,
    steady: Option<Duration>,
    next_burst: Option<Duration>,
    left_in_burst: usize,
}

impl Schedule {
    /// The schedule of a load.
    #[must_use]
    pub fn new(spec: &LoadSpec) -> Self {
        let mut schedule = Self {
            // Not the stream the prompts are drawn from.
            rng: SplitMix64::new(spec.seed ^ 0x5c4e_d01e),
            rate: spec.rate,
            pacing: spec.pacing,
            burst: spec.burst,
            end: spec.duration,
            steady: None,
            next_burst: spec.burst.map(|b| b.every),
            left_in_burst: spec.burst.map_or(0, |b| b.requests),
        };
        schedule.steady = schedule.step(Duration::ZERO);
        schedule
    }

    /// The moment of the steady part after `from`.
    fn step(&mut self, from: Duration) -> Option<Duration> {
        if self.rate <= 0.0 {
            return None;
        }
        let gap = match self.pacing {
            Pacing::Poisson => self.rng.exponential(),
            Pacing::Even => 1.0,
        };
        Some(from + Duration::try_from_secs_f64(gap / self.rate).ok()?)
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let burst = self.next_burst.filter(|_| self.left_in_burst > 0);
        let at = match (self.steady, burst) {
            (Some(steady), Some(burst)) => steady.min(burst),
            (steady, burst) => steady.or(burst)?,
        };
        if at >= self.end {
            return None;
        }
        if burst == Some(at) {
            self.left_in_burst -= 1;
            if let Some(every) = self.burst.filter(|_| self.left_in_burst == 0) {
                self.next_burst = Some(at + every.every);
                self.left_in_burst = every.requests;
            }
        } else {
            self.steady = self.step(at);
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rate: f64, pacing: Pacing, burst: Option<&str>) -> LoadSpec {
        LoadSpec {
            rate,
            pacing,
            burst: burst.map(|b| b.parse().unwrap()),
            duration: Duration::from_secs(100),
            ..LoadSpec::default()
        }
    }

    #[test]
    fn poisson_has_the_rate_and_is_in_order() {
        let times: Vec<_> = Schedule::new(&spec(50.0, Pacing::Poisson, None)).collect();
        assert!((4_700..5_300).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted());
        assert!(times.last().unwrap() < &Duration::from_secs(100));
    }

    #[test]
    fn even_has_equal_gaps() {
        let times: Vec<_> = Schedule::new(&spec(4.0, Pacing::Even, None)).collect();
        assert_eq!(times.len(), 399);
        assert_eq!(times[3], Duration::from_secs(1));
    }

    #[test]
    fn bursts_come_on_top_or_alone() {
        let alone: Vec<_> = Schedule::new(&spec(0.0, Pacing::Even, Some("5@40s"))).collect();
        assert_eq!(alone.len(), 10);
        assert_eq!(alone[4], Duration::from_secs(40));
        let mixed: Vec<_> = Schedule::new(&spec(4.0, Pacing::Even, Some("5@40s"))).collect();
        assert_eq!(mixed.len(), 399 + 10);
        assert!(mixed.is_sorted());
    }
}
