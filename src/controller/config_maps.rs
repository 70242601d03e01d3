//! The two ConfigMaps that the pods mount: the agent (one for each namespace) and the policies (one for each Deployment).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::admission;
use super::context::Context;
use super::overlap::kept;
use super::validate::Target;
use super::{Error, World};
use crate::api::{FIELD_MANAGER, TokenBudget};
use crate::ledger::Policy;
use crate::litellm::{AGENT_CONFIG_MAP, agent_config_map, agent_digest, policy_config_map_name};

/// How often an unchanged ConfigMap is applied again, in case that somebody deleted or changed it.
const HEAL: Duration = Duration::from_secs(300);

/// The label by which a ConfigMap is known as ours.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const OURS: &str = "tokenbudget";

/// The file of the policies.
const POLICIES: &str = "policy.json";

/// What was applied last, by namespace and name.
pub type AppliedMaps = BTreeMap<(String, String), AppliedMap>;

/// A ConfigMap that this operator has applied.
#[derive(Debug)]
pub struct AppliedMap {
    digest: Vec<u8>,
    /// When.
    pub at: Instant,
    /// The policies that were in it before, of TokenBudgets that this operator has not planned.
    former: Vec<Value>,
}

/// Keeps both ConfigMaps as they should be.
///
/// # Errors
/// When the API server refuses or does not answer, or one of that name is somebody else's.
pub async fn keep(tb: &TokenBudget, ctx: &Context, world: &World, target: &Target) -> Result<(), Error> {
    let namespace = tb.namespace().unwrap_or_default();
    let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), &namespace);
    // The agent is the same file in every namespace: it is not made, and hashed, again for each pass.
    let digest = agent_digest().as_bytes().to_vec();
    if former(ctx, &namespace, AGENT_CONFIG_MAP).is_none()
        && let Some(found) = api.get_metadata_opt(AGENT_CONFIG_MAP).await?
    {
        refuse_others(&found)?;
    }
    apply(ctx, &namespace, AGENT_CONFIG_MAP, digest, Vec::new(), || agent_config_map(&namespace)).await?;

    let name = policy_config_map_name(&target.name());
    let known = former(ctx, &namespace, &name);
    let mut former = match known {
        Some(former) => former,
        None => read_policies(&api, &name).await?,
    };
    former.retain(|policy| uid_of(policy).is_some_and(|uid| ctx.policy(uid).is_none()));
    if let Some(map) = policies(ctx, world, &namespace, target, &former) {
        let digest = Sha256::digest(serde_json::to_vec(&map).unwrap_or_default()).to_vec();
        apply(ctx, &namespace, &name, digest, former, || map).await?;
    }
    Ok(())
}

/// What a ConfigMap held before this operator applied it; none of one that it has not applied yet.
fn former(ctx: &Context, namespace: &str, name: &str) -> Option<Vec<Value>> {
    ctx.applied_maps().get(&(namespace.to_owned(), name.to_owned())).map(|map| map.former.clone())
}

/// The policies in a ConfigMap that is there, as an operator of another version may have written them.
async fn read_policies(api: &Api<ConfigMap>, name: &str) -> Result<Vec<Value>, Error> {
    let Some(found) = api.get_opt(name).await? else { return Ok(Vec::new()) };
    refuse_others(&found)?;
    let file = found.data.as_ref().and_then(|data| serde_json::from_str::<Value>(data.get(POLICIES)?).ok());
    Ok(file.and_then(|file| file["tokenBudgets"].as_array().cloned()).unwrap_or_default())
}

fn uid_of(policy: &Value) -> Option<&str> {
    policy["uid"].as_str()
}

/// A policy in the file: one that this operator planned, or one that stays as it was.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Planned(Policy),
    Former(&'a Value),
}

