//! By which safe share a process without a record goes: by that of its policy file, which may be of before a change.

/// How long a safe share that is in force no more may still be found in a file, in ms: the kubelet writes a ConfigMap anew
/// within its sync period and the age of its cache (1 to 2 minutes by default), and a process is counted 30 s after its start.
const KEEP_MS: u64 = 180_000;

/// The safe shares of one book that processes may go by, in tokens or requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Booted {
    /// The one that is in force last, before it the larger ones, each with the time until which it counts, unix ms.
    shares: Vec<(u64, u64)>,
}

impl Booted {
    /// One that was in force when the operator began.
    #[must_use]
    pub fn said_before(safe: u64) -> Self {
        Self { shares: vec![(safe, 0)] }
    }

    /// The next pass: from now on `safe` is in force. `held`: there are processes that may go by an older one.
    #[must_use]
    pub fn pass(&self, safe: u64, held: bool, now_ms: u64) -> Self {
        let last = self.shares.len().saturating_sub(1);
        let mut shares = self.shares.clone();
        for (place, (_, until)) in shares.iter_mut().enumerate() {
            // The last one was in force until now, however long ago the pass before was.
            if held || place == last {
                *until = now_ms + KEEP_MS;
            }
        }
        shares.retain(|&(share, until)| share > safe && now_ms < until);
        shares.push((safe, now_ms + KEEP_MS));
        Self { shares }
    }

    /// The largest.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.shares.first().map_or(0, |(share, _)| *share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safe_share_counts_until_no_file_has_it_any_more() {
        let before = Booted::said_before(15_000);
        assert_eq!(before.largest(), 15_000);
        // Of passes that were long ago, the last was in force until now.
        let cut = before.pass(2_500, false, 1_000_000);
        assert_eq!(cut.largest(), 15_000);
        assert_eq!(cut.pass(2_500, false, 1_000_000 + KEEP_MS - 1).largest(), 15_000);
        assert_eq!(cut.pass(2_500, false, 1_000_000 + KEEP_MS).largest(), 2_500);
    }

    #[test]
    fn while_a_process_goes_by_none_of_the_ledgers_the_largest_stays() {
        let cut = Booted::said_before(15_000).pass(2_500, true, 0);
        let later = (1..10).fold(cut, |booted, minute| booted.pass(2_500, true, minute * 60_000));
        assert_eq!(later.largest(), 15_000);
        // It counts for as long as one that was just in force: its successor may have booted with it.
        let gone = later.pass(2_500, false, 600_000);
        assert_eq!(gone.largest(), 15_000);
        assert_eq!(gone.pass(2_500, false, 540_000 + KEEP_MS).largest(), 2_500);
    }

    #[test]
    fn only_larger_ones_are_remembered() {
        let up = Booted::said_before(100).pass(200, true, 0).pass(300, true, 1);
        assert_eq!(up, Booted::default().pass(300, true, 1));
        let down = up.pass(250, true, 2).pass(100, true, 3);
        assert_eq!((down.largest(), down.shares.len()), (300, 3));
        assert_eq!(down.pass(260, true, 4).shares.len(), 2);
    }
}
