//! By which safe share a process without a record goes: by that of its policy file, which may be of before a change.

/// How long a safe share that is in force no more may still be found in a file, in ms: the kubelet writes a ConfigMap anew
/// within its sync period and the age of its cache (1 to 2 minutes by default), and a process is counted 30 s after its start.
const KEEP_MS: u64 = 180_000;

/// The safe shares of one book that processes may go by, in tokens or requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Booted {
    /// The one that is in force last, before it the larger ones, each with the time until which a process may start with it, unix ms.
    shares: Vec<(u64, u64)>,
}

impl Booted {
    /// One that was in force when the operator began.
    #[must_use]
    pub fn said_before(safe: u64) -> Self {
        Self { shares: vec![(safe, 0)] }
    }

    /// The next pass: from now on `safe` is in force. `since_ms`: when the first of the processes started that have no record;
    /// `None`: there are none. `old_files`: a file could not be written, and may have any of those before.
    #[must_use]
    pub fn pass(&self, safe: u64, since_ms: Option<u64>, old_files: bool, now_ms: u64) -> Self {
        let mut shares = self.shares.clone();
        // The last one was in force until now, however long ago the pass before was.
        let current = if old_files { 0 } else { shares.len().saturating_sub(1) };
        shares[current..].iter_mut().for_each(|(_, until)| *until = now_ms + KEEP_MS);
        let first = since_ms.map_or(now_ms, |since| since.min(now_ms));
        shares.retain(|&(share, until)| share > safe && first < until);
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

    const CUT: u64 = 1_000_000;

    #[test]
    fn a_safe_share_counts_until_no_file_has_it_any_more() {
        let before = Booted::said_before(15_000);
        assert_eq!(before.largest(), 15_000);
        // Of passes that were long ago, the last was in force until now.
        let cut = before.pass(2_500, None, false, CUT);
        assert_eq!(cut.largest(), 15_000);
        assert_eq!(cut.pass(2_500, None, false, CUT + KEEP_MS - 1).largest(), 15_000);
        assert_eq!(cut.pass(2_500, None, false, CUT + KEEP_MS).largest(), 2_500);
    }

    #[test]
    fn it_counts_for_as_long_as_there_is_a_process_that_may_have_started_with_it() {
        let cut = Booted::said_before(15_000).pass(2_500, Some(CUT - 1), false, CUT);
        let later = |since_ms| {
            cut.pass(2_500, Some(since_ms), false, 9 * CUT).pass(2_500, Some(since_ms), false, 9 * CUT + 1).largest()
        };
        assert_eq!(later(0), 15_000);
        assert_eq!(later(CUT + KEEP_MS - 1), 15_000, "files come late");
        assert_eq!(later(CUT + KEEP_MS), 2_500);
        assert_eq!(later(99 * CUT), 2_500, "a node's clock may be ahead");
    }

    #[test]
    fn as_long_as_a_file_cannot_be_written_it_is_in_force() {
        let cut = Booted::said_before(15_000).pass(2_500, None, true, CUT);
        let written = cut.pass(2_500, None, true, 9 * CUT).pass(2_500, None, false, 9 * CUT + 1);
        assert_eq!(written.largest(), 15_000);
        assert_eq!(written.pass(2_500, None, false, 9 * CUT + KEEP_MS).largest(), 2_500);
    }

    #[test]
    fn only_larger_ones_are_remembered() {
        let up = Booted::said_before(100).pass(200, Some(0), false, 0).pass(300, Some(0), false, 1);
        assert_eq!(up, Booted::default().pass(300, Some(0), false, 1));
        let down = up.pass(250, Some(0), false, 2).pass(100, Some(0), false, 3);
        assert_eq!((down.largest(), down.shares.len()), (300, 3));
        assert_eq!(down.pass(260, Some(0), false, 4).shares.len(), 2);
    }
}