/// The policies of all TokenBudgets of a Deployment. A file without one of them would tell the agents that it is gone, so one that
/// has not been planned since this operator started (just now, or it is paused, or cannot be) keeps the one that it had. One
/// that had none holds up nobody else; there is no file while there are only such.
fn policies(ctx: &Context, world: &World, namespace: &str, target: &Target, former: &[Value]) -> Option<ConfigMap> {
    let deployment = target.name();
    let budgets = world.budgets_of(namespace, &deployment);
    let live: Vec<_> = budgets.iter().filter(|b| b.metadata.deletion_timestamp.is_none()).collect();
    let (mut entries, mut planned, mut missing) = (Vec::new(), false, false);
    for budget in &live {
        let uid = budget.uid()?;
        let had_limits = budget.status.as_ref().is_some_and(|s| !s.limits.is_empty());
        if let Some(policy) = ctx.policy(&uid) {
            entries.push(Entry::Planned(policy));
            planned = true;
        } else if let Some(policy) = former.iter().find(|policy| had_limits && uid_of(policy) == Some(&uid)) {
            entries.push(Entry::Former(policy));
        } else {
            // Without limits it has no ledger and no policy.
            missing |= had_limits;
        }
    }
    if missing && !planned {
        return None;
    }
    let file = BTreeMap::from([("tokenBudgets", entries)]);
    let mut map = ConfigMap::default();
    map.metadata.name = Some(policy_config_map_name(&deployment));
    map.metadata.namespace = Some(namespace.to_owned());
    map.metadata.labels = Some([(MANAGED_BY.to_owned(), OURS.to_owned())].into());
    map.metadata.owner_references = Some(live.iter().filter_map(|b| b.owner_ref(&())).collect());
    map.data = Some([(POLICIES.to_owned(), serde_json::to_string_pretty(&file).ok()?)].into());
    if admission::is_wanted(&kept(namespace, &deployment, world).ok()?, &target.deployment) {
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
    Err(Error::NotOurs(format!(
        "ConfigMap {} is there and not the operator's: delete it or give it another name; or label it {MANAGED_BY}={OURS}, and the \
         operator overwrites it",
        found.name_any()
    )))
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
/// When the API server refuses or does not answer, somebody else wrote meanwhile, or the file cannot be read.
pub async fn without_policy(ctx: &Context, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
    let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), namespace);
    let Some(found) = api.get_opt(name).await? else { return Ok(()) };
    let Some(map) = less_one(found, uid)? else { return Ok(()) };
    ctx.ensure_leads()?;
    api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&map)).await?;
    ctx.applied_maps().remove(&(namespace.to_owned(), name.to_owned()));
    Ok(())
}

/// The ConfigMap without this TokenBudget; `None` where it is not in there, or it is not ours. The other policies stay as they are,
/// since an operator of another version may have written them.
fn less_one(found: ConfigMap, uid: &str) -> Result<Option<ConfigMap>, Error> {
    if !is_ours(&found) {
        return Ok(None);
    }
    let name = found.name_any();
    let unreadable = |why: String| Error::Unreadable { name: name.clone(), why };
    let mut data = found.data.unwrap_or_default();
    let Some(text) = data.get(POLICIES) else { return Ok(None) };
    let mut file: Value = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    let Some(policies) = file.get_mut("tokenBudgets").and_then(Value::as_array_mut) else {
        return Err(unreadable("it has no list tokenBudgets".to_owned()));
    };
    let before = policies.len();
    policies.retain(|policy| uid_of(policy) != Some(uid));
    if policies.len() == before {
        return Ok(None);
    }
    let text = serde_json::to_string_pretty(&file).map_err(|error| unreadable(error.to_string()))?;
    data.insert(POLICIES.to_owned(), text);
    let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
    map.metadata.name = found.metadata.name;
    map.metadata.namespace = found.metadata.namespace;
    // What somebody wrote since it was read must not be undone: the API server answers 409 then, and it is read again.
    map.metadata.resource_version = found.metadata.resource_version;
    map.metadata.labels = found.metadata.labels;
    map.metadata.owner_references = found.metadata.owner_references.map(|mut owners| {
        owners.retain(|owner| owner.uid != uid);
        owners
    });
    Ok(Some(map))
}

