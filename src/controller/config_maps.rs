//! The two ConfigMaps that the pods mount: the agent (one for each namespace) and the policies (one for each Deployment).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::{Api, Resource, ResourceExt};
use sha2::{Digest, Sha256};

use super::admission;
use super::context::Context;
use super::validate::Target;
use super::{Error, World};
use crate::api::{FIELD_MANAGER, TokenBudget};
use crate::ledger::PolicyFile;
use crate::litellm::{AGENT_CONFIG_MAP, agent_config_map, agent_digest, policy_config_map_name};

/// How often an unchanged ConfigMap is applied again, in case that somebody deleted or changed it.
const HEAL: Duration = Duration::from_secs(300);

/// The label by which a ConfigMap is known as ours.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const OURS: &str = "tokenbudget";

/// The file of the policies.
const POLICIES: &str = "policy.json";

/// What was applied last, by namespace and name.
pub type AppliedMaps = BTreeMap<(String, String), (Vec<u8>, Instant)>;

/// Keeps both ConfigMaps as they should be.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn keep(tb: &TokenBudget, ctx: &Context, world: &World, target: &Target) -> Result<(), Error> {
    let namespace = tb.namespace().unwrap_or_default();
    // The agent is the same file in every namespace: it is not made, and hashed, again for each pass.
    let digest = agent_digest().as_bytes().to_vec();
    apply(ctx, &namespace, AGENT_CONFIG_MAP, digest, || agent_config_map(&namespace)).await?;
    if let Some(map) = policies(ctx, world, &namespace, target) {
        let digest = Sha256::digest(serde_json::to_vec(&map).unwrap_or_default()).to_vec();
        apply(ctx, &namespace, &policy_config_map_name(&target.name()), digest, || map).await?;
    }
    Ok(())
}

/// The policies of all TokenBudgets of a Deployment; none while one of them has not been planned since this operator
/// started, since a file without it would tell the agents that it is gone.
fn policies(ctx: &Context, world: &World, namespace: &str, target: &Target) -> Option<ConfigMap> {
    let deployment = target.name();
    let budgets = world.budgets_of(namespace, &deployment);
    let live: Vec<_> = budgets.iter().filter(|b| b.metadata.deletion_timestamp.is_none()).collect();
    let mut file = PolicyFile::default();
    for budget in &live {
        let uid = budget.uid()?;
        // A TokenBudget that cannot be planned (no ledger) has no policy, and holds up nobody else.
        let Some(policy) = ctx.policy(&uid) else {
            if budget.status.as_ref().is_some_and(|s| !s.limits.is_empty()) {
                return None;
            }
            continue;
        };
        file.token_budgets.push(policy);
    }
    let mut map = ConfigMap::default();
    map.metadata.name = Some(policy_config_map_name(&deployment));
    map.metadata.namespace = Some(namespace.to_owned());
    map.metadata.labels = Some([(MANAGED_BY.to_owned(), OURS.to_owned())].into());
    map.metadata.owner_references = Some(live.iter().filter_map(|b| b.owner_ref(&())).collect());
    map.data = Some([(POLICIES.to_owned(), serde_json::to_string_pretty(&file).ok()?)].into());
    if admission::is_wanted(&budgets, &target.deployment) {
        admission::add_param(&mut map, target);
    }
    Some(map)
}

fn is_ours(found: &impl ResourceExt) -> bool {
    found.labels().get(MANAGED_BY).is_some_and(|by| by == OURS)
}

/// Refuses a ConfigMap that somebody else made: the apply is by force, and would take it over. One that lost the label still
/// names us as a manager of its fields.
fn refuse_others(found: &impl ResourceExt) -> Result<(), Error> {
    let applied = || found.managed_fields().iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    if is_ours(found) || applied() {
        return Ok(());
    }
    let message = format!(
        "ConfigMap {} is there and not the operator's: delete it or give it another name; or label it {MANAGED_BY}={OURS}, and the \
         operator overwrites it, and deletes it with the last TokenBudget",
        found.name_any()
    );
    // What an API server says to a write that meets what others own.
    Err(kube::Error::Api(Box::new(Status::failure(&message, "Conflict").with_code(409))).into())
}

/// Deletes a ConfigMap that is ours: one of the same name that somebody else made stays.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn delete(ctx: &Context, namespace: &str, name: &str) -> Result<(), Error> {
    let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), namespace);
    let Some(found) = api.get_metadata_opt(name).await? else {
        return Ok(());
    };
    if is_ours(&found) {
        let seen = Preconditions { uid: found.uid(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(seen), ..DeleteParams::default() };
        ctx.ensure_leads()?;
        match api.delete(name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    ctx.applied_maps().remove(&(namespace.to_owned(), name.to_owned()));
    Ok(())
}

/// Takes the policy of one TokenBudget out of those of a Deployment: a process that starts later would wait for its ledger, which
/// is closed, and refuse everything.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn without_policy(ctx: &Context, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
    let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), namespace);
    let Some(found) = api.get_opt(name).await? else { return Ok(()) };
    let Some(map) = less_one(found, uid) else { return Ok(()) };
    ctx.ensure_leads()?;
    api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&map)).await?;
    ctx.applied_maps().remove(&(namespace.to_owned(), name.to_owned()));
    Ok(())
}

