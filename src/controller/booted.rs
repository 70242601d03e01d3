//! By which safe shares the processes of a fleet may go that the ledger has no record of. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::fleet::{Fleet, Unrecorded};
use super::limits::EffectiveLimit;
use super::observe::Observed;
use crate::ledger::{BookId, Unit};
use crate::plan::Booted;

/// Those of each book, from pass to pass.
pub(super) struct BootedBooks<'a> {
    before: &'a BTreeMap<BookId, Booted>,
    old_files: bool,
    now_ms: u64,
    /// Of books that are no more.
    gone: BTreeMap<BookId, Booted>,
    next: BTreeMap<BookId, Booted>,
}

impl<'a> BootedBooks<'a> {
    /// Begins with the books that are no more: a process may still go by their policy.
    pub(super) fn of(
        before: &'a BTreeMap<BookId, Booted>,
        limits: &[EffectiveLimit],
        fleet: &Fleet<'_>,
        observed: &Observed,
    ) -> Self {
        let now_ms = u64::try_from(observed.now.as_millisecond()).unwrap_or(0);
        let stay: BTreeSet<(&str, Unit)> =
            limits.iter().flat_map(|l| l.books().map(|(unit, _)| (l.name.as_str(), unit))).collect();
        let since_ms = fleet.unrecorded(None).since_ms;
        let gone = before.iter().filter(|(book, _)| !stay.contains(&(book.limit.as_str(), book.unit)));
        let gone = gone.map(|(book, booted)| (book.clone(), booted.pass(0, since_ms, observed.old_files, now_ms)));
        let gone = gone.filter(|(_, booted)| booted.largest() > 0).collect();
        Self { before, old_files: observed.old_files, now_ms, gone, next: BTreeMap::new() }
    }

    /// The largest safe share by which one of the processes without a record may go. Those of a limit that is new may go by
    /// that of one that is gone and was about the same deployments; of derived limits each is about its own.
    pub(super) fn largest(&mut self, limit: &EffectiveLimit, book: &BookId, safe: u64, unrecorded: Unrecorded) -> u64 {
        let of_gone = || {
            let same_unit = self.gone.iter().filter(|(gone, _)| gone.unit == book.unit && limit.derived.is_none());
            Booted::said_before(same_unit.map(|(_, booted)| booted.largest()).max().unwrap_or(0))
        };
        let before = self.before.get(book).cloned().unwrap_or_else(of_gone);
        let next = before.pass(safe, unrecorded.since_ms, self.old_files, self.now_ms);
        let largest = next.largest();
        self.next.insert(book.clone(), next);
        largest
    }

    /// What the next pass has to know.
    pub(super) fn next(self) -> BTreeMap<BookId, Booted> {
        self.gone.into_iter().chain(self.next).collect()
    }
}
