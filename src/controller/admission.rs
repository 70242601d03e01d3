//! `attach: Admission`: the chart's `MutatingAdmissionPolicy` gives the agent to new pods. The operator keeps the ConfigMap
//! that it reads, says what is missing, and takes out of the pod template what `attach: Automatic` put there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, Resource, ResourceExt};

use super::context::Context;
use super::memory::Memory;
use super::observe::Observed;
use super::overlap::{kept, standing};
use super::reading::{Patience, Reading, recent};
use super::validate::{Problem, Target};
use super::writes::Failed;
use super::{Error, World, detach};
use crate::api::{AttachPolicy, Reason, TokenBudget};
use crate::litellm::{
    ATTACH_LABEL, ATTACH_VALUE, Refusal, admission, asks_for_agent, is_attached_by_us, policy_config_map_name,
};

/// How long an answer about the policy is used.
const AGE: Duration = Duration::from_secs(30);

/// How long the API server may take to see a ConfigMap that was written: pods are not restarted before.
const SETTLED: Duration = Duration::from_secs(2);

/// The last answer about the policy: why it gives no agent to anybody.
pub type LastAnswer = Option<Reading<(), Option<Problem>>>;

/// Why the policy gives no agent to anybody, if so.
///
/// # Errors
/// When the API server does not answer.
pub async fn unavailable(ctx: &Context, patience: Patience) -> Result<Option<Problem>, Error> {
    let mut last = ctx.admission_policy.lock().await;
    let read = async {
        let what = what_is_missing(&ctx.client, ctx.settings.admission_policy.as_deref()).await?;
        Ok(what.map(|what| Problem {
            reason: Reason::AdmissionUnavailable,
            message: format!("{what}, or use attach: Automatic or Manual"),
        }))
    };
    Ok(recent(&mut last, None, (), AGE, patience, read).await?)
}

async fn what_is_missing(client: &Client, policy: Option<&str>) -> Result<Option<String>, kube::Error> {
    let version = MutatingAdmissionPolicy::api_version(&());
    let served = match client.list_api_group_resources(&version).await {
        Ok(list) => list.resources.iter().any(|r| r.name == MutatingAdmissionPolicy::plural(&())),
        Err(kube::Error::Api(status)) if status.code == 404 => false,
        Err(error) => return Err(error),
    };
    if !served {
        return Ok(Some(format!(
            "the API server does not serve MutatingAdmissionPolicy of {version}: upgrade to Kubernetes 1.36, then run helm \
             upgrade"
        )));
    }
    let Some(policy) = policy else {
        return Ok(Some(
            "the chart was installed without its admission policy: set admission.enabled to true".to_owned(),
        ));
    };
    match Api::<MutatingAdmissionPolicy>::all(client.clone()).get_metadata(policy).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            Ok(Some(format!("there is no MutatingAdmissionPolicy {policy}: run helm upgrade with admission.enabled")))
        }
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            Ok(Some(format!("{}: run helm upgrade with admission.enabled", status.message)))
        }
        Err(error) => Err(error),
    }
}

/// Whether these TokenBudgets of a Deployment leave it to the policy. Where one has the operator add the agent, it is there.
#[must_use]
pub fn is_wanted(budgets: &[Arc<TokenBudget>], deployment: &Deployment) -> bool {
    let wants = |policy| standing(budgets, deployment).any(|tb| tb.spec.attach == policy);
    wants(AttachPolicy::Admission) && !wants(AttachPolicy::Automatic)
}

/// Makes the Deployment's ConfigMap one that the policy reads.
pub fn add_param(map: &mut ConfigMap, target: &Target) {
    let Ok(data) = admission(&target.deployment, &target.wanted) else {
        return;
    };
    map.labels_mut().insert(ATTACH_LABEL.to_owned(), ATTACH_VALUE.to_owned());
    map.data.get_or_insert_with(BTreeMap::new).extend(data);
}

