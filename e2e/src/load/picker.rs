//! Which target the next request goes to.

use std::sync::Arc;

use crate::size::SplitMix64;

use super::spec::Skew;
use super::targets::Target;

/// Picks targets by the skew, and keeps ranks steady while pods come and go.
#[derive(Debug)]
pub struct Picker {
    skew: Skew,
    rng: SplitMix64,
    /// Ready targets, those known longest first.
    ranked: Vec<Target>,
    hot: Option<Arc<str>>,
    picks: usize,
}

impl Picker {
    /// A picker that knows no target yet.
    #[must_use]
    pub const fn new(skew: Skew, seed: u64) -> Self {
        Self { skew, rng: SplitMix64::new(seed), ranked: Vec::new(), hot: None, picks: 0 }
    }

    /// Picks among the ready targets (sorted by name).
    pub fn pick(&mut self, ready: &[Target]) -> Option<Target> {
        self.ranked.retain(|known| ready.contains(known));
        for target in ready {
            if !self.ranked.contains(target) {
                self.ranked.push(target.clone());
            }
        }
        let index = match self.skew {
            Skew::Even => self.rng.below(self.ranked.len()),
            Skew::Zipf(s) => self.zipf(s),
            Skew::Hot => return self.hot(ready),
            Skew::Hopping(requests) => {
                self.picks += 1;
                (self.picks - 1) / requests.max(1) % self.ranked.len().max(1)
            }
        };
        self.ranked.get(index).cloned()
    }

    fn zipf(&mut self, s: f64) -> usize {
        let weight = |index: usize| ((index + 1) as f64).powf(-s);
        let total: f64 = (0..self.ranked.len()).map(weight).sum();
        let mut left = self.rng.unit() * total;
        for index in 0..self.ranked.len() {
            left -= weight(index);
            if left < 0.0 {
                return index;
            }
        }
        self.ranked.len().saturating_sub(1)
    }

    fn hot(&mut self, ready: &[Target]) -> Option<Target> {
        let same = ready.iter().find(|t| Some(&t.name) == self.hot.as_ref());
        let chosen = same.or_else(|| ready.iter().min_by(|a, b| a.name.cmp(&b.name)))?;
        self.hot = Some(chosen.name.clone());
        Some(chosen.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn targets(names: &[&str]) -> Vec<Target> {
        names.iter().map(|n| Target::new(n, n)).collect()
    }

    fn counts(skew: Skew, ready: &[Target]) -> BTreeMap<String, u32> {
        let mut picker = Picker::new(skew, 5);
        let mut counts = BTreeMap::new();
        for _ in 0..10_000 {
            let name = picker.pick(ready).unwrap().name.to_string();
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    #[test]
    fn even_and_zipf_spread_as_they_say() {
        let ready = targets(&["a", "b", "c", "d"]);
        for count in counts(Skew::Even, &ready).values() {
            assert!((2_300..2_700).contains(count), "{count}");
        }
        let zipf = counts(Skew::Zipf(1.0), &ready);
        assert!((4_600..5_000).contains(&zipf["a"]), "{zipf:?}");
        assert!((1_050..1_350).contains(&zipf["d"]), "{zipf:?}");
    }

    #[test]
    fn hopping_takes_the_next_after_so_many() {
        let ready = targets(&["a", "b"]);
        let mut picker = Picker::new(Skew::Hopping(2), 5);
        let names: String = (0..6).map(|_| picker.pick(&ready).unwrap().name.to_string()).collect();
        assert_eq!(names, "aabbaa");
        assert!(picker.pick(&[]).is_none());
    }

    #[test]
    fn hot_stays_while_ready() {
        let mut picker = Picker::new(Skew::Hot, 1);
        let mut pick = |names: &[&str]| picker.pick(&targets(names)).map(|t| t.name.to_string());
        assert_eq!(pick(&["b", "c"]).unwrap(), "b");
        assert_eq!(pick(&["a", "b"]).unwrap(), "b");
        assert_eq!(pick(&["a", "c"]).unwrap(), "a");
        assert_eq!(pick(&[]), None);
    }
}
