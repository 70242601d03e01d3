//! The two ConfigMaps that the pods mount: the agent (one for each namespace) and the policies (one for each Deployment).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
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
    map.data = Some([("policy.json".to_owned(), serde_json::to_string_pretty(&file).ok()?)].into());
    if admission::is_wanted(&budgets, &target.deployment) {
        admission::add_param(&mut map, target);
    }
    Some(map)
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
    if found.labels().get(MANAGED_BY).is_some_and(|by| by == OURS) {
        let seen = Preconditions { uid: found.uid(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(seen), ..DeleteParams::default() };
        match api.delete(name, &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    ctx.applied_maps().remove(&(namespace.to_owned(), name.to_owned()));
    Ok(())
}

/// Applies what `make` makes, unless what has this digest was applied lately.
async fn apply(
    ctx: &Context,
    namespace: &str,
    name: &str,
    digest: Vec<u8>,
    make: impl FnOnce() -> ConfigMap,
) -> Result<(), Error> {
    let key = (namespace.to_owned(), name.to_owned());
    let is_current = |(known, at): &(Vec<u8>, Instant)| *known == digest && at.elapsed() < HEAL;
    if ctx.applied_maps().get(&key).is_some_and(is_current) {
        return Ok(());
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), namespace);
    ctx.ensure_leads()?;
    api.patch(name, &params, &Patch::Apply(&make())).await?;
    ctx.applied_maps().insert(key, (digest, Instant::now()));
    Ok(())
}
