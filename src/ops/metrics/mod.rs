//! The operator's own metrics: `docs/metrics.md` has each of them. No label grows with pods: those are in the status.

mod fleet;
mod labels;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit as Measure};

pub use labels::{BookLabels, ConditionStatus, FleetReading, LedgerErrorKind, Outcome, ProcessState, Reading, Unit};

use fleet::Fleets;
use labels::{KindLabel, LimitLabels, OutcomeLabel, ReservedLabels};

type Books = HashMap<(String, String), Vec<BookLabels>>;

/// All metrics. Clones are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciled: Family<OutcomeLabel, Counter>,
    reconcile_seconds: Histogram,
    budget: Family<BookLabels, Gauge>,
    spent: Family<BookLabels, Gauge>,
    worst: Family<BookLabels, Gauge>,
    pool: Family<BookLabels, Gauge>,
    granted: Family<BookLabels, Gauge>,
    aside: Family<BookLabels, Gauge>,
    safe_share: Family<BookLabels, Gauge>,
    learning: Family<BookLabels, Gauge>,
    members: Family<BookLabels, Gauge>,
    denied: Family<BookLabels, Gauge>,
    outside: Family<BookLabels, Gauge>,
    reserved: Family<ReservedLabels, Gauge<f64, AtomicU64>>,
    waited: Family<LimitLabels, Gauge>,
    fleets: Fleets,
    leader: Gauge,
    leader_changes: Counter,
    ledger_duration: Histogram,
    ledger_errors: Family<KindLabel, Counter>,
    /// The series that there are, by namespace and name of the TokenBudget, for their removal.
    books: Arc<Mutex<Books>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics without values.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tokenbudget");
        let reconciled = Family::default();
        registry.register("reconcile", "Reconciliations of a TokenBudget by how they ended", reconciled.clone());
        // A pass is a few reads from memory and one Redis round trip; a slow API server takes seconds.
        let reconcile_seconds = Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]);
        registry.register_with_unit(
            "reconcile_duration",
            "How long a reconciliation of a TokenBudget took",
            Measure::Seconds,
            reconcile_seconds.clone(),
        );
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<BookLabels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let budget = gauge("budget", "Tokens or requests that the fleet may spend in any 60 seconds");
        let spent =
            gauge("spent", "Tokens or requests that the fleet spent in the last 60 seconds, as processes reported");
        let worst =
            gauge("worst", "The most that the fleet spent in any 60 seconds of the last hour, as this replica saw it");
        let pool = gauge("pool", "Part of the budget that is neither lent nor set aside, below zero after a cut");
        let granted =
            gauge("granted", "Part of the budget that processes hold; missing while the ledger does not answer");
        let aside = gauge(
            "aside",
            "Part of the budget that is kept for processes that are not in the ledger: they may spend their safe share",
        );
        let safe_share =
            gauge("safe_share", "The most that a process may spend in 60 seconds when it has lost the ledger");
        let learning = gauge(
            "learning",
            "1 while only what comes back is lent, as the ledger is new, has lost data or heard nobody for 65 s; missing while the ledger does not answer",
        );
        let members = gauge("members", "LiteLLM processes that spend from the budget");
        let denied = gauge("denied", "Tokens or requests that were refused in the last 60 seconds");
        let outside = gauge(
            "outside",
            "Tokens or requests a minute that LiteLLM's own counters have and no process reported; missing while none are \
             known",
        );
        let reserved = Family::default();
        registry.register(
            "reserved_ratio",
            "What was reserved for a call's tokens, divided by what it used: the processes' last calls",
            reserved.clone(),
        );
        let waited = Family::default();
        registry.register(
            "waited",
            "Requests that waited for room before they were admitted or refused, in the last whole minute",
            waited.clone(),
        );
        let fleets = Fleets::register(&mut registry);
        let leader = Gauge::default();
        registry.register("leader", "1 while this replica leads", leader.clone());
        let leader_changes = Counter::default();
        registry.register("leader_changes", "How often this replica began or ceased to lead", leader_changes.clone());
        // Redis answers in half a millisecond; a call is given up after 2.5 s.
        let ledger_duration = Histogram::new([0.000_5, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]);
        registry.register_with_unit(
            "ledger_duration",
            "How long a call of a ledger took, with its connection if it needed one",
            Measure::Seconds,
            ledger_duration.clone(),
        );
        let ledger_errors = Family::default();
        registry.register("ledger_errors", "Commands to a ledger that failed, by how", ledger_errors.clone());
        registry.register("build", "The operator's version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self {
            registry: Arc::new(registry),
            reconciled,
            reconcile_seconds,
            budget,
            spent,
            worst,
            pool,
            granted,
            aside,
            safe_share,
            learning,
            members,
            denied,
            outside,
            reserved,
            waited,
            fleets,
            leader,
            leader_changes,
            ledger_duration,
            ledger_errors,
            books: Arc::default(),
        }
    }

    /// Counts a reconciliation.
    pub fn reconciled(&self, outcome: Outcome, took: Duration) {
        self.reconciled.get_or_create(&OutcomeLabel { outcome }).inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// Counts a command to a ledger that failed.
    pub fn ledger_error(&self, kind: LedgerErrorKind) {
        self.ledger_errors.get_or_create(&KindLabel { kind }).inc();
    }

    /// Counts a call of a ledger, whatever came of it.
    pub fn ledger_called(&self, took: Duration) {
        self.ledger_duration.observe(took.as_secs_f64());
    }

    /// Says whether this replica leads. One that does not shows no budgets: the leader does.
    pub fn set_leader(&self, leads: bool) {
        if self.leader.set(i64::from(leads)) != i64::from(leads) {
            self.leader_changes.inc();
        }
        if !leads {
            let before = std::mem::take(&mut *self.books());
            before.values().flatten().for_each(|book| self.remove_book(book));
            self.fleets.clear();
        }
    }

    /// Sets all series of one TokenBudget; those of limits that it has no more go.
    pub fn set_budget(&self, namespace: &str, tokenbudget: &str, readings: &[(&str, Unit, Reading)]) {
        let labels = |limit: &str, unit: Unit| BookLabels {
            namespace: namespace.to_owned(),
            tokenbudget: tokenbudget.to_owned(),
            limit: limit.to_owned(),
            unit,
        };
        let wanted: Vec<BookLabels> = readings.iter().map(|(limit, unit, _)| labels(limit, *unit)).collect();
        let before = self.books().insert((namespace.to_owned(), tokenbudget.to_owned()), wanted.clone());
        before.iter().flatten().filter(|book| !wanted.contains(book)).for_each(|book| self.remove_book(book));
        for (book, (_, _, reading)) in wanted.iter().zip(readings) {
            self.budget.get_or_create(book).set(reading.budget);
            self.spent.get_or_create(book).set(reading.spent);
            self.worst.get_or_create(book).set(reading.worst);
            self.pool.get_or_create(book).set(reading.pool);
            self.aside.get_or_create(book).set(reading.aside);
            self.safe_share.get_or_create(book).set(reading.safe_share);
            self.members.get_or_create(book).set(reading.members);
            self.denied.get_or_create(book).set(reading.denied);
            let known = [
                (&self.outside, reading.outside),
                (&self.learning, reading.learning.map(i64::from)),
                (&self.granted, reading.granted),
            ];
            for (family, value) in known {
                show(family, book, value);
            }
            for (labels, place) in ReservedLabels::of(book).iter().zip(0..) {
                if let Some(percent) = reading.reserved_percent {
                    self.reserved.get_or_create(labels).set(percent[place] as f64 / 100.0);
                } else {
                    self.reserved.remove(labels);
                }
            }
            show(&self.waited, &LimitLabels::of(book), reading.waited);
        }
    }

    /// Sets what is shown of a TokenBudget as a whole.
    pub fn set_fleet(&self, namespace: &str, tokenbudget: &str, reading: &FleetReading) {
        self.fleets.set(namespace, tokenbudget, reading);
    }

    /// Removes all series of a TokenBudget that is gone.
    pub fn remove_budget(&self, namespace: &str, tokenbudget: &str) {
        self.fleets.remove(namespace, tokenbudget);
        let before = self.books().remove(&(namespace.to_owned(), tokenbudget.to_owned()));
        before.iter().flatten().for_each(|book| self.remove_book(book));
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_book(&self, book: &BookLabels) {
        for family in [
            &self.budget,
            &self.spent,
            &self.worst,
            &self.pool,
            &self.granted,
            &self.aside,
            &self.safe_share,
            &self.learning,
            &self.members,
            &self.denied,
            &self.outside,
        ] {
            family.remove(book);
        }
        for labels in &ReservedLabels::of(book) {
            self.reserved.remove(labels);
        }
        self.waited.remove(&LimitLabels::of(book));
    }

    /// The metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// When a value cannot be written as text.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Sets a series, or removes it when its value is not known.
fn show<L: Clone + Eq + Hash>(family: &Family<L, Gauge>, labels: &L, value: Option<i64>) {
    if let Some(value) = value {
        family.get_or_create(labels).set(value);
    } else {
        family.remove(labels);
    }
}

#[cfg(test)]
mod tests;
