//! What the operator remembers of a TokenBudget between passes. All of it can be lost: it is found again in the status,
//! the ledger and the Deployments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use kube::runtime::events::Recorder;
use serde_json::Value;

use super::lost::Known;
use super::redis_url::{NoRedis, RedisLocation};
use super::vanished::Search;
use super::workers::WorkersRead;
use crate::api::{ConditionKind, TargetRef, TokenBudget, TokenBudgetStatus};
use crate::ledger::{BookId, Epoch, RedisLedger, Unit};
use crate::litellm::Inherited;
use crate::ops::Outcome;
use crate::plan::{Amounts, Departed, Outside, Worst};

/// How long the fleet has to be whole before the promise holds: the 60 s window.
pub const WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// By reason and action: what was said, and who publishes it.
pub type Told<R> = HashMap<(String, String), (Option<String>, R)>;

/// Memory of one TokenBudget.
#[derive(Default)]
pub struct Memory {
    /// Connection to the ledger, and where that is.
    pub ledger: Option<(RedisLocation, RedisLedger)>,
    /// The epoch that was claimed from it.
    pub epoch: Option<Epoch>,
    /// Where the ledger is: read when, for which generation of the spec.
    pub location: Option<(Instant, Option<i64>, Result<RedisLocation, NoRedis>)>,
    /// The books that the last pass knew.
    pub books: BTreeSet<BookId>,
    /// Whether a pass has written the ledger.
    pub planned: bool,
    /// Time between two beats by the policy that was stored before this operator led; 0 when there was none.
    pub stored_beat_ms: Option<u64>,
    /// How many worker processes the pods of each Deployment have, where that had to be read.
    pub workers: BTreeMap<String, Option<WorkersRead>>,
    /// What `envFrom` gives to the startup hooks of each Deployment: read when, for which generation of it.
    pub hooks: BTreeMap<String, (Instant, Option<i64>, Option<Inherited>)>,
    /// Passes in a row in which the ledger did not answer.
    pub unanswered: u32,
    /// And with how many each pod began, by its UID: a change of the template is none of the pods that run.
    pub workers_of: HashMap<String, u32>,
    /// Deployments of which every live pod had the agent.
    pub complete: BTreeSet<String>,
    /// Since when every live process has enforced.
    pub whole_since: Option<Timestamp>,
    /// The Deployments that the spec named in the last pass, if this operator has made one.
    pub targets: Option<Vec<TargetRef>>,
    /// Deployments that are no targets any more, out of which the agent is still to be taken, and when that failed last.
    pub formers: Vec<TargetRef>,
    /// See [`Memory::formers`].
    pub released_at: Option<Instant>,
    /// What the last event of each reason and action said, and what published it.
    pub told: Told<Recorder>,
    /// What was done to each Deployment.
    pub attached: BTreeMap<String, AttachMemory>,
    /// When the figures of the status were written last.
    pub figures_at: Option<Instant>,
    /// The status that was written last.
    pub written: Option<TokenBudgetStatus>,
    /// The most that each book's members had spent.
    pub worst: BTreeMap<BookId, Worst>,
    /// What others spend of the same quotas.
    pub outside: Outside,
    /// LiteLLM's counters could not be read last time.
    pub counters_failed: bool,
    /// Members that the ledger had, and that have not ended.
    pub known: Known,
    /// Processes that ended without a record.
    pub departed: Departed,
    /// Pods of silent members that are not there any more, by UID.
    pub vanished: BTreeMap<String, Search>,
    /// Since when its clean-up is tried.
    pub detaches_since: Option<Timestamp>,
    /// How the last pass ended.
    pub outcome: Option<Outcome>,
    /// Failed passes in a row.
    pub failures: u32,
    /// Whether it was started from the status.
    started: bool,
}

/// What was done to one Deployment.
#[derive(Debug, Default)]
pub struct AttachMemory {
    /// What of ours was there when we looked last.
    applied: Option<Value>,
    /// When somebody took them out.
    pub removed: Vec<Timestamp>,
}

impl AttachMemory {
    /// Two removals in this time, and the entries are left alone.
    const CONTEST: SignedDuration = SignedDuration::from_mins(10);

    /// Takes note that this patch is in the Deployment.
    pub fn has(&mut self, patch: &Value) {
        if !self.had(patch) {
            self.applied = Some(patch.clone());
        }
    }

    /// Whether this very patch was there when we looked last.
    #[must_use]
    pub fn had(&self, patch: &Value) -> bool {
        self.applied.as_ref() == Some(patch)
    }

    /// Somebody removed the entries. Answers whether this is contested.
    pub fn was_removed(&mut self, now: Timestamp) -> bool {
        self.applied = None;
        self.removed.push(now);
        self.contested(now)
    }

    /// Whether the entries were removed twice in ten minutes.
    pub fn contested(&mut self, now: Timestamp) -> bool {
        self.removed.retain(|at| now.duration_since(*at) < Self::CONTEST);
        self.removed.len() >= 2
    }
}

impl Memory {
    /// Takes from the status what an operator that has just started would not know.
    pub fn start_from(&mut self, tb: &TokenBudget) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let Some(status) = &tb.status else { return };
        for row in &status.limits {
            let unit = if row.unit == Unit::Tokens.as_str() { Unit::Tokens } else { Unit::Requests };
            self.books.insert(BookId::new(&row.name, unit));
            if let Some(said) = &row.outside {
                let amount = |figure: i64| u64::try_from(figure).unwrap_or(0);
                let amounts = Amounts { tokens: amount(said.tokens), requests: amount(said.requests) };
                self.outside.said_before(&row.name, amounts);
            }
        }
        let enforcing = status.conditions.iter().find(|c| c.type_ == ConditionKind::Enforcing.as_str());
        if let Some(since) = enforcing.filter(|c| c.status == "True") {
            self.whole_since = since.last_transition_time.0.checked_sub(WINDOW).ok();
        }
        self.written = Some(status.clone());
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
                "aside": 0, "safeShare": 0, "members": 0, "outside": {"tokens": 7000, "requests": 3}}]}
        }))
        .unwrap();
        let mut memory = Memory::default();
        memory.start_from(&tb);
        assert_eq!(memory.outside.of("gpt"), Some(Amounts { tokens: 7_000, requests: 3 }));
        assert!(memory.books.contains(&BookId::new("gpt", Unit::Tokens)));
    }

    #[test]
    fn two_removals_in_ten_minutes_are_a_contest() {
        let at = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let mut memory = AttachMemory::default();
        let patch = serde_json::json!({"spec": {}});
        memory.has(&patch);
        assert!(memory.had(&patch) && !memory.had(&Value::Null), "another wish is no removal");
        assert!(!memory.was_removed(at(0)));
        assert!(!memory.was_removed(at(11)));
        assert!(memory.was_removed(at(20)));
        assert!(!memory.contested(at(31)));
    }
}
