//! By which safe share a process goes that does not hear the ledger: by that of its policy file, or of its last answer, which may
//! be of before a change.

/// How long a safe share is remembered that is in force no more, in ms: a process is counted 30 s after its start.
const KEEP_MS: u64 = 60_000;

/// The safe shares of one book that processes may go by, in tokens or requests. A process goes by one that was in force after it
/// had started. The kubelet writes a new file within 60 to 90 s (its sync period), and a process without the ledger admits
/// nothing for 95 s: it has read its file again by then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Booted {
    /// The one that is in force last, before it the larger ones, each with the time until which it was, unix ms.
    shares: Vec<(u64, u64)>,
}

impl Booted {
    /// One that was in force when the operator began.
    #[must_use]
    pub fn said_before(safe: u64) -> Self {
        Self { shares: vec![(safe, 0)] }
    }

    /// That of a book in whose place of several others: a process may go by all of them.
    #[must_use]
    pub fn succeeding<'a>(gone: impl Iterator<Item = &'a Self>) -> Self {
        // What is no more was in force until it was 0.
        let end = |booted: &Self| booted.shares.iter().rev().find(|(share, _)| *share > 0).map(|(_, until)| *until);
        let each = gone.filter_map(|booted| Some((booted.largest(), end(booted)?)));
        let sum = each.reduce(|(share, until), (other, later)| (share.saturating_add(other), until.max(later)));
        // Nothing of its own was in force yet.
        Self { shares: sum.into_iter().chain([(0, 0)]).collect() }
    }

    /// The next pass: from now on `safe` is in force. `since_ms`: when the first of the processes started that do not hear the
    /// ledger; `None`: all do. `old_files`: a file could not be written, and may have any of those before.
    #[must_use]
    pub fn pass(&self, safe: u64, since_ms: Option<u64>, old_files: bool, now_ms: u64) -> Self {
        let mut shares = self.shares.clone();
        // The last one was in force until now, however long ago the pass before was.
        let current = if old_files { 0 } else { shares.len().saturating_sub(1) };
        shares[current..].iter_mut().for_each(|(_, until)| *until = now_ms);
        let is_young = |until: u64| now_ms < until.saturating_add(KEEP_MS);
        shares
            .retain(|&(share, until)| share > safe && (is_young(until) || since_ms.is_some_and(|since| since < until)));
        shares.push((safe, now_ms));
        Self { shares }
    }

    /// The largest by which a process may go that started then, unix ms.
    #[must_use]
    pub fn of(&self, since_ms: u64) -> u64 {
        let may = self.shares.iter().find(|(_, until)| since_ms < *until);
        may.or(self.shares.last()).map_or(0, |(share, _)| *share)
    }

    /// The largest.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.of(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: u64 = 1_000_000;

    fn cut(since_ms: Option<u64>) -> Booted {
        Booted::said_before(15_000).pass(2_500, since_ms, false, CUT)
    }

    #[test]
    fn a_process_goes_by_what_was_in_force_after_its_start() {
        let cut = cut(None).pass(2_500, None, false, CUT + 1_000);
        assert_eq!([0, CUT - 1, CUT, 9 * CUT].map(|since| cut.of(since)), [15_000, 15_000, 2_500, 2_500]);
        assert_eq!(Booted::said_before(7).of(0), 7);
        assert_eq!(Booted::default().of(0), 0);
    }

    #[test]
    fn it_is_remembered_until_all_are_counted_that_may_have_started_with_it() {
        assert_eq!(cut(None).pass(2_500, None, false, CUT + KEEP_MS - 1).largest(), 15_000);
        assert_eq!(cut(None).pass(2_500, None, false, CUT + KEEP_MS).largest(), 2_500);
        let later = |since| {
            cut(Some(since)).pass(2_500, Some(since), false, 9 * CUT).pass(2_500, Some(since), false, 9 * CUT + 1)
        };
        assert_eq!(later(CUT - 1).largest(), 15_000, "as long as there is one");
        assert_eq!(later(CUT).largest(), 2_500, "which started before");
    }

    #[test]
    fn as_long_as_a_file_cannot_be_written_it_is_in_force() {
        let cut = Booted::said_before(15_000).pass(2_500, None, true, CUT);
        let still = cut.pass(2_500, None, true, 9 * CUT);
        assert_eq!(still.of(9 * CUT - 1), 15_000);
        let written = still.pass(2_500, None, false, 9 * CUT + 1);
        assert_eq!(written.largest(), 15_000);
        assert_eq!(written.pass(2_500, None, false, 9 * CUT + KEEP_MS).largest(), 2_500);
    }

    #[test]
    fn only_larger_ones_are_remembered() {
        let up = Booted::said_before(100).pass(200, Some(0), false, 1).pass(300, Some(0), false, 2);
        assert_eq!(up, Booted::default().pass(300, Some(0), false, 2));
        let down = up.pass(250, Some(0), false, 3).pass(100, Some(0), false, 4);
        assert_eq!((down.largest(), down.shares.len()), (300, 3));
        assert_eq!(down.pass(260, Some(0), false, 5).shares.len(), 2);
    }

    #[test]
    fn who_went_by_several_may_go_by_all_of_them_in_the_place_of_one() {
        let gone = [cut(None), Booted::said_before(1_000).pass(1_000, None, false, CUT - 9)];
        let next = Booted::succeeding(gone.iter()).pass(5_000, Some(0), false, 2 * CUT);
        assert_eq!([0, CUT - 1, CUT].map(|since| next.of(since)), [16_000, 16_000, 5_000]);
        assert_eq!(Booted::succeeding([].iter()).pass(5_000, None, false, CUT).largest(), 5_000);
    }

    #[test]
    fn what_is_no_more_counts_for_who_started_before_it_ended() {
        let gone = cut(None).pass(0, Some(0), false, CUT + 1).pass(0, Some(0), false, CUT + 5_000);
        let next = Booted::succeeding([gone].iter()).pass(100, Some(0), false, CUT + 5_000);
        assert_eq!([CUT, CUT + 1, CUT + 4_999].map(|since| next.of(since)), [15_000, 100, 100]);
    }
}
