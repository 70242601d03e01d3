//! What the operator remembers of a TokenBudget between passes. All of it can be lost: it is found again in the status,
//! the ledger and the Deployments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::events::Recorder;
use serde_json::Value;

use super::booted::BookBooted;
use super::lost::Known;
use super::moved::Former;
use super::policies::StoredPolicies;
use super::reading::{ContainerRead, Reading};
use super::redis_url::{Located, RedisLocation};
use super::scaling::Scaling;
use super::seconds;
use super::vanished::Search;
use super::workers::SeenWorkers;
use super::writes::{Failed, Writes};
use crate::api::{ConditionKind, TargetRef, TokenBudget, TokenBudgetStatus};
use crate::ledger::{BookId, Epoch, HOLD_MS, RedisLedger, Unit};
use crate::litellm::Inherited;
use crate::ops::Outcome;
use crate::plan::{Amounts, Booted, Departed, Outside, Worst};

/// How long the fleet has to be whole before the promise holds: the 60 s window.
pub const WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// Events by reason and action.
pub type Told<R> = HashMap<(String, String), ToldEvent<R>>;

/// An event that was published.
#[derive(Debug)]
pub struct ToldEvent<R> {
    /// What it said.
    pub note: Option<String>,
    /// Who publishes it.
    pub recorder: R,
    /// When it did so last.
    pub at: Instant,
}

/// Memory of one TokenBudget.
#[derive(Default)]
pub struct Memory {
    /// Of its ledger.
    pub ledger: LedgerMemory,
    /// Of the Deployments that it names and named.
    pub targets: TargetMemory,
    /// Of its processes and what they spent.
    pub fleet: FleetMemory,
    /// What users were told.
    pub told: ToldMemory,
    /// How the last pass ended.
    pub outcome: Option<Outcome>,
    /// Failed passes in a row.
    pub failures: u32,
    /// When the last pass ended.
    pub ended_at: Option<Instant>,
    /// Whether it was started from the status.
    started: bool,
}

/// What names the ledger: the generation of the spec, and the containers of the targets.
pub type LedgerNamed = (Option<i64>, Vec<Option<Container>>);

/// Where the ledger is, and what was written there.
#[derive(Default)]
pub struct LedgerMemory {
    /// Connection to the ledger, and where that is.
    pub connection: Option<(RedisLocation, RedisLedger)>,
    /// Those before it, as long as they are not told that they are.
    pub formers: Vec<Former>,
    /// The epoch that was claimed from it.
    pub epoch: Option<Epoch>,
    /// Where the ledger is, by what names it.
    pub location: Option<Reading<LedgerNamed, Option<Located>>>,
    /// The books that passes have written.
    pub books: KnownBooks,
    /// Whether a pass has written the ledger.
    pub planned: bool,
    /// Whether the pass that runs has, or the last one had.
    pub planned_now: bool,
    /// Time between two beats by the policy that was stored before this operator led; 0 when there was none.
    pub stored_beat_ms: Option<u64>,
    /// Passes in a row in which the ledger did not answer.
    pub unanswered: u32,
}

/// The books of one TokenBudget.
#[derive(Debug, Default)]
pub struct KnownBooks {
    /// Those that the last pass knew: the ledger may hold them.
    pub held: BTreeSet<BookId>,
    /// By which safe shares processes may go that the ledger has no record of.
    pub booted: BTreeMap<BookId, BookBooted>,
    /// Those of limits that went, and when.
    gone: BTreeMap<BookId, Instant>,
}

impl KnownBooks {
    /// What was spent from a book is in no window any more when it went so long ago.
    const HOLD: Duration = Duration::from_millis(HOLD_MS);

    /// Takes note of what a pass has written.
    pub fn wrote(&mut self, books: BTreeSet<BookId>, now: Instant) {
        let gone = std::mem::replace(&mut self.held, books);
        self.gone.extend(gone.into_iter().map(|book| (book, now)));
        self.gone.retain(|book, at| !self.held.contains(book) && now.duration_since(*at) < Self::HOLD);
    }

