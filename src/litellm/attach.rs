//! The server-side apply that adds the agent to a Deployment, and the one that takes it out.
//!
//! One patch holds everything that the operator wants in the Deployment, whatever number of TokenBudgets name it: two
//! applies by one field manager would erase each other.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, EnvVar};
use serde_json::{Value, json};

use super::container::{name_of, pod_spec};
use super::entries::{Entry, goes_with_us, owned, owned_by_others};
use super::{
    AGENT_CONFIG_MAP, AGENT_FILE, AGENT_HOOK, ATTACH_LABEL, ATTACH_VALUE, ATTACHED_LABEL, ATTACHED_VALUE, CA_KEY,
    DIGEST_ANNOTATION, STARTUP_HOOKS, Setting, agent_digest, choose_container, names_agent, setting,
};
use crate::api::{Reason, SecretKeyRef};
use crate::digest::digest;

/// Names of our volumes.
const AGENT_VOLUME: &str = "tokenbudget-agent";
const POLICY_VOLUME: &str = "tokenbudget-policy";

/// Where the agent finds its policy; its default, so no variable says it.
const POLICY_DIR: &str = "/etc/tokenbudget";

/// Where the agent finds its ledger, where the container's own Redis is not it.
pub(super) const REDIS_URL: &str = "TOKENBUDGET_REDIS_URL";
pub(super) const REDIS_CA: &str = "TOKENBUDGET_REDIS_CA";

/// The working directory of LiteLLM's images, which is on Python's path.
const WORKING_DIR: &str = "/app";

/// What an attachment is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The container that a TokenBudget names.
    pub container: Option<String>,
    /// The Secret that holds the ledger's URL; none where the container's own Redis is the ledger.
    pub redis_secret: Option<SecretKeyRef>,
    /// What `envFrom` gives to `LITELLM_WORKER_STARTUP_HOOKS`, if anything: see [`startup_hooks`].
    pub inherited_hooks: Option<Inherited>,
    /// The pod template names the agent's digest, so that another agent is a rollout.
    pub roll_out_agent: bool,
}

/// A variable that a container has from `envFrom`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Where from, for messages.
    pub from: String,
    /// The value.
    pub value: String,
}

/// The apply patch of an attachment.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// Name of the container that gets the agent.
    pub container: String,
    /// The content, for [`kube::api::Patch::Apply`] by [`crate::api::FIELD_MANAGER`], without force.
    pub patch: Value,
}

/// The apply patch that ends an attachment.
#[derive(Clone, Debug, PartialEq)]
pub struct Detachment {
    /// The content, for [`kube::api::Patch::Apply`] by [`crate::api::FIELD_MANAGER`], without force.
    pub patch: Value,
    /// Set when the agent's file has to stay: the user's own hooks still name it, and a LiteLLM worker that cannot import
    /// a hook does not start. Without a policy the agent does nothing.
    pub stays: Option<String>,
}

/// Why the agent is not added to a Deployment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The container is not there.
    #[error("{}", no_container(deployment, wanted.as_deref(), containers))]
    NoContainer {
        /// Name of the Deployment.
        deployment: String,
        /// The container that was named.
        wanted: Option<String>,
        /// Those that there are.
        containers: Vec<String>,
    },
    /// Several containers could be LiteLLM.
    #[error(
        "Deployment {deployment} has the containers {}, and none is called litellm, gateway or proxy: \
         set targetRefs[].container to the one that runs LiteLLM",
        containers.join(", ")
    )]
    AmbiguousContainer {
        /// Name of the Deployment.
        deployment: String,
        /// The containers that there are.
        containers: Vec<String>,
    },
    /// The hooks are the user's and do not name the agent.
    #[error(
        "LITELLM_WORKER_STARTUP_HOOKS of container {container} in Deployment {deployment} is set by {by}, and is not taken \
         over: set it to \"{value}\""
    )]
    HooksOwnedByUser {
        /// Name of the Deployment.
        deployment: String,
        /// Name of the container.
        container: String,
        /// Where the present value comes from.
        by: String,
        /// The value to set.
        value: String,
    },
    /// With `attach: Admission` the pod template has to ask for the agent.
    #[error(
        "the pod template of Deployment {deployment} does not ask for the agent: give it the label {ATTACH_LABEL}: {ATTACH_VALUE}"
    )]
    LabelMissing {
        /// Name of the Deployment.
        deployment: String,
    },
}