/// The ConfigMap without this TokenBudget; `None` where it is not in there, or it is not ours.
fn less_one(found: ConfigMap, uid: &str) -> Option<ConfigMap> {
    if !is_ours(&found) {
        return None;
    }
    let mut data = found.data?;
    let mut file: PolicyFile = serde_json::from_str(data.get(POLICIES)?).ok()?;
    let before = file.token_budgets.len();
    file.token_budgets.retain(|policy| policy.uid != uid);
    if file.token_budgets.len() == before {
        return None;
    }
    data.insert(POLICIES.to_owned(), serde_json::to_string_pretty(&file).ok()?);
    let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
    map.metadata.name = found.metadata.name;
    map.metadata.namespace = found.metadata.namespace;
    map.metadata.labels = found.metadata.labels;
    map.metadata.owner_references = found.metadata.owner_references.map(|mut owners| {
        owners.retain(|owner| owner.uid != uid);
        owners
    });
    Some(map)
}

/// Applies what `make` makes, unless what has this digest was applied lately. The first time it looks whose ConfigMap is there.
async fn apply(
    ctx: &Context,
    namespace: &str,
    name: &str,
    digest: Vec<u8>,
    make: impl FnOnce() -> ConfigMap,
) -> Result<(), Error> {
    let key = (namespace.to_owned(), name.to_owned());
    let is_current = |(known, at): &(Vec<u8>, Instant)| *known == digest && at.elapsed() < HEAL;
    let applied = ctx.applied_maps().get(&key).map(is_current);
    if applied == Some(true) {
        return Ok(());
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), namespace);
    if applied.is_none()
        && let Some(found) = api.get_metadata_opt(name).await?
    {
        refuse_others(&found)?;
    }
    ctx.ensure_leads()?;
    api.patch(name, &params, &Patch::Apply(&make())).await?;
    ctx.applied_maps().insert(key, (digest, Instant::now()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Settings;
    use crate::controller::test_support::{Answers, MISSING, recording};
    use crate::leader::Leadership;
    use crate::ledger::Policy;
    use crate::ops::Metrics;

    fn policy(uid: &str) -> Policy {
        let text = r#"{"version": "x", "tokenBudget": "llm/a", "uid": "UID", "mode": "Enforce", "reserve": "MaxTokens",
            "maxWaitMs": 250, "onLedgerLoss": "SafeShare", "leaseMs": 30000, "beatMs": 500, "limits": []}"#;
        serde_json::from_str(&text.replace("UID", uid)).unwrap()
    }

    fn found(by: &str) -> ConfigMap {
        let file = PolicyFile { token_budgets: vec![policy("a"), policy("b")] };
        let owner = |uid: &str| serde_json::json!({"apiVersion": "x", "kind": "TokenBudget", "name": uid, "uid": uid});
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "m", "namespace": "llm", "labels": {MANAGED_BY: by}, "resourceVersion": "7",
                "ownerReferences": [owner("a"), owner("b")]},
            "data": {POLICIES: serde_json::to_string(&file).unwrap(), "env": "kept"}
        }))
        .unwrap()
    }

    #[test]
    fn a_tokenbudget_that_goes_leaves_the_others_policies() {
        let map = less_one(found(OURS), "a").unwrap();
        let data = map.data.unwrap();
        let file: PolicyFile = serde_json::from_str(&data[POLICIES]).unwrap();
        assert_eq!((file.token_budgets, data["env"].as_str()), (vec![policy("b")], "kept"));
        let owners: Vec<_> = map.metadata.owner_references.unwrap().into_iter().map(|owner| owner.uid).collect();
        assert_eq!((owners, map.metadata.resource_version), (vec!["b".to_owned()], None));
        assert!(less_one(found(OURS), "c").is_none(), "it is in there no more");
        assert!(less_one(found("somebody"), "a").is_none());
    }

    const MAP: &str = "/api/v1/namespaces/llm/configmaps/m";

    /// Applies a ConfigMap twice, with something else the second time, and answers what was asked of the API server.
    async fn applied(answers: Answers) -> (Result<(), Error>, Vec<String>) {
        let (client, told) = recording(answers);
        let ctx = Context::new(client, Settings::default(), Leadership::always(), Metrics::default());
        let mut outcome = Ok(());
        for digest in [b"first", b"other"] {
            outcome = outcome.and(apply(&ctx, "llm", "m", digest.to_vec(), ConfigMap::default).await);
        }
        let told = told.lock().unwrap().clone();
        (outcome, told)
    }

    #[tokio::test]
    async fn a_config_map_of_somebody_else_is_not_touched() {
        let theirs = &[(MAP, 200, r#"{"metadata": {"name": "m", "labels": {"app": "theirs"}}}"#)];
        let (outcome, told) = applied(theirs).await;
        let why = outcome.unwrap_err();
        let why = why.refusal().unwrap();
        assert!(why.starts_with("ConfigMap m is there") && why.contains("delete it"), "{why}");
        assert!(told.iter().all(|asked| asked == "GET"), "{told:?}");
    }

    #[tokio::test]
    async fn whose_a_config_map_is_is_asked_once() {
        let labelled: Answers =
            &[(MAP, 200, r#"{"metadata": {"name": "m", "labels": {"app.kubernetes.io/managed-by": "tokenbudget"}}}"#)];
        let without: Answers =
            &[(MAP, 200, r#"{"metadata": {"name": "m", "managedFields": [{"manager": "tokenbudget"}]}}"#)];
        for found in [labelled, without] {
            let (outcome, told) = applied(found).await;
            outcome.unwrap();
            assert_eq!(told, ["GET", "PATCH", "PATCH"]);
        }
        let (_, told) = applied(&[(MAP, 404, MISSING)]).await;
        assert_eq!(told[..2], ["GET", "PATCH"], "one that is not there is made");
    }
}
