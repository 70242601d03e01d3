//! What of ours is in a Deployment: by field manager, and by value.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::{Map, Value};

use super::attach::{REDIS_CA, REDIS_URL};
use super::{AGENT_FILE, ATTACHED_LABEL, ATTACHED_VALUE, Attachment, STARTUP_HOOKS, names_agent};
use crate::api::FIELD_MANAGER;

/// One entry of a pod template that the operator adds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// A label.
    Label(String),
    /// An annotation.
    Annotation(String),
    /// An environment variable of a container.
    Env {
        /// Name of the container.
        container: String,
        /// Name of the variable.
        name: String,
    },
    /// A mount of a container.
    Mount {
        /// Name of the container.
        container: String,
        /// Where it is mounted.
        path: String,
    },
    /// A volume.
    Volume(String),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(name) => write!(f, "label {name}"),
            Self::Annotation(name) => write!(f, "annotation {name}"),
            Self::Env { container, name } => write!(f, "env {name} of container {container}"),
            Self::Mount { container, path } => write!(f, "mount {path} of container {container}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

/// Makes an [`Entry`] for a label or annotation of this name.
type Named = fn(String) -> Entry;

/// The entries in a template's metadata.
const METADATA: [(&str, Named); 2] = [("labels", Entry::Label), ("annotations", Entry::Annotation)];

/// How a Deployment differs from an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Entries that are not there, or with another value.
    pub missing: Vec<Entry>,
    /// Entries that the operator owns and that do not belong there any more.
    pub surplus: Vec<Entry>,
}

impl Difference {
    /// Whether there is none: an apply would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty()
    }

    /// Whether pods would start with another ledger.
    #[must_use]
    pub fn names_another_ledger(&self) -> bool {
        let mut entries = self.missing.iter().chain(&self.surplus);
        entries.any(|entry| matches!(entry, Entry::Env { name, .. } if name == REDIS_URL || name == REDIS_CA))
    }
}

/// What an apply of the attachment would change.
#[must_use]
pub fn difference(deployment: &Deployment, attachment: &Attachment) -> Difference {
    let wanted = entries_of(&attachment.patch);
    let live = serde_json::to_value(deployment).unwrap_or(Value::Null);
    let live = entries_of(&live);
    let missing = wanted
        .iter()
        .filter(|(entry, value)| !live.iter().any(|(other, found)| other == entry && holds(entry, value, found)))
        .map(|(entry, _)| entry.clone())
        .collect();
    let surplus =
        owned(deployment).into_iter().filter(|entry| !wanted.iter().any(|(other, _)| other == entry)).collect();
    Difference { missing, surplus }
}

/// Whether the pod template carries the agent.
#[must_use]
pub fn is_attached(deployment: &Deployment) -> bool {
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    template.is_some_and(|template| carries_agent(template.metadata.as_ref(), template.spec.as_ref()))
}

/// The container that the operator put the agent into; none where the agent is a user's.
#[must_use]
pub fn attached_container(deployment: &Deployment) -> Option<String> {
    owned(deployment).into_iter().find_map(|entry| match entry {
        Entry::Mount { container, .. } => Some(container),
        _ => None,
    })
}

fn carries_agent(metadata: Option<&ObjectMeta>, spec: Option<&PodSpec>) -> bool {
    let labels = metadata.and_then(|metadata| metadata.labels.as_ref());
    let labelled = labels.and_then(|labels| labels.get(ATTACHED_LABEL)).is_some_and(|value| value == ATTACHED_VALUE);
    let containers = spec.map_or(&[][..], |spec| spec.containers.as_slice());
    let mut mounts = containers.iter().flat_map(|container| container.volume_mounts.iter().flatten());
    labelled && mounts.any(|mount| mount.sub_path.as_deref() == Some(AGENT_FILE))
}

/// The entries that our field manager owns by server-side apply.
pub(super) fn owned(deployment: &Deployment) -> BTreeSet<Entry> {
    let all = deployment.metadata.managed_fields.iter().flatten();
    all.filter(|entry| is_ours(entry)).flat_map(entries_of_manager).collect()
}

/// Whether our field manager owns anything in the pod template. Where it does not, the agent there is a user's
/// (`attach: Manual`, or the admission policy's in the pods alone).
#[must_use]
pub fn holds_entries(deployment: &Deployment) -> bool {
    !owned(deployment).is_empty()
}

/// Whether somebody else owns the entry too.
pub(super) fn owned_by_others(deployment: &Deployment, entry: &Entry) -> bool {
    let all = deployment.metadata.managed_fields.iter().flatten();
    all.filter(|manager| !is_ours(manager)).any(|manager| entries_of_manager(manager).contains(entry))
}