impl Refusal {
    /// The reason to show in the condition.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoContainer { .. } => Reason::NoContainer,
            Self::AmbiguousContainer { .. } => Reason::AmbiguousContainer,
            Self::HooksOwnedByUser { .. } => Reason::HooksOwnedByUser,
            Self::LabelMissing { .. } => Reason::LabelMissing,
        }
    }
}

fn no_container(deployment: &str, wanted: Option<&str>, containers: &[String]) -> String {
    match wanted {
        Some(wanted) => format!(
            "Deployment {deployment} has no container {wanted}; it has {}: correct targetRefs[].container",
            containers.join(", ")
        ),
        None => format!("Deployment {deployment} has no containers"),
    }
}

/// Where `LITELLM_WORKER_STARTUP_HOOKS` of a container could come from by `envFrom`: [`Setting::Absent`] where it could
/// not, or where `env` sets it to more than the agent, which we do. What it resolves to belongs into
/// [`Wanted::inherited_hooks`].
#[must_use]
pub fn startup_hooks(container: &Container) -> Setting {
    let (hooks, rest): (Vec<EnvVar>, _) =
        container.env.iter().flatten().cloned().partition(|variable| variable.name == STARTUP_HOOKS);
    if hooks.iter().any(|variable| variable.value.as_deref() != Some(AGENT_HOOK)) {
        return Setting::Absent;
    }
    // What came there after our entry is what that entry hides.
    let hidden = Container { env: Some(rest), env_from: container.env_from.clone(), ..Container::default() };
    setting(&hidden, STARTUP_HOOKS)
}

/// The name of the ConfigMap with the policies of a Deployment.
#[must_use]
pub fn policy_config_map_name(deployment: &str) -> String {
    let name = format!("tokenbudget-{deployment}");
    // A name has at most 253 characters, and one Deployment name would give the agent's own ConfigMap.
    if name.len() <= 253 && name != AGENT_CONFIG_MAP {
        return name;
    }
    let digest = digest(deployment, 10);
    let head: String = name.chars().take(242).collect();
    format!("{}-{digest}", head.trim_end_matches(['-', '.']))
}

/// The patch that adds the agent to the Deployment. Its content follows from the arguments alone, and applying it to its
/// own result changes nothing.
///
/// The Deployment must come with its `managedFields`: they say whose an entry is.
///
/// # Errors
/// [`Refusal`]: the Deployment must be left as it is.
pub fn attachment(deployment: &Deployment, wanted: &Wanted) -> Result<Attachment, Refusal> {
    let container = choose_container(deployment, wanted.container.as_deref())?;
    let mut env = Vec::new();
    if let Some(hooks) = hooks_to_set(deployment, container, wanted.inherited_hooks.as_ref())? {
        env.push(json!({"name": STARTUP_HOOKS, "value": hooks}));
    }
    env.push(json!({"name": "TOKENBUDGET_CONTAINER", "value": container.name}));
    for (name, path) in [
        ("TOKENBUDGET_NODE_NAME", "spec.nodeName"),
        ("TOKENBUDGET_POD_NAME", "metadata.name"),
        ("TOKENBUDGET_POD_UID", "metadata.uid"),
    ] {
        env.push(json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}));
    }
    if let Some(secret) = &wanted.redis_secret {
        let from = json!({"secretKeyRef": {"name": secret.name, "key": secret.key}});
        env.push(json!({"name": REDIS_URL, "valueFrom": from}));
        let from = json!({"secretKeyRef": {"name": secret.name, "key": CA_KEY, "optional": true}});
        env.push(json!({"name": REDIS_CA, "valueFrom": from}));
    }
    let policy = policy_config_map_name(&name_of(deployment));
    let mut metadata = json!({"labels": {ATTACHED_LABEL: ATTACHED_VALUE}});
    if let Some(digest) = digest_to_set(deployment, wanted.roll_out_agent) {
        metadata["annotations"] = json!({DIGEST_ANNOTATION: digest});
    }
    let patch = apply(
        deployment,
        json!({"template": {
            "metadata": metadata,
            "spec": {
                "containers": [{
                    "name": container.name,
                    "env": env,
                    "volumeMounts": [
                        agent_mount(container),
                        {"name": POLICY_VOLUME, "mountPath": POLICY_DIR, "readOnly": true},
                    ],
                }],
                "volumes": [
                    agent_volume(),
                    {"name": POLICY_VOLUME, "configMap": {"name": policy, "optional": true}},
                ],
            },
        }}),
    );
    Ok(Attachment { container: container.name.clone(), patch })
}

