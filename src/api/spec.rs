//! What a user writes.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TokenBudgetStatus;

/// The spec of a TokenBudget: which Deployments spend, what they may spend together, and how it is enforced.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tokenbudget.dev",
    version = "v1alpha1",
    kind = "TokenBudget",
    namespaced,
    status = "TokenBudgetStatus",
    shortname = "tb",
    category = "litellm",
    derive = "PartialEq",
    doc = "A TokenBudget shares one provider quota among all LiteLLM processes of a fleet: together they never spend more than it in any 60 seconds.",
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "TPM", type_ = "string", json_path = ".status.tokensPerMinute"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used"),
    printcolumn(name = "Util", type_ = "string", json_path = ".status.utilization"),
    printcolumn(name = "Replicas", type_ = "string", json_path = ".status.replicas"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "RPM", type_ = "string", json_path = ".status.requestsPerMinute", priority = 1),
    printcolumn(name = "Denied", type_ = "string", json_path = ".status.denied", priority = 1),
    printcolumn(name = "Safe Share", type_ = "string", json_path = ".status.safeShare", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must be at most 52 characters long")
)]
#[serde(rename_all = "camelCase")]
pub struct TokenBudgetSpec {
    /// The Deployments of this namespace whose LiteLLM processes spend from this budget (1 to 16).
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.all(a, self.filter(b, b.name == a.name).size() == 1)")
        .message("targetRefs: each Deployment may be named once"))]
    pub target_refs: Vec<TargetRef>,

    /// The provider quotas to share, one entry for each. Left out: every LiteLLM deployment that declares `tpm` or `rpm`
    /// in LiteLLM's own configuration keeps its value, made fleet-wide.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(a, self.filter(b, b.name == a.name).size() == 1)")
        .message("limits: each name may be used once"))]
    pub limits: Vec<Limit>,

    /// `Enforce` refuses what does not fit with a 429. `Observe` accounts and shows what would have been refused, and
    /// refuses nothing.
    #[serde(default)]
    pub mode: Mode,

    /// What a request is charged before its real usage is known: `MaxTokens` its prompt and the most it may answer (the
    /// budget is never exceeded by calls that name their max_tokens; others are charged a guess), `Estimate` its prompt and
    /// the mean answer (more use, and a bounded excess).
    #[serde(default)]
    pub reserve: ReservePolicy,

    /// How long a request may wait for tokens before it is refused, as a duration such as `250ms` or `1s` (0 to 10 s).
    #[serde(default = "default_max_wait")]
    #[schemars(length(max = 8), regex(pattern = r"^(0|[0-9]+(ms|s))$"))]
    #[x_kube(validation = Rule::new("self == '0' || duration(self) <= duration('10s')")
        .message("maxWait must be at most 10s"))]
    pub max_wait: String,

    /// What a process does when it has not reached the ledger for a lease (30 s; with `Open`, 4 s in one that it never
    /// answered): spend at most its safe share, or `Open`: go back to LiteLLM's own limit in every process, which lets N replicas spend N times the budget.
    #[serde(default)]
    pub on_ledger_loss: LedgerLossPolicy,

    /// The Redis that holds the ledger. Left out: the LiteLLM container's own REDIS_URL, REDIS_HOST or REDIS_SENTINEL_NODES, else the operator's
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSource>,

    /// `Automatic` adds the agent to the pod template of the Deployments, which restarts their pods once. `Manual` leaves
    /// that to you. `Admission` leaves it to the admission policy of the operator's chart (`admission.enabled`), which adds
    /// the agent to new pods that carry the label `tokenbudget.dev/attach: Admission`.
    #[serde(default)]
    pub attach: AttachPolicy,

    /// When pods get the agent of a new version of the operator: `OnPodRestart` when they restart anyway, `RollingUpdate`
    /// at once, by a rollout of the Deployments, with `attach: Automatic`. One TokenBudget that says so is enough for a Deployment.
    #[serde(default)]
    pub agent_update_policy: AgentUpdatePolicy,

    /// Part of every limit that is kept free, in percent (0 to 90), for what the provider counts otherwise than LiteLLM.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 90))]
    pub headroom_percent: i64,

    /// While true the operator changes nothing for this TokenBudget: not the Deployments, not the policy, not the shares.
    /// The processes go on with what they have, and within the budget. Deleting it still cleans up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(percent: &i64) -> bool {
    *percent == 0
}

/// The default of `maxWait`.
fn default_max_wait() -> String {
    "250ms".to_owned()
}

/// A Deployment that runs LiteLLM.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Name of the Deployment.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The container that runs LiteLLM. Left out: the one named `litellm`, `gateway` or `proxy`, else the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
}

/// One provider quota: everything that matches `models` spends from it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.tokensPerMinute) || has(self.requestsPerMinute)")
    .message("a limit needs tokensPerMinute, requestsPerMinute, or both"))]
