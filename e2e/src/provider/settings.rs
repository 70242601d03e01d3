//! How the provider behaves: flags at the start, `PUT /settings` while it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::size::Size;

/// Everything that can be changed while the provider runs.
///
/// A `PUT /settings` may name only some fields: the others stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Seeds answer lengths, latencies and failures.
    pub seed: u64,
    /// Answer tokens per choice; max_tokens of a request always caps it.
    pub answer: Size,
    /// Milliseconds before anything is answered.
    pub latency_ms: Size,
    /// More milliseconds until the first token.
    pub first_token_ms: u64,
    /// Milliseconds for each further token. An answer takes the same time
    /// whether it is streamed or not.
    pub token_ms: f64,
    /// Tokens in one chunk of a stream.
    pub chunk_tokens: u64,
    /// What goes wrong on purpose.
    pub failures: Failures,
    /// Tokens per minute the provider enforces, by model; none by default.
    pub quota: BTreeMap<String, u64>,
    /// The models `GET /v1/models` lists. Any other name is served too.
    pub models: Vec<String>,
}

/// Failures to inject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failures {
    /// Share of requests refused with `status`, 0 to 1.
    pub probability: f64,
    /// The status to refuse with: 429, 500, 503 or any other error.
    pub status: u16,
    /// `Retry-After` of such a refusal, in seconds.
    pub retry_after_s: Option<u64>,
    /// Share of admitted requests whose connection is dropped halfway, 0 to 1.
    pub drop_probability: f64,
}

impl Default for Failures {
    fn default() -> Self {
        Self { probability: 0.0, status: 503, retry_after_s: None, drop_probability: 0.0 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            answer: Size::fixed(50.0),
            latency_ms: Size::fixed(0.0),
            first_token_ms: 0,
            token_ms: 0.0,
            chunk_tokens: 10,
            failures: Failures::default(),
            quota: BTreeMap::new(),
            models: ["gpt-4o", "gpt-4o-mini", "text-embedding-3-small"].map(str::to_owned).to_vec(),
        }
    }
}

impl Settings {
    /// These settings with the fields of `patch` (a JSON object) replaced.
    ///
    /// # Errors
    /// When a field is unknown or its value does not make sense.
    pub fn patched(&self, patch: &serde_json::Value) -> Result<Self, String> {
        if !patch.is_object() {
            return Err("settings must be a JSON object".to_owned());
        }
        let mut now = serde_json::to_value(self).map_err(|e| e.to_string())?;
        merge(&mut now, patch, 0);
        let next: Self = serde_json::from_value(now).map_err(|e| e.to_string())?;
        next.check()?;
        Ok(next)
    }

    /// Whether the values make sense.
    ///
    /// # Errors
    /// Says which does not.
    pub fn check(&self) -> Result<(), String> {
        let share = |name: &str, p: f64| {
            if (0.0..=1.0).contains(&p) { Ok(()) } else { Err(format!("{name} is {p}; it must be between 0 and 1")) }
        };
        share("failures.probability", self.failures.probability)?;
        share("failures.drop_probability", self.failures.drop_probability)?;
        if !(400..600).contains(&self.failures.status) {
            return Err("failures.status must be an error, 400 to 599".to_owned());
        }
        if !(self.token_ms.is_finite() && self.token_ms >= 0.0) {
            return Err("token_ms must be at least 0".to_owned());
        }
        Ok(())
    }
}

/// Objects merge into objects one level down (so `failures` may be partial);
/// deeper, and `quota`, are replaced as a whole.
fn merge(now: &mut serde_json::Value, patch: &serde_json::Value, depth: usize) {
    match (now.as_object_mut(), patch.as_object()) {
        (Some(now), Some(patch)) if depth < 2 => {
            for (name, value) in patch {
                match now.get_mut(name) {
                    Some(old) if name != "quota" => merge(old, value, depth + 1),
                    _ => {
                        now.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        _ => *now = patch.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_changes_only_what_it_names() {
        let settings = Settings::default();
        let next = settings.patched(&json!({"answer": "300~1.5", "failures": {"probability": 0.1}})).unwrap();
        assert_eq!(next.answer, Size::lognormal(300.0, 1.5));
        assert_eq!(next.failures.status, 503);
        assert_eq!(next.seed, settings.seed);
        let next = next.patched(&json!({"quota": {"m": 100}})).unwrap();
        let next = next.patched(&json!({"quota": {}})).unwrap();
        assert!(next.quota.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        let settings = Settings::default();
        for wrong in [
            json!({"anser": 3}),
            json!({"failures": {"probability": 2}}),
            json!({"failures": {"status": 200}}),
            json!({"token_ms": -1}),
            json!([]),
        ] {
            assert!(settings.patched(&wrong).is_err(), "{wrong}");
        }
    }
}