    /// Whether something that was spent from this book may still be in a window.
    #[must_use]
    pub fn may_have_spent(&self, book: &BookId) -> bool {
        self.held.contains(book) || self.gone.contains_key(book)
    }
}

/// What was read of Deployments, and done to them. The maps are by their names.
#[derive(Default)]
pub struct TargetMemory {
    /// How many worker processes the pods have, where that had to be read.
    pub workers: BTreeMap<String, ContainerRead<u32>>,
    /// With how many workers each pod began, by its UID: a change of the template is none of the pods that run.
    pub began_with: HashMap<String, u32>,
    /// How many workers were seen in pods that have more than their template says.
    pub seen_workers: SeenWorkers,
    /// What `envFrom` gives to the startup hooks.
    pub hooks: BTreeMap<String, ContainerRead<Option<Inherited>>>,
    /// How many live pods had no agent.
    pub without_agent: BTreeMap<String, WithoutAgent>,
    /// What was done.
    pub attached: BTreeMap<String, AttachMemory>,
    /// Those whose ConfigMaps may have a policy of before: a pass planned since they were written.
    pub old_files: BTreeSet<String>,
    /// What the last write of the ConfigMaps came to, where it failed.
    pub maps_failed: BTreeMap<String, Failed>,
    /// What the last attempt came to that should leave a Deployment to the admission policy, where it failed.
    pub take_out_failed: BTreeMap<String, Failed>,
    /// The writes of the pass that runs.
    pub writes: Writes,
    /// Those that the spec named in the last pass, if this operator has made one.
    pub named: Option<Vec<TargetRef>>,
    /// Those that are no targets any more, out of which the agent is still to be taken.
    pub formers: Vec<TargetRef>,
    /// When that failed last.
    pub released_at: Option<Instant>,
    /// Since when the clean-up of a TokenBudget that is being deleted is tried.
    pub detaches_since: Option<Instant>,
}

/// A count of a Deployment's live pods without agent.
#[derive(Clone, Debug)]
pub struct WithoutAgent {
    /// The result.
    pub count: usize,
    /// When it was taken.
    pub at: Instant,
    /// With which version of the Deployment, and how many live pods with agent.
    pub of: (Option<String>, usize),
    /// Whether these were as many as the Deployment has replicas.
    pub complete: bool,
}

impl WithoutAgent {
    /// It is taken again so soon while nothing is seen to change: old pods serve on while they terminate.
    const AGE: Duration = Duration::from_secs(5);

    /// Whether it says what another count would.
    #[must_use]
    pub fn holds(&self, of: &(Option<String>, usize), complete: bool, now: Instant) -> bool {
        let settled = complete && self.complete && self.count == 0;
        settled || self.of == *of && now.duration_since(self.at) < Self::AGE
    }
}

/// Processes, and what they spent.
#[derive(Default)]
pub struct FleetMemory {
    /// Members that the ledger had, and that have not ended.
    pub known: Known,
    /// Processes that ended without a record.
    pub departed: Departed,
    /// Pods of silent members that are not there any more, by UID.
    pub vanished: BTreeMap<String, Search>,
    /// The policies that the ledger had lately.
    pub policies: StoredPolicies,
    /// Since when every live process has enforced.
    pub whole_since: Option<Timestamp>,
    /// Since when no process has had a deployment for these limits.
    pub unmatched_since: BTreeMap<String, Timestamp>,
    /// The most that each book's members had spent.
    pub worst: BTreeMap<BookId, Worst>,
    /// What others spend of the same quotas.
    pub outside: Outside,
    /// LiteLLM's counters could not be read last time.
    pub counters_failed: bool,
}

