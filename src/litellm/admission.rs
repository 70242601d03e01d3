//! `attach: Admission`: what the chart's `MutatingAdmissionPolicy` has to know of a Deployment. It gives the agent to pods
//! that ask for it by label, when they are made; the pod template stays as the user has it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;

use super::attach::owned_by_user;
use super::container::name_of;
use super::entries::{Entry, owned};
use super::{ATTACHED_LABEL, Refusal, STARTUP_HOOKS, Wanted, choose_container, names_agent};

/// Label of the pods that ask for the agent, and of the ConfigMaps that the policy reads.
pub const ATTACH_LABEL: &str = "tokenbudget.dev/attach";

/// Value of [`ATTACH_LABEL`].
pub const ATTACH_VALUE: &str = "Admission";

/// The data that the policy reads, beside the policy file in the Deployment's ConfigMap. `hooks` is `append`, or `keep`
/// where the user's own already name the agent.
///
/// # Errors
/// [`Refusal`]: the pods must be made as they are. Hooks that do not stand in the pod template cannot be appended to.
pub fn admission(deployment: &Deployment, wanted: &Wanted) -> Result<BTreeMap<String, String>, Refusal> {
    let container = choose_container(deployment, wanted.container.as_deref())?;
    let explicit = container.env.iter().flatten().rev().find(|variable| variable.name == STARTUP_HOOKS);
    let hooks = match (explicit, &wanted.inherited_hooks) {
        (Some(variable), _) if variable.value_from.is_some() => {
            return Err(owned_by_user(
                deployment,
                container,
                "valueFrom, which cannot be appended to",
                "<its present value>",
            ));
        }
        (None, Some(inherited)) if names_agent(&inherited.value) => "keep",
        (None, Some(inherited)) => {
            return Err(owned_by_user(deployment, container, &inherited.from, &inherited.value));
        }
        _ => "append",
    };
    let mut data = BTreeMap::from([
        ("deployment".to_owned(), name_of(deployment)),
        ("container".to_owned(), container.name.clone()),
        ("hooks".to_owned(), hooks.to_owned()),
    ]);
    if let Some(secret) = &wanted.redis_secret {
        data.insert("redisSecretName".to_owned(), secret.name.clone());
        data.insert("redisSecretKey".to_owned(), secret.key.clone());
    }
    Ok(data)
}

/// Whether the pod template asks for the agent.
///
/// # Errors
/// [`Refusal::LabelMissing`]
pub fn asks_for_agent(deployment: &Deployment) -> Result<(), Refusal> {
    let labels = deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.labels.as_ref());
    if labels.and_then(|labels| labels.get(ATTACH_LABEL)).is_some_and(|value| value == ATTACH_VALUE) {
        return Ok(());
    }
    Err(Refusal::LabelMissing { deployment: name_of(deployment) })
}

/// Whether it was the operator that put the agent into the pod template.
#[must_use]
pub fn is_attached_by_us(deployment: &Deployment) -> bool {
    owned(deployment).contains(&Entry::Label(ATTACHED_LABEL.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{apply_patch, edit, litellm_helm, set_env, sidecars};
    use super::super::{AGENT_HOOK, Inherited, attachment, detachment};
    use super::*;
    use crate::api::SecretKeyRef;

    fn hooks(deployment: &Deployment, inherited: Option<&str>) -> Result<String, Refusal> {
        let inherited_hooks = inherited.map(|value| Inherited { from: "envFrom".to_owned(), value: value.to_owned() });
        let wanted = Wanted { inherited_hooks, ..Wanted::default() };
        admission(deployment, &wanted).map(|data| data["hooks"].clone())
    }

    #[test]
    fn the_policy_is_told_what_differs() {
        let secret = SecretKeyRef { name: "r".to_owned(), key: "url".to_owned() };
        let data = admission(&litellm_helm(), &Wanted { redis_secret: Some(secret), ..Wanted::default() }).unwrap();
        let expected = [
            ("container", "litellm"),
            ("deployment", "llm-litellm"),
            ("hooks", "append"),
            ("redisSecretKey", "url"),
            ("redisSecretName", "r"),
        ];
        assert!(data.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected), "{data:?}");
        assert!(!admission(&litellm_helm(), &Wanted::default()).unwrap().contains_key("redisSecretName"));
        assert!(matches!(admission(&sidecars(), &Wanted::default()), Err(Refusal::AmbiguousContainer { .. })));
    }

    #[test]
    fn hooks_in_the_template_are_appended_to_and_others_are_not() {
        let users = set_env(&litellm_helm(), STARTUP_HOOKS, "flags:init");
        assert_eq!(hooks(&users, None).unwrap(), "append");
        assert_eq!(hooks(&users, Some("ignored:one")).unwrap(), "append");
        let both = format!("flags:init,{AGENT_HOOK}");
        assert_eq!(hooks(&litellm_helm(), Some(&both)).unwrap(), "keep");
        let told = hooks(&litellm_helm(), Some("flags:init")).unwrap_err().to_string();
        assert!(told.contains("is set by envFrom") && told.contains(&both), "{told}");
        let from = edit(&litellm_helm(), |container| {
            let yaml = "[{name: LITELLM_WORKER_STARTUP_HOOKS, valueFrom: {configMapKeyRef: {name: c, key: k}}}]";
            container.env = serde_saphyr::from_str(yaml).unwrap();
        });
        assert!(matches!(hooks(&from, None), Err(Refusal::HooksOwnedByUser { .. })));
    }

    #[test]
    fn a_template_asks_by_its_label_alone() {
        let with = |value: &str| {
            let mut deployment = litellm_helm();
            let template = &mut deployment.spec.as_mut().unwrap().template;
            let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
            labels.insert(ATTACH_LABEL.to_owned(), value.to_owned());
            deployment
        };
        assert_eq!(asks_for_agent(&with("Admission")), Ok(()));
        for other in [with("Automatic"), litellm_helm()] {
            let told = asks_for_agent(&other).unwrap_err().to_string();
            assert!(told.ends_with("give it the label tokenbudget.dev/attach: Admission"), "{told}");
        }
    }

    #[test]
    fn what_the_operator_put_in_is_its_own_to_take_out() {
        let ours = apply_patch(&litellm_helm(), &attachment(&litellm_helm(), &Wanted::default()).unwrap().patch);
        assert!(is_attached_by_us(&ours) && !is_attached_by_us(&litellm_helm()));
        let mut pasted = ours.clone();
        pasted.metadata.managed_fields = None;
        assert!(!is_attached_by_us(&pasted));
        assert!(!is_attached_by_us(&apply_patch(&ours, &detachment(&ours, None).patch)));
    }
}
