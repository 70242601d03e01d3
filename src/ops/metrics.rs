//! The operator's own metrics. No label grows with pods: those are in the status.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// How a reconciliation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// All that is wanted is so.
    Applied,
    /// It waits for something that others have to do.
    Waiting,
    /// This replica does not lead.
    Standby,
    /// The spec cannot be acted on.
    Refused,
    /// It failed and is tried again.
    Failed,
}

/// How a command to the ledger failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum LedgerErrorKind {
    /// Redis could not be reached, or the connection broke.
    Connection,
    /// No answer in time.
    Timeout,
    /// Another operator has claimed the ledger.
    Fenced,
    /// Redis refused, or answered what is no answer.
    Reply,
}

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the labels' values")]
pub enum Unit {
    /// Tokens a minute.
    tokens,
    /// Requests a minute.
    requests,
}

/// One limit of one TokenBudget, in one unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct BookLabels {
    /// Namespace of the TokenBudget.
    pub namespace: String,
    /// Its name.
    pub tokenbudget: String,
    /// Name of the limit.
    pub limit: String,
    /// What it counts.
    pub unit: Unit,
}

/// What is shown of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The budget a minute.
    pub budget: i64,
    /// Spent by the fleet in the last 60 s.
    pub spent: i64,
    /// Lent to nobody; below zero after a cut.
    pub pool: i64,
    /// Processes that spend from it.
    pub members: i64,
    /// Refused in the last 60 s.
    pub denied: i64,
    /// Spent outside of the fleet a minute, if anything is known of it.
    pub outside: Option<i64>,
    /// Reserved as a percentage of what was used, p50 and p99; of the limit, so the same in both of its units.
    pub reserved_percent: Option<[i64; 2]>,
}

/// Where in a distribution a figure lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Quantile {
    Median,
    Tail,
}