/// Events and status, as they were published last.
#[derive(Default)]
pub struct ToldMemory {
    /// What the last event of each reason and action said, and what published it.
    pub events: Told<Recorder>,
    /// When the figures of the status were written.
    pub figures_at: Option<Instant>,
    /// What conditions said until a status was written that says something else.
    pub left: super::publish::Left,
    /// The status.
    pub written: Option<TokenBudgetStatus>,
    /// How large the fleet was and is.
    pub scaling: Scaling,
}

/// What was done to one Deployment.
#[derive(Debug, Default)]
pub struct AttachMemory {
    /// The hash of what of ours was there when we looked last: it takes 20 kB itself.
    applied: Option<u64>,
    /// When somebody took them out.
    removed: Vec<Timestamp>,
    /// The generation of the TokenBudget at which that was too often.
    contested_at: Option<Option<i64>>,
    /// The Deployment after our last write: its UID and generation.
    written: Option<(Option<String>, Option<i64>)>,
    /// What the last write came to, where it failed.
    pub failed: Option<Failed>,
}

impl AttachMemory {
    /// Two removals in this time, and the entries are left alone.
    const CONTEST: SignedDuration = SignedDuration::from_mins(10);

    /// Takes note that this patch is in the Deployment.
    pub fn has(&mut self, patch: &Value) {
        self.applied = Some(hash(patch));
        self.contested_at = None;
    }

    /// Whether this very patch was there when we looked last.
    #[must_use]
    pub fn had(&self, patch: &Value) -> bool {
        self.applied == Some(hash(patch))
    }

    /// Takes note of what our write answered.
    pub fn wrote(&mut self, written: &ObjectMeta) {
        self.written = Some((written.uid.clone(), written.generation));
    }

    /// Whether this is of before our last write: a cache that is behind says nothing of what others did since.
    #[must_use]
    pub fn is_older(&self, cached: &ObjectMeta) -> bool {
        self.written.as_ref().is_some_and(|(uid, generation)| *uid == cached.uid && cached.generation < *generation)
    }

    /// Somebody removed the entries, while the TokenBudget had this generation.
    pub fn was_removed(&mut self, now: Timestamp, generation: Option<i64>) {
        self.applied = None;
        self.removed.retain(|at| now.duration_since(*at) < Self::CONTEST);
        self.removed.push(now);
        if self.removed.len() >= 2 {
            self.contested_at = Some(generation);
        }
    }

    /// Whether the entries were removed twice in ten minutes. It stays so until somebody puts them back or changes the
    /// TokenBudget: each attempt of ours would be two rollouts.
    pub fn contested(&mut self, generation: Option<i64>) -> bool {
        if self.contested_at.is_some_and(|at| at != generation) {
            (self.contested_at, self.removed) = (None, Vec::new());
        }
        self.contested_at.is_some()
    }
}

fn hash(patch: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    patch.hash(&mut hasher);
    hasher.finish()
}

