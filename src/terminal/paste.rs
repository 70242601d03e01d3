//! What a user pastes for `attach: Manual`. It is the operator's own patch ([`attachment`]) in other clothes.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::litellm::{AGENT_CONFIG_MAP, Refusal, STARTUP_HOOKS, Wanted, attachment, choose_container};

/// The form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Print {
    /// Values of LiteLLM's chart, litellm-helm.
    Helm,
    /// A patch for a kustomization.yaml.
    Kustomize,
    /// A strategic-merge patch, for `kubectl patch --patch-file`.
    Yaml,
    /// The same for programs.
    Json,
}

/// Why nothing can be printed.
#[derive(Debug, thiserror::Error)]
pub enum PasteError {
    /// The operator would refuse, too.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A fault of this program.
    #[error("the patch cannot be written: {0}")]
    Yaml(String),
}

/// What is to be pasted. Merged into the Deployment it is what the operator takes for attached.
///
/// # Errors
/// [`PasteError`].
pub fn paste(deployment: &Deployment, wanted: &Wanted, print: Print) -> Result<String, PasteError> {
    let patch = patch(deployment, wanted)?;
    let name = deployment.name_any();
    let order = format!(
        "# Apply the TokenBudget with attach: Manual first: the operator makes the ConfigMap {AGENT_CONFIG_MAP} when it has\n\
         # reached the ledger, and pods wait for it.\n"
    );
    let inherits = inherits(deployment, wanted);
    Ok(match print {
        Print::Helm => {
            let values = yaml(&helm_values(&patch))?;
            format!(
                "# Values of LiteLLM's chart (litellm-helm) that add TokenBudget's agent to Deployment {name}.\n\
                 # Helm replaces lists as a whole: append to those that your values have.\n{order}{inherits}{values}"
            )
        }
        Print::Yaml => {
            let namespace = deployment.namespace().map_or_else(String::new, |namespace| format!(" -n {namespace}"));
            format!(
                "# Adds TokenBudget's agent:\n\
                 # kubectl{namespace} patch deployment {name} --patch-file FILE\n{order}{inherits}{}",
                yaml(&patch)?
            )
        }
        Print::Json => format!("{patch:#}\n"),
        Print::Kustomize => {
            let inner: String = yaml(&patch)?.lines().map(|line| format!("    {line}\n")).collect();
            format!(
                "# Adds TokenBudget's agent: for the patches of your kustomization.yaml.\n{order}{inherits}\
                 patches:\n- target:\n    group: apps\n    version: v1\n    kind: Deployment\n    name: {name}\n  patch: |-\n{inner}"
            )
        }
    })
}

/// The operator's patch, without what only the operator needs, and with the hooks where they are the user's.
fn patch(deployment: &Deployment, wanted: &Wanted) -> Result<Value, Refusal> {
    let mut hooks = None;
    let made = match attachment(deployment, wanted) {
        // The operator does not take the user's hooks over; here it is the user who writes them.
        Err(Refusal::HooksOwnedByUser { value, .. }) if hooks_are_text(deployment, wanted) => {
            let made = attachment(&with_hooks(deployment, wanted, &value), wanted)?;
            hooks = Some(value);
            made
        }
        other => other?,
    };
    let mut patch = made.patch;
    if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
        // Of the live object, which a manifest is not.
        metadata.remove("uid");
        metadata.retain(|_, value| !value.is_null());
    }
    let env = patch.pointer_mut("/spec/template/spec/containers/0/env").and_then(Value::as_array_mut);
    if let (Some(env), Some(hooks)) = (env, hooks) {
        env.insert(0, json!({"name": STARTUP_HOOKS, "value": hooks}));
    }
    Ok(patch)
}

/// Whether the user's hooks stand in the pod template, or come by `envFrom`, and not by `valueFrom`.
fn hooks_are_text(deployment: &Deployment, wanted: &Wanted) -> bool {
    choose_container(deployment, wanted.container.as_deref()).is_ok_and(|container| {
        let mut hooks = container.env.iter().flatten().filter(|variable| variable.name == STARTUP_HOOKS);
        hooks.all(|variable| variable.value_from.is_none())
    })
}

/// The Deployment, with these hooks.
fn with_hooks(deployment: &Deployment, wanted: &Wanted, hooks: &str) -> Deployment {
    let mut changed = deployment.clone();
    let name = choose_container(deployment, wanted.container.as_deref()).map(|container| container.name.clone());
    let containers =
        changed.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()).map(|spec| &mut spec.containers);
    for container in containers.into_iter().flatten().filter(|container| Ok(&container.name) == name.as_ref()) {
        for variable in container.env.iter_mut().flatten().filter(|variable| variable.name == STARTUP_HOOKS) {
            variable.value = Some(hooks.to_owned());
        }
    }
    changed
}

/// A comment where `envFrom` may set the hooks: what `env` sets would hide them.
fn inherits(deployment: &Deployment, wanted: &Wanted) -> String {
    let from = choose_container(deployment, wanted.container.as_deref()).ok().and_then(|c| c.env_from.as_ref());
    if from.is_none_or(Vec::is_empty) {
        return String::new();
    }
    format!(
        "# The container has envFrom. If that sets {STARTUP_HOOKS}, put its value before ours, with a comma between.\n"
    )
}

/// The keys of the chart's values that the parts of the patch belong to.
fn helm_values(patch: &Value) -> Value {
    let part = |pointer: &str| patch.pointer(pointer).cloned().unwrap_or_default();
    json!({
        "podLabels": part("/spec/template/metadata/labels"),
        "extraEnvVars": part("/spec/template/spec/containers/0/env"),
        "volumeMounts": part("/spec/template/spec/containers/0/volumeMounts"),
        "volumes": part("/spec/template/spec/volumes"),
    })
}

fn yaml(value: &Value) -> Result<String, PasteError> {
    serde_saphyr::to_string(value).map_err(|error| PasteError::Yaml(error.to_string()))
}

#[cfg(test)]
mod tests;