/// Leaves the Deployment to the policy. `planned` says whether this pass has written the ConfigMap.
///
/// # Errors
/// When the API server refuses or does not answer. The inner error is what the user has to mend.
pub async fn leave_to_policy(
    tb: &TokenBudget,
    ctx: &Context,
    world: &World,
    memory: &mut Memory,
    observed: &Observed,
    target: &Target,
    planned: bool,
) -> Result<Result<(), Problem>, Error> {
    let (namespace, name) = (tb.namespace().unwrap_or_default(), target.name());
    if !is_wanted(&kept(&namespace, &name, world)?, &target.deployment) {
        return Ok(Ok(()));
    }
    let refused = |refusal: Refusal| Ok(Err(Problem { reason: refusal.reason(), message: refusal.to_string() }));
    if let Err(refusal) = admission(&target.deployment, &target.wanted) {
        return refused(refusal);
    }
    if let Some(problem) = &observed.admission {
        return Ok(Err(problem.clone()));
    }
    if let Err(refusal) = asks_for_agent(&target.deployment) {
        return refused(refusal);
    }
    let key = (namespace.clone(), policy_config_map_name(&name));
    let settled = ctx.applied_maps().get(&key).is_some_and(|map| map.at.elapsed() > SETTLED);
    if !(planned && settled && is_attached_by_us(&target.deployment)) {
        return Ok(Ok(()));
    }
    let targets = &mut memory.targets;
    if let Some(failed) = targets.take_out_failed.get(&name).filter(|failed| failed.stands()) {
        return Ok(Err(failed.problem()));
    }
    let write = detach::take_out(ctx, &namespace, &target.deployment, Some(&target.container));
    let outcome = targets.writes.answer(write).await;
    if let Some(failed) = Failed::of(&outcome, &format!("the agent could not be taken out of Deployment {name}")) {
        let problem = failed.problem();
        targets.take_out_failed.insert(name, failed);
        return Ok(Err(problem));
    }
    targets.take_out_failed.remove(&name);
    outcome.map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::test_support::{REFUSED, answering};

    fn budget(attach: &str) -> Arc<TokenBudget> {
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget", "metadata": {"name": "tb"},
                "spec": {"targetRefs": [{"name": "litellm"}], "attach": attach}
            }))
            .unwrap(),
        )
    }

    #[test]
    fn the_operators_own_patch_comes_first() {
        let wanted =
            |attach: &[&str]| is_wanted(&attach.iter().map(|a| budget(a)).collect::<Vec<_>>(), &Deployment::default());
        assert!(wanted(&["Admission"]) && wanted(&["Admission", "Manual"]));
        assert!(!wanted(&["Manual"]) && !wanted(&[]) && !wanted(&["Admission", "Automatic"]));
        let mut leaving = budget("Automatic");
        Arc::make_mut(&mut leaving).metadata.deletion_timestamp =
            Some(serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap());
        assert!(is_wanted(&[budget("Admission"), leaving], &Deployment::default()));
    }

    /// What is missing where the API server answers each path like this.
    async fn missing(policy: Option<&str>, answers: &'static [(&'static str, u16, &'static str)]) -> Option<String> {
        what_is_missing(&answering(answers), policy).await.unwrap()
    }

    const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
    const OLD: &str = r#"{"kind": "APIResourceList", "groupVersion": "admissionregistration.k8s.io/v1", "resources": [
        {"name": "validatingadmissionpolicies", "singularName": "", "namespaced": false, "kind": "ValidatingAdmissionPolicy",
         "verbs": ["get"]}]}"#;
    const NEW: &str = r#"{"kind": "APIResourceList", "groupVersion": "admissionregistration.k8s.io/v1", "resources": [
        {"name": "mutatingadmissionpolicies", "singularName": "", "namespaced": false, "kind": "MutatingAdmissionPolicy",
         "verbs": ["get"]}]}"#;
    const ONE: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies/tb-attach-ops";

    const THERE: &str =
        r#"{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "tb-attach-ops"}}"#;

    #[tokio::test]
    async fn what_is_missing_comes_with_its_way_out() {
        for old in [missing(Some("tb-attach-ops"), &[(GROUP, 200, OLD)]).await, missing(None, &[]).await] {
            assert!(old.unwrap().contains("upgrade to Kubernetes 1.36"));
        }
        let off = missing(None, &[(GROUP, 200, NEW)]).await.unwrap();
        assert!(off.contains("set admission.enabled to true"), "{off}");
        let gone = missing(Some("tb-attach-ops"), &[(GROUP, 200, NEW)]).await.unwrap();
        assert!(gone.contains("there is no MutatingAdmissionPolicy tb-attach-ops"), "{gone}");
        let refused = missing(Some("tb-attach-ops"), &[(GROUP, 200, NEW), (ONE, 403, REFUSED)]).await.unwrap();
        assert!(refused.starts_with("may not: "), "{refused}");
        assert_eq!(missing(Some("tb-attach-ops"), &[(GROUP, 200, NEW), (ONE, 200, THERE)]).await, None);
    }
}