/// The patch that takes out of the Deployment exactly what the operator put in. `inherited` is what `envFrom` gives to the
/// hooks, as in [`Wanted::inherited_hooks`].
#[must_use]
pub fn detachment(deployment: &Deployment, inherited: Option<&Inherited>) -> Detachment {
    let ours = owned(deployment);
    let containers = pod_spec(deployment).map_or(&[][..], |spec| spec.containers.as_slice());
    let still_named = containers.iter().find(|container| {
        let mount = Entry::Mount { container: container.name.clone(), path: agent_path(container) };
        ours.contains(&mount) && hooks_outlive_us(deployment, container, inherited)
    });
    let mut spec = serde_json::Map::new();
    let mut kept: Vec<Value> = containers
        .iter()
        .filter_map(|container| Some(json!({"name": container.name, "env": [users_hooks(deployment, container)?]})))
        .collect();
    if let Some(container) = still_named {
        let mounts = json!([agent_mount(container)]);
        match kept.iter_mut().find(|other| other["name"] == container.name.as_str()) {
            Some(other) => other["volumeMounts"] = mounts,
            None => kept.push(json!({"name": container.name, "volumeMounts": mounts})),
        }
        spec.insert("volumes".to_owned(), json!([agent_volume()]));
    }
    if !kept.is_empty() {
        spec.insert("containers".to_owned(), Value::Array(kept));
    }
    let spec = if spec.is_empty() { Value::Null } else { json!({"template": {"spec": spec}}) };
    let patch = apply(deployment, spec);
    let Some(container) = still_named else {
        return Detachment { patch, stays: None };
    };
    Detachment {
        patch,
        stays: Some(format!(
            "LITELLM_WORKER_STARTUP_HOOKS of container {} in Deployment {} still names {AGENT_HOOK}, so the agent's file \
             stays mounted, and does nothing: take {AGENT_HOOK} out of the value, then the mount, the volume and ConfigMap \
             {AGENT_CONFIG_MAP}",
            container.name,
            name_of(deployment),
        )),
    }
}

/// The user's hooks where they stand in the entry that we made: an apply without it would take them out.
fn users_hooks<'a>(deployment: &Deployment, container: &'a Container) -> Option<&'a EnvVar> {
    let variable = container.env.iter().flatten().rev().find(|variable| variable.name == STARTUP_HOOKS)?;
    let is_theirs = variable.value.as_deref() != Some(AGENT_HOOK)
        && owned_by_others(deployment, &hooks_entry(container))
        && goes_with_us(deployment, &container.name, STARTUP_HOOKS);
    is_theirs.then_some(variable)
}

fn hooks_entry(container: &Container) -> Entry {
    Entry::Env { container: container.name.clone(), name: STARTUP_HOOKS.to_owned() }
}

/// Whether the variable of the hooks is an entry that nobody but us made.
fn is_ours_alone(deployment: &Deployment, container: &Container) -> bool {
    let entry = hooks_entry(container);
    owned(deployment).contains(&entry) && !owned_by_others(deployment, &entry)
}

/// Whether hooks that name the agent are left when our entries are gone.
fn hooks_outlive_us(deployment: &Deployment, container: &Container, inherited: Option<&Inherited>) -> bool {
    match container.env.iter().flatten().rev().find(|variable| variable.name == STARTUP_HOOKS) {
        Some(variable) if !is_ours_alone(deployment, container) => variable.value.as_deref().is_none_or(names_agent),
        _ => inherited.is_some_and(|inherited| names_agent(&inherited.value)),
    }
}

