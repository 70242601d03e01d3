//! What the operator asked of the API server: its audit log, which `manifests/audit-policy.yaml` limits to the operator.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::fleet::text;
use super::rig::Rig;

/// One request, as a rule of RBAC would name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// API group; empty for the core.
    pub group: String,
    /// Resource, with `/subresource`.
    pub resource: String,
    /// Verb.
    pub verb: String,
}

impl Right {
    /// A right by its parts.
    #[must_use]
    pub fn of(group: &str, resource: &str, verb: &str) -> Self {
        Self { group: group.to_owned(), resource: resource.to_owned(), verb: verb.to_owned() }
    }

    /// Whether it changes anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

/// One answered request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What was asked for.
    pub right: Right,
    /// The object's name; empty for a list.
    pub name: String,
    /// The ServiceAccount's name.
    pub account: String,
    /// HTTP status of the answer.
    pub code: i64,
    /// When it was asked, in milliseconds of Unix time.
    pub at_ms: i64,
}

/// Every request that was answered, or whose answer began, so far.
///
/// # Errors
/// When the log cannot be read.
pub fn requests(rig: &Rig) -> Result<Vec<Request>> {
    let path = rig.paths.audit_log();
    let log = std::fs::read_to_string(&path).with_context(|| format!("no audit log {}", path.display()))?;
    // The last line may be half written.
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(events.filter_map(|event| request(&event)).collect())
}

fn request(event: &Value) -> Option<Request> {
    let object = event.get("objectRef")?;
    let resource = match text(&object["subresource"]) {
        "" => text(&object["resource"]).to_owned(),
        sub => format!("{}/{sub}", text(&object["resource"])),
    };
    let at: jiff::Timestamp = text(&event["requestReceivedTimestamp"]).parse().ok()?;
    Some(Request {
        right: Right::of(text(&object["apiGroup"]), &resource, text(&event["verb"])),
        name: text(&object["name"]).to_owned(),
        account: text(&event["user"]["username"]).rsplit(':').next()?.to_owned(),
        code: event["responseStatus"]["code"].as_i64().unwrap_or_default(),
        at_ms: at.as_millisecond(),
    })
}

/// How often the status of this TokenBudget was written, per minute of the last `window`.
///
/// # Errors
/// When the log cannot be read.
pub fn status_writes_a_minute(rig: &Rig, budget: &str, window: Duration) -> Result<f64> {
    let since = jiff::Timestamp::now().as_millisecond() - i64::try_from(window.as_millis())?;
    let writes = requests(rig)?
        .iter()
        .filter(|r| r.at_ms >= since && r.name == budget && r.right.resource == "tokenbudgets/status")
        .filter(|r| r.right.verb != "get")
        .count();
    Ok(writes as f64 * 60.0 / window.as_secs_f64())
}

/// What the operator's account was seen to use, and what it was refused.
///
/// # Errors
/// When the log cannot be read.
pub fn used(rig: &Rig, account: &str, but: &[&str]) -> Result<(BTreeSet<Right>, BTreeSet<Right>)> {
    let others = |r: &Request| r.account != account || but.contains(&&*r.name);
    let mine: Vec<Request> = requests(rig)?.into_iter().filter(|r| !others(r)).collect();
    let with = |refused: bool| mine.iter().filter(|r| (r.code == 403) == refused).map(|r| r.right.clone()).collect();
    Ok((with(false), with(true)))
}
