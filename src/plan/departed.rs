//! Processes that ended while the ledger had no record of them: cut off since a loss of its data, or since their start. What
//! they admitted without the ledger counts for a window after their end, as the record of an ended member does.

use std::collections::BTreeMap;

/// How long a gone or silent member's record is kept, and what it may have spent counts: the provider's minute, and some.
pub const HOLD_MS: u64 = 65_000;

/// What a pass remembers of the pass before it. Keys are whatever tells the processes apart: pod UIDs, member ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Departed {
    /// How many processes without a record were there.
    there: BTreeMap<String, u32>,
    /// Those that are there no more.
    gone: BTreeMap<String, Gone>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gone {
    processes: u32,
    /// They count until then, unix ms.
    until_ms: u64,
}

impl Departed {
    /// The next pass, which could read the ledger: `there` are the processes without a record that live, `stays` whether
    /// one that is not among them lives on with a record.
    #[must_use]
    pub fn pass(&self, there: BTreeMap<String, u32>, stays: impl Fn(&str) -> bool, now_ms: u64) -> Self {
        let left = self.there.iter().filter(|(key, _)| !there.contains_key(*key) && !stays(key));
        let left = left.map(|(key, &processes)| (key.clone(), Gone { processes, until_ms: now_ms + HOLD_MS }));
        let mut gone = self.gone.clone();
        gone.extend(left);
        gone.retain(|_, gone| now_ms < gone.until_ms);
        Self { there, gone }
    }

    /// How many count, in processes.
    #[must_use]
    pub fn processes(&self) -> u32 {
        self.gone.values().map(|gone| gone.processes).fold(0, u32::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_ends_without_a_record_counts_for_a_window() {
        let there = |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), 2)).collect();
        let recorded = |key: &str| key == "recorded";
        let before = Departed::default().pass(there(&["recorded", "ended", "lives"]), recorded, 1_000);
        assert_eq!(before.processes(), 0, "all of them live");
        let mut after = before.pass(there(&["lives"]), recorded, 2_000);
        assert_eq!(after.processes(), 2, "only one has ended");
        after = after.pass(there(&["lives"]), recorded, 2_000 + HOLD_MS - 1);
        assert_eq!(after.processes(), 2);
        after = after.pass(there(&[]), recorded, 2_000 + HOLD_MS);
        assert_eq!(after.processes(), 2, "the last one instead of the first");
        assert_eq!(after.pass(there(&[]), recorded, 2_000 + 2 * HOLD_MS), Departed::default());
    }
}