/// The agent's digest for the pod template: the current one to roll it out, else the one that is there already, since
/// taking it out would be a rollout, too.
fn digest_to_set(deployment: &Deployment, roll_out: bool) -> Option<String> {
    if roll_out {
        return Some(agent_digest().to_owned());
    }
    let entry = Entry::Annotation(DIGEST_ANNOTATION.to_owned());
    let template = deployment.spec.as_ref()?.template.metadata.as_ref()?;
    template.annotations.as_ref()?.get(DIGEST_ANNOTATION).filter(|_| owned(deployment).contains(&entry)).cloned()
}

/// The value of the hooks that our patch states; none where the user's own value already names the agent.
fn hooks_to_set(
    deployment: &Deployment,
    container: &Container,
    inherited: Option<&Inherited>,
) -> Result<Option<String>, Refusal> {
    let refuse = |by: &str, present: &str| Err(owned_by_user(deployment, container, by, present));
    let ours = || Ok(Some(AGENT_HOOK.to_owned()));
    let variable = container.env.iter().flatten().rev().find(|variable| variable.name == STARTUP_HOOKS);
    let is_ours_alone = variable.is_some() && is_ours_alone(deployment, container);
    // Our entry hides what came by envFrom after it, and it makes way where that names the agent, too.
    let hides =
        |variable: &EnvVar| is_ours_alone && inherited.is_some() && variable.value.as_deref() == Some(AGENT_HOOK);
    let Some(variable) = variable.filter(|variable| !hides(variable)) else {
        return match inherited {
            Some(inherited) if names_agent(&inherited.value) => Ok(None),
            Some(inherited) => refuse(&inherited.from, &inherited.value),
            None => ours(),
        };
    };
    if variable.value_from.is_some() {
        return refuse("valueFrom, which the operator does not follow", "<its present value>");
    }
    let value = variable.value.as_deref().unwrap_or_default();
    // Where the values are equal, stating ours makes both of us owners, without conflict.
    if value == AGENT_HOOK || is_ours_alone {
        ours()
    } else if names_agent(value) {
        Ok(users_hooks(deployment, container).and_then(|variable| variable.value.clone()))
    } else {
        refuse("you", value)
    }
}

/// The refusal that names the value to use: what is `present`, and the agent.
pub(super) fn owned_by_user(deployment: &Deployment, container: &Container, by: &str, present: &str) -> Refusal {
    let value = match present.trim().trim_end_matches(',') {
        "" => AGENT_HOOK.to_owned(),
        present => format!("{present},{AGENT_HOOK}"),
    };
    let (deployment, container) = (name_of(deployment), container.name.clone());
    Refusal::HooksOwnedByUser { deployment, container, by: by.to_owned(), value }
}

/// An apply of `spec` to the Deployment: an object with our field manager's whole wish, so an absent spec wishes nothing.
fn apply(deployment: &Deployment, spec: Value) -> Value {
    let metadata = &deployment.metadata;
    let mut patch = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        // The uid makes the server refuse when the Deployment was replaced by another of its name.
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
    });
    if let Some(object) = patch.as_object_mut().filter(|_| !spec.is_null()) {
        object.insert("spec".to_owned(), spec);
    }
    patch
}

fn agent_volume() -> Value {
    json!({"name": AGENT_VOLUME, "configMap": {"name": AGENT_CONFIG_MAP}})
}

/// The container's image, if its working directory has to be taken for LiteLLM's: it is none of LiteLLM's own, and the pod sets
/// no other. A pod whose image starts elsewhere does not find the agent, and LiteLLM ends.
#[must_use]
pub fn image_of_unknown_directory(container: &Container) -> Option<&str> {
    let image = container.image.as_deref().filter(|_| container.working_dir.is_none())?;
    let name = image.rsplit('/').next().unwrap_or_default();
    (!name.starts_with("litellm")).then_some(image)
}

fn agent_mount(container: &Container) -> Value {
    json!({"name": AGENT_VOLUME, "mountPath": agent_path(container), "subPath": AGENT_FILE, "readOnly": true})
}

/// Where the agent's file is mounted: in the working directory, so that Python finds it.
fn agent_path(container: &Container) -> String {
    let directory = container.working_dir.as_deref().filter(|path| !path.is_empty()).unwrap_or(WORKING_DIR);
    format!("{}/{AGENT_FILE}", directory.trim_end_matches('/'))
}

#[cfg(test)]
mod tests;
