//! By which safe shares the processes of a fleet may go that do not hear the ledger. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::fleet::{Fleet, Unrecorded};
use super::limits::EffectiveLimit;
use super::observe::Observed;
use crate::ledger::{BookId, Unit};
use crate::plan::Booted;

/// What is remembered of one book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookBooted {
    /// Its limit was derived.
    pub derived: bool,
    /// The safe shares.
    pub booted: Booted,
}

/// Those of each book, from pass to pass.
pub(super) struct BootedBooks<'a> {
    before: &'a BTreeMap<BookId, BookBooted>,
    /// When the first of the processes started that do not hear the ledger.
    since_ms: Option<u64>,
    old_files: bool,
    now_ms: u64,
    /// Of books that are no more.
    gone: BTreeMap<BookId, BookBooted>,
    next: BTreeMap<BookId, BookBooted>,
}

impl<'a> BootedBooks<'a> {
    /// Begins with the books that are no more: a process may still go by their policy.
    pub(super) fn of(
        before: &'a BTreeMap<BookId, BookBooted>,
        limits: &[EffectiveLimit],
        fleet: &Fleet<'_>,
        observed: &Observed,
    ) -> Self {
        let now_ms = u64::try_from(observed.now.as_millisecond()).unwrap_or(0);
        let (since_ms, old_files) = (fleet.unheard_since(), observed.old_files);
        let stay: BTreeSet<(&str, Unit)> =
            limits.iter().flat_map(|l| l.books().map(|(unit, _)| (l.name.as_str(), unit))).collect();
        let gone = before.iter().filter(|(book, _)| !stay.contains(&(book.limit.as_str(), book.unit)));
        let gone = gone.map(|(book, known)| {
            let booted = known.booted.pass(0, since_ms, old_files, now_ms);
            (book.clone(), BookBooted { booted, ..*known })
        });
        let gone = gone.filter(|(_, known)| known.booted.largest() > 0).collect();
        Self { before, since_ms, old_files, now_ms, gone, next: BTreeMap::new() }
    }

    /// What the processes without a record may come to in a book whose safe share is `safe` now. Those of a limit that is new may
    /// go by those that are gone and were about the same deployments; of derived limits each is about its own.
    pub(super) fn owed(&mut self, limit: &EffectiveLimit, book: &BookId, safe: u64, unrecorded: &[Unrecorded]) -> u64 {
        let derived = limit.derived.is_some();
        let before = self.before.get(book).map(|known| known.booted.clone()).unwrap_or_else(|| {
            let about = |(gone, known): &(&BookId, &BookBooted)| gone.unit == book.unit && !(known.derived && derived);
            Booted::succeeding(self.gone.iter().filter(about).map(|(_, known)| &known.booted))
        });
        let since_ms = unrecorded.iter().map(|of| of.since_ms).chain(self.since_ms).min();
        let booted = before.pass(safe, since_ms, self.old_files, self.now_ms);
        let owed = unrecorded.iter().map(|of| booted.of(of.since_ms).saturating_mul(u64::from(of.processes)));
        let owed = owed.fold(0, u64::saturating_add);
        self.next.insert(book.clone(), BookBooted { derived, booted });
        owed
    }

    /// What the next pass has to know.
    pub(super) fn next(self) -> BTreeMap<BookId, BookBooted> {
        self.gone.into_iter().chain(self.next).collect()
    }
}
