//! What all passes share.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};
use tokio::sync::Mutex as AsyncMutex;

use super::Error;
use super::admission::LastAnswer;
use super::config_maps::AppliedMaps;
use super::crowd::Crowd;
use super::memory::Memory;
use super::redis_url::RedisLocation;
use super::vanished::Pace;
use crate::api::{SecretKeyRef, TokenBudget};
use crate::leader::Leadership;
use crate::ledger::{LedgerError, Policy, RedisLedger};
use crate::ops::Metrics;

/// What the operator was started with.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Namespaces to watch; all, if there are none.
    pub namespaces: Vec<String>,
    /// The Secret with the Redis URL for TokenBudgets and containers that name none.
    pub default_redis: Option<SecretKeyRef>,
    /// Name of the chart's MutatingAdmissionPolicy, where it was installed.
    pub admission_policy: Option<String>,
    /// Who this process is, for events.
    pub identity: String,
    /// What it is there for.
    pub role: Role,
}

/// What a process does with the TokenBudgets that it watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Plans them, until they are deleted.
    #[default]
    Operate,
    /// `tokenbudget detach`: cleans up after each as if it were deleted, and leaves it there.
    DetachAll,
}

/// Clients, settings and memory.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// What the operator was started with.
    pub settings: Settings,
    /// Whether this replica may write.
    pub leadership: Leadership,
    reporter: Reporter,
    /// What Prometheus sees.
    pub metrics: Metrics,
    /// What was last heard of the MutatingAdmissionPolicy.
    pub admission_policy: AsyncMutex<LastAnswer>,
    /// Who shares a Redis with whom.
    pub crowd: Crowd,
    memories: Mutex<HashMap<String, Arc<AsyncMutex<Memory>>>>,
    policies: Mutex<BTreeMap<String, Policy>>,
    applied_maps: Mutex<AppliedMaps>,
    searches: Mutex<Pace>,
    /// TokenBudgets that were let go before all of ours was taken out, as NAMESPACE/NAME.
    given_up: Mutex<BTreeSet<String>>,
    /// By URL and CA; those that somebody uses.
    ledgers: Mutex<HashMap<(String, Option<String>), RedisLedger>>,
}

impl Context {
    /// A context without memory.
    #[must_use]
    pub fn new(client: Client, settings: Settings, leadership: Leadership, metrics: Metrics) -> Self {
        let reporter = Reporter { controller: "tokenbudget".to_owned(), instance: Some(settings.identity.clone()) };
        Self {
            reporter,
            client,
            settings,
            leadership,
            metrics,
            admission_policy: AsyncMutex::default(),
            crowd: Crowd::default(),
            memories: Mutex::default(),
            policies: Mutex::default(),
            applied_maps: Mutex::default(),
            searches: Mutex::default(),
            given_up: Mutex::default(),
            ledgers: Mutex::default(),
        }
    }