/// Whether an item of a list goes from the Deployment when our apply leaves it out: the server keeps it only for a manager
/// that owns the item itself, not for one that changed a field in it (`kubectl set env` owns `f:value` alone).
pub(super) fn goes_with_us(deployment: &Deployment, container: &str, variable: &str) -> bool {
    let item = |entry: &ManagedFieldsEntry| {
        let list = entry.fields_v1.as_ref()?.0.pointer("/f:spec/f:template/f:spec/f:containers")?;
        let [container, variable] =
            [container, variable].map(|name| format!("k:{}", serde_json::json!({"name": name})));
        list.get(container)?.get("f:env")?.get(variable)?.get(".").cloned()
    };
    let mut all = deployment.metadata.managed_fields.iter().flatten();
    let ours = all.clone().any(|entry| is_ours(entry) && item(entry).is_some());
    ours && !all.any(|entry| !is_ours(entry) && item(entry).is_some())
}

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply")
}

/// The entries in a manager's FieldsV1.
fn entries_of_manager(manager: &ManagedFieldsEntry) -> BTreeSet<Entry> {
    let mut found = BTreeSet::new();
    let Some(template) =
        manager.fields_v1.as_ref().and_then(|fields| fields.0.pointer("/f:spec/f:template")).and_then(Value::as_object)
    else {
        return found;
    };
    let under = |parent: &Value, path: &str| -> Map<String, Value> {
        parent.pointer(path).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let template = Value::Object(template.clone());
    for (path, entry) in METADATA {
        let keys = under(&template, &format!("/f:metadata/f:{path}"));
        found.extend(keys.keys().filter_map(|key| Some(entry(key.strip_prefix("f:")?.to_owned()))));
    }
    found.extend(
        under(&template, "/f:spec/f:volumes").keys().filter_map(|key| Some(Entry::Volume(key_of(key, "name")?))),
    );
    for (key, fields) in under(&template, "/f:spec/f:containers") {
        let Some(container) = key_of(&key, "name") else {
            continue;
        };
        found.extend(
            under(&fields, "/f:env")
                .keys()
                .filter_map(|key| Some(Entry::Env { container: container.clone(), name: key_of(key, "name")? })),
        );
        found.extend(
            under(&fields, "/f:volumeMounts")
                .keys()
                .filter_map(|key| Some(Entry::Mount { container: container.clone(), path: key_of(key, "mountPath")? })),
        );
    }
    found
}

/// The value of a list key such as `k:{"name":"litellm"}`.
fn key_of(key: &str, field: &str) -> Option<String> {
    let parsed: Value = serde_json::from_str(key.strip_prefix("k:")?).ok()?;
    parsed.get(field).and_then(Value::as_str).map(str::to_owned)
}

/// The entries of a Deployment, or of a patch to one, with their values.
fn entries_of(deployment: &Value) -> Vec<(Entry, Value)> {
    let mut found = Vec::new();
    let Some(template) = deployment.pointer("/spec/template") else {
        return found;
    };
    let list = |parent: &Value, path: &str| -> Vec<Value> {
        parent.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    for (path, entry) in METADATA {
        let all = template.pointer(&format!("/metadata/{path}")).and_then(Value::as_object);
        found.extend(all.into_iter().flatten().map(|(name, value)| (entry(name.clone()), value.clone())));
    }
    for volume in list(template, "/spec/volumes") {
        found.push((Entry::Volume(text(&volume, "name")), volume));
    }
    for container in list(template, "/spec/containers") {
        let name = text(&container, "name");
        for env in list(&container, "/env") {
            found.push((Entry::Env { container: name.clone(), name: text(&env, "name") }, env));
        }
        for mount in list(&container, "/volumeMounts") {
            found.push((Entry::Mount { container: name.clone(), path: text(&mount, "mountPath") }, mount));
        }
    }
    found
}

/// Whether a live entry is as wanted: the server adds defaults, and others may add hooks of their own.
fn holds(entry: &Entry, wanted: &Value, live: &Value) -> bool {
    if matches!(entry, Entry::Env { name, .. } if name == STARTUP_HOOKS) {
        return live.get("value").and_then(Value::as_str).is_some_and(names_agent);
    }
    covers(wanted, live)
}

/// Whether all that is in `wanted` is in `live`.
fn covers(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            wanted.iter().all(|(key, value)| live.get(key).is_some_and(|found| covers(value, found)))
        }
        _ => wanted == live,
    }
}