pub struct Limit {
    /// Name of the limit, unique in this TokenBudget. It stands in messages, status, metrics and the ledger.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
    /// The LiteLLM deployments that spend from it (1 to 16 selectors; one that matches is enough).
    #[schemars(length(min = 1, max = 16))]
    pub models: Vec<DeploymentSelector>,
    /// Tokens that the whole fleet may spend in any 60 seconds (1 to 10^12).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub tokens_per_minute: Option<i64>,
    /// Requests that the whole fleet may send in any 60 seconds (1 to 10^9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_i64))]
    pub requests_per_minute: Option<i64>,
}

/// Selects deployments of LiteLLM's model list. All fields that are given must be equal.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.modelName) || has(self.id) || has(self.litellmModel) || has(self.apiBase)")
    .message("give at least one of modelName, id, litellmModel, apiBase"))]
pub struct DeploymentSelector {
    /// `model_name`: the name of the model group that clients ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub model_name: Option<String>,
    /// `model_info.id` of one deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub id: Option<String>,
    /// `litellm_params.model`, for example `azure/gpt-4o`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub litellm_model: Option<String>,
    /// `litellm_params.api_base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub api_base: Option<String>,
}

/// Whether the budget is enforced or only watched.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Refuse what does not fit.
    #[default]
    Enforce,
    /// Account, show, refuse nothing.
    Observe,
}

/// What a request is charged before its usage is known.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReservePolicy {
    /// The prompt and the most it may answer.
    #[default]
    MaxTokens,
    /// The prompt and the mean answer.
    Estimate,
}

/// What a process does without its ledger.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LedgerLossPolicy {
    /// Spend at most the safe share.
    #[default]
    SafeShare,
    /// Fall back to LiteLLM's own limit in every process.
    Open,
}

/// Who adds the agent to the pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachPolicy {
    /// The operator, by a server-side apply to the pod template.
    #[default]
    Automatic,
    /// The user.
    Manual,
    /// The chart's MutatingAdmissionPolicy, when a pod is made.
    Admission,
}

/// When pods get a new agent.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentUpdatePolicy {
    /// When they restart for another reason.
    #[default]
    OnPodRestart,
    /// At once, by a rollout.
    RollingUpdate,
}

/// Where the ledger's Redis is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RedisSource {
    /// A key of a Secret in this namespace that holds a URL: `redis://[user:password@]host:port[/db]`, of a server or of any
    /// node of a Redis Cluster; or `redis+sentinel://[user:password@]host:port[,host:port]/service[/db]`, of Sentinels, where
    /// the options `sentinel_username` and `sentinel_password` may follow. `rediss` for TLS; key `ca.crt` of the same Secret
    /// then holds the CA's certificate, where that is no public one.
    pub url_secret_ref: SecretKeyRef,
}

/// A key of a Secret in the TokenBudget's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl TokenBudgetSpec {
    /// How long a request may wait for tokens, in milliseconds (0 to 10,000); 250 where the text is not a duration, which
    /// the API server does not let through.
    #[must_use]
    pub fn max_wait_ms(&self) -> u64 {
        let parse = |digits: &str, factor: u64| digits.parse::<u64>().ok().map(|n| n.saturating_mul(factor));
        let text = self.max_wait.as_str();
        let ms = if text == "0" {
            Some(0)
        } else if let Some(digits) = text.strip_suffix("ms") {
            parse(digits, 1)
        } else {
            text.strip_suffix('s').and_then(|digits| parse(digits, 1000))
        };
        ms.unwrap_or(250).min(10_000)
    }

    /// What is left of a provider's quota without the headroom: a part of it, rounded down, and at least 1.
    #[must_use]
    pub fn without_headroom(&self, quota: u64) -> u64 {
        let kept = u64::try_from(100 - self.headroom_percent.clamp(0, 90)).unwrap_or(100);
        // Quotas are at most 10^12, but what LiteLLM declares has no bound.
        let part = u128::from(quota) * u128::from(kept) / 100;
        u64::try_from(part).unwrap_or(u64::MAX).max(1)
    }

    /// Whether the limits follow from what LiteLLM's own configuration declares.
    #[must_use]
    pub fn derives_limits(&self) -> bool {
        self.limits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> TokenBudgetSpec {
        serde_saphyr::from_str(&format!("{{targetRefs: [{{name: litellm}}], {yaml}}}")).unwrap()
    }

    fn waiting(text: &str) -> u64 {
        spec(&format!("maxWait: {text}")).max_wait_ms()
    }

    #[test]
    fn the_headroom_is_a_part_of_the_quota() {
        let left = |percent: u8, quota| spec(&format!("headroomPercent: {percent}")).without_headroom(quota);
        assert_eq!([left(0, 60_000), left(5, 60_000), left(90, 5), left(33, 100)], [60_000, 57_000, 1, 67]);
        assert_eq!(left(0, u64::MAX), u64::MAX);
        assert!(!serde_json::to_string(&spec("headroomPercent: 0")).unwrap().contains("headroom"));
    }

    #[test]
    fn max_wait_reads_durations() {
        assert_eq!([waiting("0"), waiting("250ms"), waiting("2s"), waiting("60s")], [0, 250, 2_000, 10_000]);
    }
}