    /// A publisher of events. kube's takes two events of the same reason and action for one, which it counts, whatever they say:
    /// so one publisher is for one text only.
    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.client.clone(), self.reporter.clone())
    }

    /// The memory of this TokenBudget.
    pub fn memory(&self, tb: &TokenBudget) -> Arc<AsyncMutex<Memory>> {
        locked(&self.memories).entry(tb.uid().unwrap_or_default()).or_default().clone()
    }

    /// The memory of this TokenBudget, if there is one.
    pub fn known_memory(&self, tb: &TokenBudget) -> Option<Arc<AsyncMutex<Memory>>> {
        locked(&self.memories).get(tb.uid().as_deref().unwrap_or_default()).cloned()
    }

    /// Asked before each write to the API server: a pass is dropped when the lease is over, but only at a wait, and a suspended
    /// machine does not wait. (The ledger has the epoch for that.)
    ///
    /// # Errors
    /// [`Error::NotLeading`]
    pub fn ensure_leads(&self) -> Result<(), Error> {
        if self.leadership.leads() { Ok(()) } else { Err(Error::NotLeading) }
    }

    /// The ledger at a location, whose calls are measured. TokenBudgets with the same Redis share its connections.
    ///
    /// # Errors
    /// When the URL or the certificate cannot be used.
    pub fn connect(&self, location: &RedisLocation) -> Result<RedisLedger, LedgerError> {
        let mut ledgers = locked(&self.ledgers);
        ledgers.retain(|_, ledger| ledger.is_shared());
        match ledgers.entry((location.url.clone(), location.ca.clone())) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(place) => {
                let metrics = self.metrics.clone();
                let ledger = location.connect()?.telling(move |took| metrics.ledger_called(took));
                Ok(place.insert(ledger).clone())
            }
        }
    }

    /// Forgets everything: another replica leads, and what was known is out of date.
    pub fn forget_all(&self) {
        self.crowd.clear();
        locked(&self.memories).clear();
        locked(&self.policies).clear();
        locked(&self.applied_maps).clear();
        locked(&self.ledgers).clear();
    }

    /// Forgets a TokenBudget that is gone.
    pub fn forget(&self, tb: &ObjectRef<TokenBudget>) {
        let uid = tb.extra.uid.clone().unwrap_or_default();
        let namespace = tb.namespace.clone().unwrap_or_default();
        self.crowd.forget(&uid);
        locked(&self.memories).remove(&uid);
        locked(&self.policies).remove(&uid);
        // Its namespace may be gone with all that is in it.
        locked(&self.applied_maps).retain(|(of, _), _| *of != namespace);
        self.metrics.remove_budget(&namespace, &tb.name);
    }

    /// Makes the policy known to the TokenBudgets of the same Deployment.
    pub fn publish_policy(&self, tb: &TokenBudget, policy: &Policy) {
        locked(&self.policies).insert(tb.uid().unwrap_or_default(), policy.clone());
    }

    /// The policy that was planned for the TokenBudget of this UID.
    pub fn policy(&self, uid: &str) -> Option<Policy> {
        locked(&self.policies).get(uid).cloned()
    }

    /// Takes note of a TokenBudget that is let go before all of ours was taken out.
    pub fn give_up(&self, tb: &TokenBudget) {
        // Only `detach` asks, which ends.
        if self.settings.role == Role::DetachAll {
            locked(&self.given_up).insert(format!("{}/{}", tb.namespace().unwrap_or_default(), tb.name_any()));
        }
    }

    /// The TokenBudgets that `detach` let go before all of ours was taken out, as NAMESPACE/NAME.
    pub fn given_up(&self) -> Vec<String> {
        locked(&self.given_up).iter().cloned().collect()
    }

    /// How many pods that vanished were asked for lately.
    pub fn pace_of_searches(&self) -> MutexGuard<'_, Pace> {
        locked(&self.searches)
    }

    /// What ConfigMaps were applied.
    pub fn applied_maps(&self) -> MutexGuard<'_, AppliedMaps> {
        locked(&self.applied_maps)
    }
}

/// A poisoned lock holds whole values all the same: nobody leaves them half-written.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::test_support::{answering, context};

    #[tokio::test]
    async fn one_connection_serves_all_that_name_the_same_redis() {
        let context = context(answering(&[]));
        let at = |url: &str| RedisLocation { url: url.to_owned(), ca: None, secret: None };
        let known = || locked(&context.ledgers).len();
        let first = context.connect(&at("redis://a")).unwrap();
        let second = context.connect(&at("redis://a")).unwrap();
        let other = context.connect(&at("redis://b")).unwrap();
        assert_eq!(known(), 2);
        drop((first, second));
        drop(context.connect(&at("redis://c")).unwrap());
        assert_eq!(known(), 2, "a, which nobody uses, is gone");
        assert_eq!(other.server(), "b:6379");
    }
}
