//! A size that is fixed or lognormal, and the small seeded generator behind it.
//!
//! Written as text it is `300` (always 300) or `300~1.5` (lognormal with mean
//! 300 and coefficient of variation 1.5). The generator is SplitMix64, so the
//! same seed gives the same sizes everywhere and for ever.

use std::f64::consts::TAU;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A distribution of sizes: tokens, or milliseconds, as the user of it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// The mean.
    pub mean: f64,
    /// Coefficient of variation (standard deviation / mean); 0 means fixed.
    pub cv: f64,
}

impl Size {
    /// Always `mean`.
    #[must_use]
    pub const fn fixed(mean: f64) -> Self {
        Self { mean, cv: 0.0 }
    }

    /// Lognormal with this mean and coefficient of variation.
    #[must_use]
    pub const fn lognormal(mean: f64, cv: f64) -> Self {
        Self { mean, cv }
    }

    /// One draw.
    #[must_use]
    pub fn draw(&self, rng: &mut SplitMix64) -> f64 {
        if self.cv <= 0.0 || self.mean <= 0.0 {
            return self.mean;
        }
        let sigma2 = self.cv.mul_add(self.cv, 1.0).ln();
        let mu = self.mean.ln() - sigma2 / 2.0;
        sigma2.sqrt().mul_add(rng.normal(), mu).exp()
    }

    /// One draw, rounded to a whole number.
    #[must_use]
    pub fn draw_whole(&self, rng: &mut SplitMix64) -> u64 {
        whole(self.draw(rng))
    }
}

/// Rounds a non-negative float to a whole number; anything odd becomes 0.
fn whole(value: f64) -> u64 {
    if value.is_finite() && value > 0.0 {
        // A float-to-int `as` saturates, so no value can wrap.
        value.round() as u64
    } else {
        0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cv > 0.0 { write!(f, "{}~{}", self.mean, self.cv) } else { write!(f, "{}", self.mean) }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mean, cv) = text.split_once('~').unwrap_or((text, "0"));
        let number = |what: &str, s: &str| match s.trim().parse::<f64>() {
            Ok(v) if v.is_finite() && v >= 0.0 => Ok(v),
            _ => Err(format!(
                "{what} in {text:?} must be a number of at least 0; write 300, or 300~1.5 for lognormal with mean 300 and coefficient of variation 1.5"
            )),
        };
        Ok(Self { mean: number("the mean", mean)?, cv: number("the coefficient of variation", cv)? })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(f64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(n) => n.to_string(),
            Form::Text(t) => t,
        }
        .parse()
        .map_err(de::Error::custom)
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): tiny, seeded, good enough for load.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator that starts at `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; 0 where `n` is 0.
    pub const fn below(&mut self, n: usize) -> usize {
        // The high half of a 128-bit product: unbiased enough for load.
        ((self.next_u64() as u128 * n as u128) >> 64) as usize
    }

    /// Exponential with mean 1, for Poisson arrivals.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Standard normal (Box-Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}

/// FNV-1a of `bytes`, continued from `hash` (start with [`FNV_START`]).
#[must_use]
pub fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The offset basis of FNV-1a.
pub const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["300", "300~1.5", "0"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for wrong in ["", "x", "1~", "-1", "1~-2", "inf"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
        let size: Size = serde_json::from_str("12").unwrap();
        assert_eq!(size, Size::fixed(12.0));
        let size: Size = serde_json::from_str("\"12~0.5\"").unwrap();
        assert_eq!(size, Size::lognormal(12.0, 0.5));
    }

    #[test]
    fn lognormal_has_the_mean_and_cv_it_is_named_for() {
        let size = Size::lognormal(300.0, 0.8);
        let mut rng = SplitMix64::new(1);
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|_| size.draw(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let var = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!((mean / 300.0 - 1.0).abs() < 0.02, "mean {mean}");
        assert!((var.sqrt() / mean / 0.8 - 1.0).abs() < 0.05);
    }

    #[test]
    fn fnv_and_splitmix_are_the_published_ones() {
        assert_eq!(fnv1a(FNV_START, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(SplitMix64::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn below_stays_below() {
        let mut rng = SplitMix64::new(7);
        assert!((0..1000).all(|_| rng.below(3) < 3));
        assert_eq!(rng.below(0), 0);
    }
}
