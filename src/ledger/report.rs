//! What a member says about itself.

use serde::{Deserialize, Serialize};

use super::usage::{self, Calls, LimitUsage, OutsideUsage};

/// How a member does, by its own words. `Offline` is never reported: it follows from missing answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// LiteLLM has no router yet.
    Starting,
    /// Admits by its grant.
    Enforcing,
    /// Accounts, refuses nothing.
    Observing,
    /// A hook or an attribute of LiteLLM is missing; `problems` says which.
    Degraded,
    /// A word that this operator does not know (a newer agent).
    #[serde(other)]
    Unknown,
}

impl MemberState {
    /// Its name, as in reports and in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Enforcing => "Enforcing",
            Self::Observing => "Observing",
            Self::Degraded => "Degraded",
            Self::Unknown => "Unknown",
        }
    }
}

/// The worker processes of one supervisor, by their ids inside their container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Siblings {
    /// The process that starts them.
    pub supervisor: u32,
    /// Those that it has, the one that says so among them.
    pub workers: Vec<u32>,
}

/// A member's report, stored by its calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the node; empty when the agent does not know it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Name of the container, to match the kubelet's evidence.
    pub container: String,
    /// Process id of the worker inside its container.
    pub worker: u32,
    /// When the worker started, ms since 1970 by the pod's clock.
    pub started_ms: u64,
    /// The worker processes beside it; `None` when it does not know.
    #[serde(default, deserialize_with = "usage::siblings", skip_serializing_if = "Option::is_none")]
    pub siblings: Option<Siblings>,
    /// Version of the agent.
    pub agent: String,
    /// Version of the policy it follows; empty while it has none.
    #[serde(default)]
    pub policy: String,
    /// How it does.
    pub state: MemberState,
    /// What keeps it from enforcing, in sentences.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Deployments that declare a `tpm` or `rpm` and that no explicit limit of another TokenBudget matches; `None` while `Starting`.
    #[serde(default)]
    pub declared: Option<Vec<Declared>>,
    /// The router of this process keeps its counters in memory only: LiteLLM's counters in Redis lack its calls.
    #[serde(default, deserialize_with = "usage::private", skip_serializing_if = "std::ops::Not::not")]
    pub private: bool,
    /// What it saw of the traffic of each limit that has a deployment in it; `None` when it does not say.
    #[serde(default, deserialize_with = "usage::limits", skip_serializing_if = "Option::is_none")]
    pub limits: Option<Vec<LimitUsage>>,
    /// Its calls of the ledger in the last whole minute; `None` when it does not say.
    #[serde(default, deserialize_with = "usage::calls", skip_serializing_if = "Option::is_none")]
    pub calls: Option<Calls>,
    /// What it sent to a provider without asking the router.
    #[serde(default, deserialize_with = "usage::outside", skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<OutsideUsage>,
}

impl Report {
    /// Reads a stored report. Numbers that are none (`NaN`) are taken for missing values.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).or_else(|_| serde_json::from_str(&usage::plain_json(text))).ok()
    }
}

/// A deployment of LiteLLM's config that declares limits of its own, as it was before the agent rewrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declared {
    /// Names the same deployment in every process.
    pub identity: String,
    /// `model_name`.
    #[serde(default)]
    pub model_name: Option<String>,
    /// `litellm_params.model`.
    #[serde(default, rename = "litellmModel")]
    pub litellm_model: Option<String>,
    /// `litellm_params.api_base`.
    #[serde(default)]
    pub api_base: Option<String>,
    /// `model_info.id`, if the user set one.
    #[serde(default)]
    pub id: Option<String>,
    /// Declared `tpm`; none above 10^12, which is how some write that there is no limit.
    #[serde(default, deserialize_with = "usage::maybe_amount")]
    pub tokens_per_minute: Option<u64>,
    /// Declared `rpm`, as `tokens_per_minute`.
    #[serde(default, deserialize_with = "usage::maybe_amount")]
    pub requests_per_minute: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_limit_that_is_none_costs_no_more_than_itself() {
        for (declared, wanted) in [("60000", Some(60_000)), ("-1", None), ("999999999999999", None), ("null", None)] {
            let report: Report = serde_json::from_str(&format!(
                r#"{{"pod": "p", "podUid": "u", "container": "litellm", "worker": 1, "startedMs": 0, "agent": "0.1.0",
                    "state": "Enforcing", "declared": [{{"identity": "x", "tokensPerMinute": {declared}}}]}}"#
            ))
            .unwrap();
            assert_eq!(report.declared.unwrap()[0].tokens_per_minute, wanted, "{declared}");
        }
    }

    #[test]
    fn reads_what_the_protocol_shows() {
        let report: Report = serde_json::from_str(
            r#"{"pod": "litellm-7d", "podUid": "u", "container": "litellm", "worker": 17, "startedMs": 1790000000000,
                "agent": "0.1.0", "policy": "9f3c0a1b", "state": "Enforcing", "problems": [], "later": 1,
                "declared": [{"identity": "id=x", "modelName": "gpt-4o", "litellmModel": "openai/gpt-4o",
                              "apiBase": "http://p", "id": null, "tokensPerMinute": 60000, "requestsPerMinute": null}]}"#,
        )
        .unwrap();
        assert_eq!(report.state, MemberState::Enforcing);
        assert_eq!(report.declared.as_ref().unwrap()[0].tokens_per_minute, Some(60_000));
        let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(again, report);
    }

    #[test]
    fn an_unknown_state_is_no_error() {
        let state: MemberState = serde_json::from_str("\"Sleeping\"").unwrap();
        assert_eq!(state, MemberState::Unknown);
    }
}
