//! What all books of a pass have in common: how many processes there may be, which have ended, and which may spend without a
//! record. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::SignedDuration;

use super::arrange::{LEASE, LEASE_MS};
use super::limits::EffectiveLimit;
use super::observe::Observed;
use super::validate::Validated;
use crate::ledger::{BookId, BookState, HOLD_MS};
use crate::plan::{Departed, FleetSize};

/// For so long a process that was never answered admits nothing: a lease, and the 65 s in which what others spent leaves.
const SILENCE: SignedDuration = SignedDuration::from_millis((LEASE_MS + HOLD_MS) as i64);

/// What all books have in common. Lookups, as there may be thousands of members.
pub(super) struct Fleet<'a> {
    /// How many processes it may come to.
    pub(super) size: FleetSize,
    /// Every process that has reported: when it ended, if it has.
    pub(super) reported: BTreeMap<&'a str, Option<u64>>,
    /// Pods that are old enough to come to a safe share without the ledger.
    grown: Vec<GrownPod<'a>>,
    /// Members of pods that are gone without evidence, which the ledger had and lost; and when they started, unix ms.
    lost: Vec<(&'a str, u64)>,
    /// Processes that ended without a record and still count.
    pub(super) departed: u32,
    /// When the first of those started that are silent for a lease, or whose record the ledger lost, unix ms.
    silent_since_ms: Option<u64>,
}

/// Processes of one start that have no record in a book and may spend nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unrecorded {
    /// How many.
    pub(super) processes: u32,
    /// When they started, unix ms; 0 when that is not known.
    pub(super) since_ms: u64,
}

/// A live pod that runs for longer than a lease.
struct GrownPod<'a> {
    uid: &'a str,
    /// When its container started, unix ms.
    since_ms: u64,
    /// It may have admitted something without ever having been answered.
    admits: bool,
    /// LiteLLM worker processes in it.
    workers: u32,
    /// Those that have reported and not ended, by id.
    members: Vec<&'a str>,
}

impl GrownPod<'_> {
    /// Its processes that have no record in this book. One that has said good-bye keeps its record, and a successor in its
    /// container admits nothing for longer than that.
    fn without_record(&self, book: Option<&BookState>) -> u32 {
        let has_record = |id: &&&str| book.is_some_and(|book| book.members.contains_key(**id));
        let recorded = self.members.iter().filter(has_record).count();
        self.workers.saturating_sub(u32::try_from(recorded).unwrap_or(u32::MAX))
    }
}

impl<'a> Fleet<'a> {
    pub(super) fn of(valid: &'a Validated, observed: &'a Observed) -> Self {
        let now = observed.now;
        let sizes: Vec<_> = valid.targets.iter().map(|t| t.size).collect();
        let mut by_pod: HashMap<&str, Vec<&str>> = HashMap::new();
        for member in valid.members.iter().filter(|m| m.finished_ms.is_none()) {
            by_pod.entry(&member.report.pod_uid).or_default().push(&member.id);
        }
        let pods = valid.targets.iter().flat_map(|target| target.pods.iter().map(move |pod| (target, pod)));
        let grown = pods
            .filter_map(|(target, pod)| {
                let since = pod.running_since(&target.container)?;
                let (runs, since_ms) = (now.duration_since(since), u64::try_from(since.as_millisecond()).unwrap_or(0));
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let members = by_pod.get(uid).cloned().unwrap_or_default();
                let workers = observed.workers(pod, target.size.workers);
                (runs > LEASE).then(|| GrownPod { uid, since_ms, admits: runs > SILENCE, workers, members })
            })
            .collect();
        let uids =
            || valid.targets.iter().flat_map(|target| &target.pods).filter_map(|pod| pod.metadata.uid.as_deref());
        // Mostly there are none, and then the pods, which may be thousands, are not looked at.
        let there: BTreeSet<&str> = if observed.lost.is_empty() { BTreeSet::new() } else { uids().collect() };
        let lost = observed.lost.iter().filter(|(_, report)| !there.contains(report.pod_uid.as_str()));
        let seen = observed.ledger.as_ref().and_then(|ledger| ledger.as_ref().ok());
        let is_silent = |id: &str| seen.is_some_and(|seen| seen.is_silent(id));
        let silent = valid.members.iter().filter(|m| m.finished_ms.is_none() && is_silent(&m.id));
        let silent = silent.map(|m| m.report.started_ms);
        Self {
            lost: lost.map(|(id, report)| (id.as_str(), report.started_ms)).collect(),
            size: FleetSize::of(&sizes),
            reported: valid.members.iter().map(|m| (m.id.as_str(), m.finished_ms)).collect(),
            grown,
            departed: 0,
            silent_since_ms: silent.chain(observed.lost.values().map(|report| report.started_ms)).min(),
        }
    }

    /// What the last pass remembers, and this one has to. Without the ledger nothing new is known.
    pub(super) fn departed(&self, observed: &Observed, limits: &[EffectiveLimit]) -> Departed {
        let Some(Ok(seen)) = &observed.ledger else { return observed.departed.clone() };
        let ids = limits.iter().flat_map(|l| l.books().map(move |(unit, _)| BookId::new(&l.name, unit)));
        let books: Vec<&BookState> = ids.filter_map(|id| seen.books.get(&id)).collect();
        let has_record = |id: &str| books.iter().any(|book| book.members.contains_key(id));
        let was_lost = |uid: &str| observed.lost.values().any(|lost| lost.pod_uid == uid);
        let pods = self.grown.iter().filter(|pod| pod.admits || was_lost(pod.uid)).map(|pod| {
            let without = books.iter().map(|book| pod.without_record(Some(book)));
            (pod.uid, without.max().unwrap_or(pod.workers))
        });
        let there = pods.chain(self.lost.iter().map(|(id, _)| (*id, 1))).filter(|(_, without)| *without > 0);
        let there = there.map(|(key, without)| (key.to_owned(), without)).collect();
        let stays = |key: &str| has_record(key) || self.grown.iter().any(|pod| pod.uid == key);
        observed.departed.pass(there, stays, u64::try_from(observed.now.as_millisecond()).unwrap_or(0))
    }

    pub(super) fn finished_ms(&self, id: &str) -> Option<u64> {
        *self.reported.get(id)?
    }

    pub(super) fn has_ended(&self, id: &str) -> bool {
        self.finished_ms(id).is_some()
    }

    /// Processes that have no record in this book: of the grown pods, those that the ledger lost, and those that have ended.
    pub(super) fn unrecorded(&self, state: Option<&BookState>) -> impl Iterator<Item = Unrecorded> {
        let is_lost = move |id: &str| state.is_none_or(|s| !s.members.contains_key(id));
        let lost = self.lost.iter().filter(move |(id, _)| is_lost(id)).map(|(_, since_ms)| (1, *since_ms));
        let pods = self.grown.iter().map(move |pod| (pod.without_record(state), pod.since_ms));
        let all = lost.chain(pods).chain([(self.departed, 0)]).filter(|(processes, _)| *processes > 0);
        all.map(|(processes, since_ms)| Unrecorded { processes, since_ms })
    }

    /// When the first of the processes started that do not hear the ledger, whether they have a record or not, unix ms. One that
    /// has may lose it with the ledger's data.
    pub(super) fn unheard_since(&self) -> Option<u64> {
        let unreported =
            self.grown.iter().filter(|pod| pod.members.len() < pod.workers as usize).map(|pod| pod.since_ms);
        let departed = (self.departed > 0).then_some(0);
        unreported.chain(departed).chain(self.silent_since_ms).min()
    }
}