/// Applies what `make` makes, unless what has this digest was applied lately. Before the first time somebody has to look whose
/// ConfigMap is there.
async fn apply(
    ctx: &Context,
    namespace: &str,
    name: &str,
    digest: Vec<u8>,
    former: Vec<Value>,
    make: impl FnOnce() -> ConfigMap,
) -> Result<(), Error> {
    let key = (namespace.to_owned(), name.to_owned());
    if ctx.applied_maps().get(&key).is_some_and(|map| map.digest == digest && map.at.elapsed() < HEAL) {
        return Ok(());
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let api = Api::<ConfigMap>::namespaced(ctx.client.clone(), namespace);
    ctx.ensure_leads()?;
    api.patch(name, &params, &Patch::Apply(&make())).await?;
    ctx.applied_maps().insert(key, AppliedMap { digest, at: Instant::now(), former });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::test_support::{Answers, MISSING, context, recording};
    use crate::ledger::PolicyFile;
    use crate::litellm::Wanted;

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
        let map = less_one(found(OURS), "a").unwrap().unwrap();
        let data = map.data.unwrap();
        let file: PolicyFile = serde_json::from_str(&data[POLICIES]).unwrap();
        assert_eq!((file.token_budgets, data["env"].as_str()), (vec![policy("b")], "kept"));
        let owners: Vec<_> = map.metadata.owner_references.unwrap().into_iter().map(|owner| owner.uid).collect();
        assert_eq!((owners, map.metadata.resource_version), (vec!["b".to_owned()], Some("7".to_owned())));
        assert!(less_one(found(OURS), "c").unwrap().is_none(), "it is in there no more");
        assert!(less_one(found("somebody"), "a").unwrap().is_none());
    }

    #[test]
    fn a_policy_of_another_version_stays_as_it_is_and_a_broken_file_is_an_error() {
        let with = |text: &str| {
            let mut map = found(OURS);
            map.data = Some([(POLICIES.to_owned(), text.to_owned())].into());
            map
        };
        let text = r#"{"tokenBudgets": [{"uid": "a", "mode": "X"}, {"uid": "b", "mode": "X", "new": {"z": 1, "a": [2]}}], "more": 3}"#;
        let map = less_one(with(text), "a").unwrap().unwrap();
        let file: Value = serde_json::from_str(&map.data.unwrap()[POLICIES]).unwrap();
        let left =
            serde_json::json!({"tokenBudgets": [{"uid": "b", "mode": "X", "new": {"z": 1, "a": [2]}}], "more": 3});
        assert_eq!(file, left);
        for broken in ["{", "[]", "{}"] {
            let error = less_one(with(broken), "a").unwrap_err().to_string();
            assert!(error.starts_with("policy.json of ConfigMap m cannot be read"), "{error}");
        }
    }

    const AGENT: &str = "/api/v1/namespaces/llm/configmaps/tokenbudget-agent";
    const MAP: &str = "/api/v1/namespaces/llm/configmaps/tokenbudget-litellm";
    const LABELLED: &str = r#"{"metadata": {"name": "m", "labels": {"app.kubernetes.io/managed-by": "tokenbudget"}}}"#;
    const MANAGED: &str = r#"{"metadata": {"name": "m", "managedFields": [{"manager": "tokenbudget"}]}}"#;
    const THEIRS: &str = r#"{"metadata": {"name": "tokenbudget-litellm", "labels": {"app": "theirs"}}}"#;

    fn budget(name: &str) -> TokenBudget {
        let row = serde_json::json!({"name": "gpt", "unit": "tokens", "budget": 9, "spent": 0, "denied": 0, "pool": 0,
            "aside": 0, "safeShare": 0, "members": 0});
        serde_json::from_value(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": name, "namespace": "llm", "uid": name}, "spec": {"targetRefs": [{"name": "litellm"}]},
            "status": {"limits": [row]}}))
        .unwrap()
    }

    /// Passes of TokenBudget a by an operator that has just begun, each with its policy in this version; empty: it cannot be
    /// planned. Nor can b. Answers what came of it, and of each request its method, the ConfigMap, and the policies in it.
    async fn kept_by(versions: &[&str], answers: Answers) -> (Result<(), Error>, Vec<String>) {
        let (client, told) = recording(answers);
        let ctx = context(client);
        let deployment = serde_json::json!({"metadata": {"name": "litellm", "namespace": "llm"}, "spec": {"selector": {},
            "template": {"spec": {"containers": [{"name": "litellm"}]}}}});
        let world = World::of(deployment.clone()).with_budgets([budget("a"), budget("b")]);
        let target = Target {
            deployment: serde_json::from_value::<k8s_openapi::api::apps::v1::Deployment>(deployment).unwrap().into(),
            container: "litellm".to_owned(),
            wanted: Wanted::default(),
            size: crate::plan::Target { replicas: 1, most_replicas: None, surge: 0, workers: 1 },
            pods: Vec::new(),
            pods_without_agent: 0,
        };
        let mut outcome = Ok(());
        for version in versions {
            if !version.is_empty() {
                ctx.publish_policy(&budget("a"), &Policy { version: (*version).to_owned(), ..policy("a") });
            }
            outcome = outcome.and(keep(&budget("a"), &ctx, &world, &target).await);
        }
        let told = told.lock().unwrap().clone();
        let short = |(method, path, body): &(String, String, String)| {
            let map: ConfigMap = serde_json::from_str(body).unwrap_or_default();
            let policies = map.data.and_then(|data| serde_json::from_str::<PolicyFile>(data.get(POLICIES)?).ok());
            let policies = policies.unwrap_or_default().token_budgets.into_iter();
            let policies: String = policies.map(|policy| format!(" {}={}", policy.uid, policy.version)).collect();
            format!("{method} {}{policies}", path.rsplit('/').next().unwrap().trim_start_matches("tokenbudget-"))
        };
        (outcome, told.iter().map(short).collect())
    }

    async fn kept(answers: Answers) -> (Result<(), Error>, Vec<String>) {
        kept_by(&["1", "2"], answers).await
    }

    #[tokio::test]
    async fn a_config_map_of_somebody_else_is_not_touched() {
        let (outcome, told) = kept(&[(AGENT, 200, LABELLED), (MAP, 200, THEIRS)]).await;
        let why = outcome.unwrap_err();
        let why = why.refusal().unwrap();
        assert!(why.starts_with("ConfigMap tokenbudget-litellm is there") && why.contains("delete it"), "{why}");
        assert_eq!(told, ["GET agent", "PATCH agent", "GET litellm", "GET litellm"]);
        let (outcome, told) = kept(&[(AGENT, 200, THEIRS), (MAP, 200, LABELLED)]).await;
        assert!(outcome.is_err());
        assert_eq!(told, ["GET agent", "GET agent"]);
    }

    #[tokio::test]
    async fn whose_a_config_map_is_is_asked_once() {
        for ours in [&[(AGENT, 200, LABELLED), (MAP, 200, LABELLED)], &[(AGENT, 200, MANAGED), (MAP, 200, MANAGED)]] {
            let (outcome, told) = kept(ours).await;
            outcome.unwrap();
            let wanted = ["GET agent", "PATCH agent", "GET litellm", "PATCH litellm a=1", "PATCH litellm a=2"];
            assert_eq!(told, wanted);
        }
        let (_, told) = kept(&[(AGENT, 404, MISSING)]).await;
        assert_eq!(told[..2], ["GET agent", "PATCH agent"], "one that is not there is made");
    }

    #[tokio::test]
    async fn a_tokenbudget_that_cannot_be_planned_keeps_its_policy_and_holds_up_nobody() {
        let before = found(OURS);
        let body: &'static str = serde_json::to_string(&before).unwrap().leak();
        let answers: Answers = Vec::leak(vec![(AGENT, 200, LABELLED), (MAP, 200, body)]);
        let (outcome, told) = kept(answers).await;
        outcome.unwrap();
        assert_eq!(told[2..], ["GET litellm", "PATCH litellm a=1 b=x", "PATCH litellm a=2 b=x"]);
        let (_, told) = kept_by(&["", "1"], answers).await;
        assert_eq!(told[2..], ["GET litellm", "PATCH litellm a=x b=x", "PATCH litellm a=1 b=x"]);
        let (_, told) = kept_by(&["", "1"], &[(AGENT, 200, LABELLED), (MAP, 404, MISSING)]).await;
        assert_eq!(told[2..], ["GET litellm", "GET litellm", "PATCH litellm a=1"], "there is none to keep");
    }
}
