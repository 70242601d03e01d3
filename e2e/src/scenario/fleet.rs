//! The LiteLLM fleet of a scenario: what a test waits for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::Rig;

/// The Deployment `litellm` in namespace `llm`, and its TokenBudget.
#[derive(Clone, Copy, Debug)]
pub struct Fleet<'a> {
    rig: &'a Rig,
}

impl<'a> Fleet<'a> {
    /// The fleet in this rig.
    #[must_use]
    pub const fn of(rig: &'a Rig) -> Self {
        Self { rig }
    }

    /// An object of namespace `llm`, as JSON; `Null` when there is none.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.rig.kubectl(&["-n", "llm", "get", kind, name, "--ignore-not-found", "-o", "json"])?;
        Ok(if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    /// Makes a Deployment like `plain` under another name, changed in this way.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn copy_plain(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut object = self.get("deployment", "plain")?;
        object["metadata"] = serde_json::json!({"name": name, "namespace": "llm"});
        object["status"] = Value::Null;
        object["spec"]["selector"]["matchLabels"]["app"] = name.into();
        object["spec"]["template"]["metadata"]["labels"]["app"] = name.into();
        change(&mut object);
        self.rig.apply_text(&object.to_string())
    }

    /// How often the Deployment's pod template has changed.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn rollouts(&self, deployment: &str) -> Result<String> {
        let object = self.get("deployment", deployment)?;
        Ok(text(&object["metadata"]["annotations"]["deployment.kubernetes.io/revision"]).to_owned())
    }

    /// The pods that are Ready and not terminating.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn ready_pods(&self) -> Result<Vec<Value>> {
        let ready = |pod: &Value| {
            pod["metadata"]["deletionTimestamp"].is_null()
                && conditions(pod).iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        Ok(self.pods()?.into_iter().filter(|pod| ready(pod)).collect())
    }

    /// All pods of LiteLLM.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&self.rig.kubectl(&[
            "-n",
            "llm",
            "get",
            "pods",
            "-l",
            "app=litellm",
            "-o",
            "json",
        ])?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until exactly `count` pods are Ready.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn until_ready(&self, count: usize, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let ready = self.ready_pods()?.len();
            if ready == count {
                return Ok(started.elapsed());
            }
            if started.elapsed() > limit {
                let pods = self.rig.kubectl(&["-n", "llm", "get", "pods", "-o", "wide"])?;
                bail!("{ready} of {count} pods are Ready after {} s:\n{pods}", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until nothing that was spent is left in any window, that of pods that are gone included.
    ///
    /// # Errors
    /// When there is something left after the limit.
    pub async fn until_idle(&self, budget: &str, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let rows = self.get("tokenbudget", budget)?["status"]["limits"].as_array().cloned().unwrap_or_default();
            let spent: i64 = rows.iter().filter_map(|row| row["spent"].as_i64()).sum();
            if spent == 0 {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!("TokenBudget {budget}: {spent} are still spent after {} s without load", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Waits until a condition of the TokenBudget has this status and, if given, this reason.
    ///
    /// # Errors
    /// When it has not in time; the text shows the conditions.
    pub async fn until_condition(
        &self,
        budget: &str,
        kind: &str,
        status: &str,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let object = self.get("tokenbudget", budget)?;
            let found = conditions(&object).iter().any(|c| {
                c["type"] == kind && c["status"] == status && reason.is_none_or(|reason| c["reason"] == reason)
            });
            if found {
                return Ok(started.elapsed());
            }
            if started.elapsed() > limit {
                let seen: Vec<String> = conditions(&object)
                    .iter()
                    .map(|c| {
                        format!(
                            "{}={} {}: {}",
                            text(&c["type"]),
                            text(&c["status"]),
                            text(&c["reason"]),
                            text(&c["message"])
                        )
                    })
                    .collect();
                bail!(
                    "TokenBudget {budget}: {kind} is not {status} {} after {} s:\n  {}",
                    reason.unwrap_or_default(),
                    limit.as_secs(),
                    seen.join("\n  ")
                );
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Waits until something is found, and answers how long it took.
///
/// # Errors
/// When it is not found in time, or cannot be looked for.
pub async fn until(what: &str, limit: Duration, mut found: impl FnMut() -> Result<bool>) -> Result<Duration> {
    until_async(what, limit, async || found()).await
}

/// [`until`] where looking takes a while itself.
///
/// # Errors
/// As [`until`].
pub async fn until_async(
    what: &str,
    limit: Duration,
    mut found: impl AsyncFnMut() -> Result<bool>,
) -> Result<Duration> {
    let started = Instant::now();
    while !found().await? {
        if started.elapsed() > limit {
            bail!("not so after {} s: {what}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(started.elapsed())
}

/// The conditions in an object's status.
#[must_use]
pub fn conditions(object: &Value) -> Vec<Value> {
    object["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

/// The message of a condition; empty when there is no such condition.
#[must_use]
pub fn message(object: &Value, kind: &str) -> String {
    conditions(object).iter().find(|c| c["type"] == kind).map(|c| text(&c["message"]).to_owned()).unwrap_or_default()
}

/// A string field, or nothing.
#[must_use]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The name of an object.
#[must_use]
pub fn name_of(object: &Value) -> String {
    text(&object["metadata"]["name"]).to_owned()
}
