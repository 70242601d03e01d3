//! What the operator answers. Everything in it is deterministic: the same facts give the same bytes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The observed state of a TokenBudget. Figures are at most 15 s old; transitions are written at once.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TokenBudgetStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, Attached, LedgerReachable, Enforcing, WithinBudget and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The Deployments, for the column TARGET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Pods with the agent / pods there are, for the column REPLICAS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<String>,
    /// Sum of the token limits, in tokens per minute, for the column TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<String>,
    /// Sum of the request limits, in requests per minute, for the column RPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<String>,
    /// Tokens that members report as spent in the last 60 s (requests where no limit counts tokens), for the column USED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// The fullest limit's use of its budget, in percent, for the column UTIL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<String>,
    /// Tokens refused in the last 60 s (requests where no limit counts tokens), for the column DENIED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<String>,
    /// The smallest safe share in tokens (requests where no limit counts tokens), for the column SAFE SHARE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safe_share: Option<String>,
    /// One row for each limit and unit, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into(), "unit".into()]))]
    pub limits: Vec<LimitStatus>,
    /// One row for each pod, limit and unit, by pod name; at most 100, the rest is in the metrics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodStatus>,
    /// What the processes themselves sent to providers without asking LiteLLM's router, so that no limit holds it: their
    /// sums of the last 5 minutes, one row for each kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into()]))]
    pub outside: Vec<OutsideTraffic>,
}

/// One limit in one unit, in which all its amounts are.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LimitStatus {
    /// Name of the limit.
    pub name: String,
    /// `tokens` or `requests`.
    pub unit: String,
    /// What the whole fleet may spend in any 60 s.
    pub budget: i64,
    /// What the members report as spent in the last 60 s, reservations of running requests included.
    pub spent: i64,
    /// The largest `spent` of the last hour: the worst 60 s, as the leading operators saw them each second.
    #[serde(default)]
    pub worst: i64,
    /// What was refused in the last 60 s.
    pub denied: i64,
    /// What is neither lent nor set aside; negative after a budget cut.
    pub pool: i64,
    /// How hard members are pressed to give back what they do not use, in percent: 0 while a fifth of the budget is in the
    /// pool, 100 when less than 4 % is.
    #[serde(default)]
    pub pressure_percent: i64,
    /// Set aside for processes that are not in the ledger: they may spend their safe share.
    pub aside: i64,
    /// The most that a process may spend when it has lost the ledger.
    pub safe_share: i64,
    /// Processes in the ledger.
    pub members: i64,
    /// Where a derived limit comes from: the identity of the LiteLLM deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<String>,
    /// What was reserved for calls, in percent of the tokens that they used. In the limit's first row; missing until the
    /// usage of a call is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_percent: Option<ReservedPercent>,
    /// What LiteLLM's own counters in Redis have, beside what the processes reported: of the last whole minute in which both
    /// are known. In the limit's first row; missing when that is 5 minutes ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<LimitObserved>,
    /// What others than these processes spend of the same quota, a minute. In the limit's first row; missing while
    /// nothing is known of such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<LimitOutside>,
}

/// Reserved in percent of actual, of the last up to 256 calls of each process. 100: exactly what was used; 300: two
/// thirds of what was held back was not needed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReservedPercent {
    /// The median of the processes' medians, each counted as often as it has calls.
    pub p50: i64,
    /// The largest of the processes' 99th percentiles: of all calls together, 99 of 100 had at most that.
    pub p99: i64,
}

/// Two counts of the same minute. A call that ends at the edge of a minute may be in the next one of either; of a limit with
/// more than 20 deployments, or that shares one with another limit, the counters tell a part.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LimitObserved {
    /// Tokens that LiteLLM's own counters have, of whatever process has this Redis.
    pub tokens: i64,
    /// Tokens that the processes of the fleet reported.
    pub reported: i64,
}

/// LiteLLM's own counters in Redis less what the processes reported, of the last minute that showed a difference: above
/// 500 tokens and 2 % in two minutes in a row, and until two in a row show none.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LimitOutside {
    /// Tokens a minute.
    pub tokens: i64,
    /// Requests a minute. LiteLLM counts failed ones, too, also those of the processes themselves.
    pub requests: i64,
}

/// Traffic that did not ask the router.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OutsideTraffic {
    /// `passthrough`, `batch` or `other`.
    pub kind: String,
    /// Requests in 5 minutes.
    pub requests: i64,
    /// Tokens in 5 minutes, as far as they are known.
    pub tokens: i64,
}

/// One pod's part of one limit, summed over its worker processes; its amounts are in its unit.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Name of the pod.
    pub pod: String,
    /// Name of the limit.
    pub limit: String,
    /// `tokens` or `requests`.
    pub unit: String,
    /// What it is entitled to in any 60 s.
    pub share: i64,
    /// What it may spend now.
    pub grant: i64,
    /// What it reports as spent in the last 60 s.
    pub spent: i64,
    /// What it refused in the last 60 s.
    pub denied: i64,
    /// Its worker processes in the ledger.
    pub workers: i64,
    /// `Enforcing`, `Observing`, `Starting`, `Degraded` or `Offline`; `Unknown` of an agent that is newer than the operator.
    pub state: String,
    /// Version of its agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent: String,
}
