//! Labels and their values, and what is shown under them. None of them grows with pods.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

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
    /// The largest `spent` of the last hour.
    pub worst: i64,
    /// Neither lent nor set aside; below zero after a cut.
    pub pool: i64,
    /// Held by processes; `None` while the ledger does not answer.
    pub granted: Option<i64>,
    /// Set aside for processes that are not in the ledger: they may spend their safe share.
    pub aside: i64,
    /// The most that a process may spend when it has lost the ledger.
    pub safe_share: i64,
    /// Nothing is lent yet, as the ledger is new or has lost data; `None` while the ledger does not answer.
    pub learning: Option<bool>,
    /// Processes that spend from it.
    pub members: i64,
    /// Refused in the last 60 s.
    pub denied: i64,
    /// Spent outside of the fleet a minute, if anything is known of it.
    pub outside: Option<i64>,
    /// Reserved as a percentage of what was used, p50 and p99; of the limit, so the same in both of its units.
    pub reserved_percent: Option<[i64; 2]>,
    /// Requests that waited for room in the last whole minute; of the limit, as well.
    pub waited: Option<i64>,
}

/// What is shown of a TokenBudget as a whole. What is not known has no series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetReading {
    /// Status of each condition, by its type.
    pub conditions: BTreeMap<&'static str, ConditionStatus>,
    /// LiteLLM processes in each state; `None` while the ledger does not answer.
    pub processes: Option<BTreeMap<ProcessState, i64>>,
    /// Beats and draws of all processes in the last whole minute, if they are known.
    pub calls: Option<[i64; 2]>,
    /// Live pods of the targets that were made with the agent.
    pub pods_with_agent: i64,
    /// Those that were made without.
    pub pods_without_agent: i64,
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known.
    Unknown,
}

impl ConditionStatus {
    /// Every status, each of which is a series.
    pub const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];
}

/// How a LiteLLM process does, as in `status.pods[].state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
pub enum ProcessState {
    /// Admits by its grant.
    Enforcing,
    /// Accounts, refuses nothing.
    Observing,
    /// LiteLLM has no router yet.
    Starting,
    /// A hook or an attribute of LiteLLM is missing.
    Degraded,
    /// Its lease is over: it goes by its safe share, or has ended.
    Offline,
    /// A word that this operator does not know (a newer agent).
    Unknown,
}

impl ProcessState {
    /// Every state, each of which is a series.
    pub const ALL: [Self; 6] =
        [Self::Enforcing, Self::Observing, Self::Starting, Self::Degraded, Self::Offline, Self::Unknown];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ConditionLabels {
    pub(super) namespace: String,
    pub(super) tokenbudget: String,
    pub(super) r#type: &'static str,
    pub(super) status: ConditionStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ProcessLabels {
    pub(super) namespace: String,
    pub(super) tokenbudget: String,
    pub(super) state: ProcessState,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PodLabels {
    pub(super) namespace: String,
    pub(super) tokenbudget: String,
    /// Whether they were made with it.
    pub(super) agent: bool,
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
pub(super) struct ReservedLabels {
    namespace: String,
    tokenbudget: String,
    limit: String,
    quantile: Quantile,
}

/// One limit of one TokenBudget, whatever it counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LimitLabels {
    namespace: String,
    tokenbudget: String,
    limit: String,
}

impl LimitLabels {
    pub(super) fn of(book: &BookLabels) -> Self {
        Self { namespace: book.namespace.clone(), tokenbudget: book.tokenbudget.clone(), limit: book.limit.clone() }
    }
}

/// What a call of the ledger is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the labels' values")]
pub(super) enum CallKind {
    beat,
    draw,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabels {
    pub(super) namespace: String,
    pub(super) tokenbudget: String,
    pub(super) kind: CallKind,
}

impl ReservedLabels {
    pub(super) fn of(book: &BookLabels) -> [Self; 2] {
        [Quantile::Median, Quantile::Tail].map(|quantile| Self {
            namespace: book.namespace.clone(),
            tokenbudget: book.tokenbudget.clone(),
            limit: book.limit.clone(),
            quantile,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub(super) kind: LedgerErrorKind,
}