impl EncodeLabelValue for Quantile {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let text = match self {
            Self::Median => "0.5",
            Self::Tail => "0.99",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReservedLabels {
    namespace: String,
    tokenbudget: String,
    limit: String,
    quantile: Quantile,
}

impl ReservedLabels {
    fn of(book: &BookLabels) -> [Self; 2] {
        [Quantile::Median, Quantile::Tail].map(|quantile| Self {
            namespace: book.namespace.clone(),
            tokenbudget: book.tokenbudget.clone(),
            limit: book.limit.clone(),
            quantile,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: LedgerErrorKind,
}

/// All metrics. Clones are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciled: Family<OutcomeLabel, Counter>,
    reconcile_seconds: Histogram,
    budget: Family<BookLabels, Gauge>,
    spent: Family<BookLabels, Gauge>,
    pool: Family<BookLabels, Gauge>,
    members: Family<BookLabels, Gauge>,
    denied: Family<BookLabels, Gauge>,
    outside: Family<BookLabels, Gauge>,
    reserved: Family<ReservedLabels, Gauge<f64, AtomicU64>>,
    leader: Gauge,
    ledger_errors: Family<KindLabel, Counter>,
    /// The series that there are, for their removal.
    books: Arc<Mutex<Vec<BookLabels>>>,
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
        registry.register(
            "reconcile_duration_seconds",
            "How long a reconciliation of a TokenBudget took",
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
        let pool = gauge("pool", "Part of the budget that no process holds, below zero after a cut");
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
        let leader = Gauge::default();
        registry.register("leader", "1 while this replica leads", leader.clone());
        let ledger_errors = Family::default();
        registry.register("ledger_errors", "Commands to a ledger that failed, by how", ledger_errors.clone());
        registry.register("build", "The operator's version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self {
            registry: Arc::new(registry),
            reconciled,
            reconcile_seconds,
            budget,
            spent,
            pool,
            members,
            denied,
            outside,
            reserved,
            leader,
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

    /// Says whether this replica leads. One that does not shows no budgets: the leader does.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.keep(|_| false);
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
        self.keep(|book| book.namespace != namespace || book.tokenbudget != tokenbudget || wanted.contains(book));
        for (book, (_, _, reading)) in wanted.iter().zip(readings) {
            self.budget.get_or_create(book).set(reading.budget);
            self.spent.get_or_create(book).set(reading.spent);
            self.pool.get_or_create(book).set(reading.pool);
            self.members.get_or_create(book).set(reading.members);
            self.denied.get_or_create(book).set(reading.denied);
            if let Some(outside) = reading.outside {
                self.outside.get_or_create(book).set(outside);
            } else {
                self.outside.remove(book);
            }
            for (labels, place) in ReservedLabels::of(book).iter().zip(0..) {
                if let Some(percent) = reading.reserved_percent {
                    self.reserved.get_or_create(labels).set(percent[place] as f64 / 100.0);
                } else {
                    self.reserved.remove(labels);
                }
            }
        }
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.extend(wanted);
        books.sort();
        books.dedup();
    }

    /// Removes all series of a TokenBudget that is gone.
    pub fn remove_budget(&self, namespace: &str, tokenbudget: &str) {
        self.keep(|book| book.namespace != namespace || book.tokenbudget != tokenbudget);
    }

    fn keep(&self, wanted: impl Fn(&BookLabels) -> bool) {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.retain(|book| {
            let keep = wanted(book);
            if !keep {
                let families = [&self.budget, &self.spent, &self.pool, &self.members, &self.denied, &self.outside];
                for family in families {
                    family.remove(book);
                }
                for labels in &ReservedLabels::of(book) {
                    self.reserved.remove(labels);
                }
            }
            keep
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_its_name() {
        let metrics = Metrics::new();
        metrics.reconciled(Outcome::Applied, Duration::from_millis(2));
        metrics.ledger_error(LedgerErrorKind::Timeout);
        metrics.set_leader(true);
        let reading = Reading {
            budget: 1000,
            spent: 200,
            pool: -5,
            members: 3,
            denied: 7,
            outside: Some(900),
            reserved_percent: Some([118, 640]),
        };
        metrics.set_budget("llm", "azure", &[("gpt", Unit::tokens, reading)]);
        let text = metrics.encode().unwrap();
        let book = r#"{namespace="llm",tokenbudget="azure",limit="gpt",unit="tokens"}"#;
        for line in [
            "tokenbudget_reconcile_total{outcome=\"Applied\"} 1".to_owned(),
            "tokenbudget_reconcile_duration_seconds_count 1".to_owned(),
            format!("tokenbudget_budget{book} 1000"),
            format!("tokenbudget_spent{book} 200"),
            format!("tokenbudget_pool{book} -5"),
            format!("tokenbudget_members{book} 3"),
            format!("tokenbudget_denied{book} 7"),
            format!("tokenbudget_outside{book} 900"),
            r#"tokenbudget_reserved_ratio{namespace="llm",tokenbudget="azure",limit="gpt",quantile="0.5"} 1.18"#
                .to_owned(),
            r#"tokenbudget_reserved_ratio{namespace="llm",tokenbudget="azure",limit="gpt",quantile="0.99"} 6.4"#
                .to_owned(),
            "tokenbudget_leader 1".to_owned(),
            "tokenbudget_ledger_errors_total{kind=\"Timeout\"} 1".to_owned(),
            format!("tokenbudget_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn series_go_with_their_budget_limit_and_leader() {
        let metrics = Metrics::new();
        let has = |part: &str| metrics.encode().unwrap().contains(part);
        let known = Reading { outside: Some(1), reserved_percent: Some([100, 200]), ..Reading::default() };
        let all = [("a", Unit::tokens, known), ("b", Unit::requests, known)];
        metrics.set_budget("ns", "one", &all);
        metrics.set_budget("ns", "two", &all);
        metrics.set_budget("ns", "one", &all[..1]);
        assert!(!has(r#"tokenbudget="one",limit="b""#) && has(r#"tokenbudget="two",limit="b""#));
        metrics.set_budget("ns", "one", &[("a", Unit::tokens, Reading { outside: None, ..known })]);
        let (outside, reserved) = ("tokenbudget_outside{", "tokenbudget_reserved_ratio{");
        let one = r#"namespace="ns",tokenbudget="one""#;
        assert!(!has(&format!("{outside}{one}")) && has(&format!("{reserved}{one}")));
        metrics.set_budget("ns", "one", &[("a", Unit::tokens, Reading::default())]);
        assert!(!has(&format!("{reserved}{one}")));
        metrics.remove_budget("ns", "two");
        assert!(!has(r#"tokenbudget="two""#) && has(r#"tokenbudget="one""#));
        metrics.set_leader(false);
        assert!(!has("limit="));
    }
}