impl Memory {
    /// Takes from the status what an operator that has just started would not know.
    pub fn start_from(&mut self, tb: &TokenBudget, now: Timestamp) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let Some(status) = &tb.status else { return };
        let amount = |figure: i64| u64::try_from(figure).unwrap_or(0);
        for row in &status.limits {
            let unit = if row.unit == Unit::Tokens.as_str() { Unit::Tokens } else { Unit::Requests };
            let book = BookId::new(&row.name, unit);
            self.fleet.worst.insert(book.clone(), Worst::said_before(seconds(now), amount(row.worst)));
            let booted = Booted::said_before(amount(row.safe_share));
            self.ledger.books.booted.insert(book.clone(), BookBooted { derived: row.derived.is_some(), booted });
            self.ledger.books.held.insert(book);
            if let Some(said) = &row.outside {
                let amounts = Amounts { tokens: amount(said.tokens), requests: amount(said.requests) };
                self.fleet.outside.said_before(&row.name, amounts);
            }
        }
        let enforcing = status.conditions.iter().find(|c| c.type_ == ConditionKind::Enforcing.as_str());
        if let Some(since) = enforcing.filter(|c| c.status == "True") {
            self.fleet.whole_since = since.last_transition_time.0.checked_sub(WINDOW).ok();
        }
        self.told.scaling.said_before(&status.limits);
        self.told.written = Some(status.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_operator_goes_on_with_what_the_status_says() {
        let tb: TokenBudget = serde_json::from_value(serde_json::json!({
            "apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget", "metadata": {"name": "tb"},
            "spec": {"targetRefs": [{"name": "litellm"}]},
            "status": {"limits": [{"name": "gpt", "unit": "tokens", "budget": 9, "spent": 0, "denied": 0, "pool": 0,
                "aside": 0, "safeShare": 7, "members": 0, "worst": 8, "outside": {"tokens": 7000, "requests": 3}}]}
        }))
        .unwrap();
        let mut memory = Memory::default();
        memory.start_from(&tb, Timestamp::UNIX_EPOCH);
        assert_eq!(memory.fleet.outside.of("gpt"), Some(Amounts { tokens: 7_000, requests: 3 }));
        let book = BookId::new("gpt", Unit::Tokens);
        assert!(memory.ledger.books.held.contains(&book));
        assert_eq!(memory.ledger.books.booted[&book].booted.largest(), 7);
        assert_eq!(memory.fleet.worst.get_mut(&book).map(|worst| worst.note(60, 5)), Some(8));
    }

    #[test]
    fn pods_without_agent_are_not_counted_each_second() {
        let (at, of) = (Instant::now(), (Some("7".to_owned()), 2));
        let later = |seconds| at + Duration::from_secs(seconds);
        let some = WithoutAgent { count: 1, at, of: of.clone(), complete: false };
        assert!(some.holds(&of, false, later(4)) && !some.holds(&of, false, later(5)));
        assert!(!some.holds(&(Some("8".to_owned()), 2), false, at), "a rollout went on");
        assert!(!some.holds(&(Some("7".to_owned()), 1), false, at), "a pod went");
        let none = WithoutAgent { count: 0, complete: true, ..some.clone() };
        assert!(none.holds(&(Some("8".to_owned()), 3), true, later(9_999)));
        assert!(!none.holds(&of, false, later(5)), "a replica has no pod with agent");
        assert!(
            !WithoutAgent { complete: false, ..none }.holds(&of, true, later(5)),
            "counted while some were missing"
        );
    }

    #[test]
    fn a_cache_may_be_behind_our_own_write() {
        let deployment = |uid: &str, generation| ObjectMeta {
            uid: Some(uid.to_owned()),
            generation: Some(generation),
            ..ObjectMeta::default()
        };
        let mut memory = AttachMemory::default();
        assert!(!memory.is_older(&deployment("a", 1)));
        memory.wrote(&deployment("a", 7));
        assert!(memory.is_older(&deployment("a", 6)) && !memory.is_older(&deployment("a", 7)));
        assert!(!memory.is_older(&deployment("b", 1)), "it was deleted and made again");
    }

    #[test]
    fn two_removals_in_ten_minutes_are_a_contest() {
        let at = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let mut memory = AttachMemory::default();
        let patch = serde_json::json!({"spec": {}});
        memory.has(&patch);
        assert!(memory.had(&patch) && !memory.had(&Value::Null), "another wish is no removal");
        let mut removed = |minute| {
            memory.was_removed(at(minute), Some(1));
            memory.contested(Some(1))
        };
        assert!(!removed(0));
        assert!(!removed(11));
        assert!(removed(20));
        assert!(removed(300), "it stays so");
        assert!(!memory.contested(Some(2)), "another spec");
        memory.was_removed(at(301), Some(2));
        assert!(!memory.contested(Some(2)), "which has two attempts of its own");
        memory.was_removed(at(302), Some(2));
        assert!(memory.contested(Some(2)));
        memory.has(&patch);
        assert!(!memory.contested(Some(2)), "somebody put it back");
    }
}
