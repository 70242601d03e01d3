//! The policy that members follow: in the ledger, and as a file for their boot.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::digest;

/// What members do with their grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Refuse what does not fit.
    #[default]
    Enforce,
    /// Account, refuse nothing, rewrite nothing.
    Observe,
    /// Restore everything and stop.
    Detached,
}

/// What a request is charged when it is admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reserve {
    /// Prompt estimate plus the most it may generate.
    #[default]
    MaxTokens,
    /// Prompt estimate plus the learned mean output.
    Estimate,
}

/// What a member does when it has lost the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OnLedgerLoss {
    /// Admit up to its offline amount.
    #[default]
    SafeShare,
    /// Fall back to LiteLLM's own limit: N times the budget.
    Open,
}

/// Budget and safe share of one book, in tokens or requests per minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitPolicy {
    /// What the whole fleet may spend in any 60 s.
    pub budget: u64,
    /// The most a member may spend when it has lost the ledger.
    pub safe: u64,
}

/// A deployment matches when all fields that are given are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelSelector {
    /// `model_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// `model_info.id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `litellm_params.model`.
    #[serde(default, rename = "litellmModel", skip_serializing_if = "Option::is_none")]
    pub litellm_model: Option<String>,
    /// `litellm_params.api_base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_base: Option<String>,
}

/// One limit: its selectors or its derived identity, and one or two units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitPolicy {
    /// Name of the limit, part of its books' keys.
    pub name: String,
    /// Selectors of an explicit limit; any of them may match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelSelector>,
    /// Identity of the deployment whose declared `tpm`/`rpm` this limit keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<String>,
    /// The book in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<UnitPolicy>,
    /// The book in requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<UnitPolicy>,
}

/// The policy of one TokenBudget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Digest of everything else: see [`Policy::stamped`].
    pub version: String,
    /// `namespace/name`, for logs.
    pub token_budget: String,
    /// UID of the TokenBudget.
    pub uid: String,
    /// What members do with their grants.
    pub mode: Mode,
    /// What a request is charged at admission.
    pub reserve: Reserve,
    /// How long a request may wait for an answer, ms.
    pub max_wait_ms: u64,
    /// What a member does without the ledger.
    pub on_ledger_loss: OnLedgerLoss,
    /// How long a grant lasts without an answer, ms.
    pub lease_ms: u64,
    /// Time between beats, ms.
    pub beat_ms: u64,
    /// Limits were left out: members report what they declare.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deriving: bool,
    /// The limits, explicit ones first.
    pub limits: Vec<LimitPolicy>,
}

impl Policy {
    /// The same policy with its version: the first 12 hex digits of the SHA-256 of its canonical JSON without version.
    #[must_use]
    pub fn stamped(mut self) -> Self {
        self.version.clear();
        let mut text = String::new();
        if let Ok(Value::Object(mut map)) = serde_json::to_value(&self) {
            map.remove("version");
            canonical(&Value::Object(map), &mut text);
        }
        self.version = digest(&text, 12);
        self
    }
}

/// What the boot ConfigMap holds as `policy.json`: every TokenBudget of one Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyFile {
    /// In the order of their names.
    pub token_budgets: Vec<Policy>,
}

/// JSON with sorted keys and without spaces, whatever map serde_json was built with.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                let _ = write!(out, "{}:", Value::from(key.as_str()));
                canonical(&map[key], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        serde_json::from_str(
            r#"{"version": "x", "tokenBudget": "llm/azure-gpt-4o", "uid": "u", "mode": "Enforce", "reserve": "MaxTokens",
                "maxWaitMs": 250, "onLedgerLoss": "SafeShare", "leaseMs": 30000, "beatMs": 500,
                "limits": [{"name": "gpt-4o", "models": [{"modelName": "gpt-4o"}],
                            "tokens": {"budget": 1500000, "safe": 250000}, "requests": {"budget": 9000, "safe": 1500}}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_version_follows_the_content_alone() {
        let one = policy().stamped();
        assert_eq!(one.version.len(), 12);
        assert_eq!(one.clone().stamped(), one);
        let mut two = policy();
        two.version = "something else".into();
        assert_eq!(two.clone().stamped().version, one.version);
        two.limits[0].requests = None;
        assert_ne!(two.stamped().version, one.version);
    }

    #[test]
    fn the_version_is_the_digest_of_sorted_json() {
        // printf '%s' '<canonical JSON>' | sha256sum | cut -c1-12
        let text = r#"{"beatMs":500,"leaseMs":30000,"limits":[{"models":[{"modelName":"gpt-4o"}],"name":"gpt-4o","requests":{"budget":9000,"safe":1500},"tokens":{"budget":1500000,"safe":250000}}],"maxWaitMs":250,"mode":"Enforce","onLedgerLoss":"SafeShare","reserve":"MaxTokens","tokenBudget":"llm/azure-gpt-4o","uid":"u"}"#;
        assert_eq!(policy().stamped().version, digest(text, 12));
    }

    #[test]
    fn left_out_fields_stay_out() {
        let text = serde_json::to_string(&policy()).unwrap();
        assert!(!text.contains("deriving") && !text.contains("derived") && !text.contains("null"), "{text}");
    }
}
