//! Step 1, observe: everything that a pass decides on, read once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::core::{Expression, Selector};
use kube::{Api, ResourceExt};
use tracing::warn;

use super::admission;
use super::agent_pod::AgentPod;
use super::context::Context;
use super::counters;
use super::memory::{Memory, TargetMemory, WithoutAgent};
use super::moved;
use super::overlap::kept;
use super::reading::{Patience, or_before, read_of, recent};
use super::redis_url::{Located, NoRedis, locate, read_all};
use super::siblings;
use super::validate::Problem;
use super::vanished;
use super::workers::{self, count_workers};
use super::{Error, World};
use crate::api::{AttachPolicy, TargetRef, TokenBudget};
use crate::ledger::{Ledger, LedgerError, Observation, Report};
use crate::litellm::{
    ATTACHED_LABEL, ATTACHED_VALUE, Inherited, Ref, STARTUP_HOOKS, Setting, choose_container, startup_hooks,
};
use crate::plan::Departed;

/// How long what a Secret or ConfigMap says is used before it is read again.
const READ_AGE: Duration = Duration::from_secs(30);

/// How long a pass looks for pods that are missing.
const LOOKING: Duration = Duration::from_secs(2);

/// What was seen.
#[derive(Default)]
pub struct Observed {
    /// When.
    pub now: Timestamp,
    /// The Deployments, in the order of the spec.
    pub targets: Vec<TargetSeen>,
    /// The ledger's Redis; none while there is no container to ask.
    pub redis: Option<Located>,
    /// What the ledger says, or why it does not.
    pub ledger: Option<Result<Observation, LedgerError>>,
    /// Why the Redis that is named now does not answer, while `redis` and `ledger` are those before it, which do.
    pub unreached: Option<LedgerError>,
    /// Members of which the ledger has lost the record, with their last reports.
    pub lost: BTreeMap<String, Report>,
    /// Worker processes of the pods that began with another number of them than their Deployment has now, by UID.
    pub other_workers: BTreeMap<String, u32>,
    /// What the last pass knew of processes that ended without a record.
    pub departed: Departed,
    /// A ConfigMap of the pods could not be written: it may have a policy of before.
    pub old_files: bool,
    /// The most processes of other TokenBudgets on the same Redis.
    pub beside: u32,
    /// The least time between two beats, as long as not all of them are known, in ms.
    pub least_beat_ms: u64,
    /// Why the admission policy gives no agent to anybody; asked only for `attach: Admission`.
    pub admission: Option<Problem>,
}

/// One Deployment of `targetRefs`.
#[derive(Default)]
pub struct TargetSeen {
    /// As the spec names it.
    pub reference: TargetRef,
    /// The Deployment, if it exists.
    pub deployment: Option<Arc<Deployment>>,
    /// What `envFrom` gives to LiteLLM's startup hooks.
    pub inherited_hooks: Option<Inherited>,
    /// LiteLLM worker processes in each pod, at least 1.
    pub workers: u32,
    /// `maxReplicas` of its autoscaler.
    pub most_replicas: Option<i32>,
    /// Its pods that were made with the agent, by name.
    pub pods: Vec<Arc<AgentPod>>,
    /// Its live pods that were made without.
    pub pods_without_agent: usize,
    /// The TokenBudgets that name it and do not step back, by name.
    pub budgets: Vec<Arc<TokenBudget>>,
}

/// Reads Kubernetes' caches and the ledger.
///
/// # Errors
/// When the API server does not answer, and did not before. A ledger that does not is an observation.
pub async fn observe(tb: &TokenBudget, ctx: &Context, world: &World, memory: &mut Memory) -> Result<Observed, Error> {
    let namespace = tb.namespace().unwrap_or_default();
    let patience = Patience::of_a_pass(Instant::now());
    let mut targets = Vec::with_capacity(tb.spec.target_refs.len());
    for reference in &tb.spec.target_refs {
        targets.push(target(reference, &namespace, ctx, world, memory, patience).await?);
    }
    let mut redis = redis(tb, &namespace, &targets, ctx, memory, patience).await?;
    let uid = tb.uid().unwrap_or_default();
    let (mut ledger, mut unreached) = (None, None);
    if let Some(Ok(location)) = &redis {
        let reached = moved::read(&uid, location, ctx, &mut memory.ledger).await;
        ledger = Some(reached.seen);
        if let Some((instead, why)) = reached.instead {
            (redis, unreached) = (Some(Ok(instead)), Some(why));
        }
    }
    let now = Timestamp::now();
    let beside = memory.ledger.connection.as_ref().map_or(0, |(_, ledger)| ctx.crowd.beside(&uid, &ledger.server()));
    let least_beat_ms = match (&ledger, ctx.crowd.is_known(Instant::now())) {
        (Some(Ok(_)), false) => stored_beat_ms(&uid, memory).await,
        _ => 0,
    };
    for pod in targets.iter().flat_map(|target| &target.pods) {
        world.evidence.keep(pod, now);
    }
    if let Some(Ok(seen)) = &mut ledger {
        siblings::ended(seen).into_iter().for_each(|report| world.evidence.worker_ended(report, now));
        memory.fleet.known.fill(seen);
        memory.fleet.known.note(seen, &world.evidence, now);
        // What it finds can be found by a later pass as well; the plan can not wait.
        let looked = vanished::look(&namespace, &targets, seen, ctx, &world.evidence, memory, now);
        let _ = tokio::time::timeout(LOOKING, looked).await;
        counters::read(tb, seen, &world.evidence, memory, now).await;
    }
    let admission = match tb.spec.attach {
        AttachPolicy::Admission => admission::unavailable(ctx, patience).await?,
        AttachPolicy::Automatic | AttachPolicy::Manual => None,
    };
    let lost = memory.fleet.known.lost().map(|(id, report, _)| (id.to_owned(), report.clone())).collect();
    // Last, as the evidence of ends is read after it: a pod that ended meanwhile must not look as if it ran.
    for target in &mut targets {
        target.pods = world.attached_pods(&namespace, &target.reference.name);
    }
    let seen = ledger.as_ref().and_then(|ledger| ledger.as_ref().ok());
    let TargetMemory { began_with, seen_workers, .. } = &mut memory.targets;
    let other_workers = workers::count(&mut targets, began_with, seen, seen_workers, now);
    let departed = memory.fleet.departed.clone();
    Ok(Observed {
        now,
        targets,
        redis,
        ledger,
        unreached,
        lost,
        departed,
        old_files: !memory.targets.old_files.is_empty(),
        other_workers,
        beside,
        least_beat_ms,
        admission,
    })
}

impl Observed {
    /// LiteLLM worker processes of a pod, which may have begun with other settings than its Deployment has now (`workers`).
    pub fn workers(&self, pod: &AgentPod, workers: u32) -> u32 {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.other_workers.get(uid).copied().unwrap_or(workers)
    }
}

impl TargetSeen {
    /// The LiteLLM container, if there is one.
    fn container(&self) -> Option<&Container> {
        choose_container(self.deployment.as_deref()?, self.reference.container.as_deref()).ok()
    }
}

/// What the policy says that an operator before this one stored: an operator that has just begun knows of few processes, and
/// would make all of them beat faster for a while.
async fn stored_beat_ms(uid: &str, memory: &mut Memory) -> u64 {
    if let (None, Some((_, ledger))) = (memory.ledger.stored_beat_ms, &memory.ledger.connection)
        && let Ok(policy) = ledger.policy(uid).await
    {
        memory.ledger.stored_beat_ms = Some(policy.map_or(0, |policy| policy.beat_ms));
    }
    memory.ledger.stored_beat_ms.unwrap_or(0)
}

async fn target(
    reference: &TargetRef,
    namespace: &str,
    ctx: &Context,
    world: &World,
    memory: &mut Memory,
    patience: Patience,
) -> Result<TargetSeen, Error> {
    let deployment = world.deployment(namespace, &reference.name)?;
    let pods = world.attached_pods(namespace, &reference.name);
    let mut seen = TargetSeen {
        reference: reference.clone(),
        most_replicas: world.most_replicas(namespace, &reference.name),
        inherited_hooks: None,
        workers: 1,
        pods_without_agent: 0,
        budgets: kept(namespace, &reference.name, world)?,
        deployment,
        pods,
    };
    let Some(deployment) = &seen.deployment else {
        return Ok(seen);
    };

    let replicas = deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let living = seen.pods.iter().filter(|p| p.is_living()).count();
    let complete = usize::try_from(replicas).is_ok_and(|replicas| replicas <= living);
    let (of, now) = ((deployment.resource_version(), living), Instant::now());
    let counted = memory.targets.without_agent.get(&reference.name);
    seen.pods_without_agent = match counted {
        Some(counted) if counted.holds(&of, complete, now) => counted.count,
        before => {
            let before = before.map(|counted| &counted.count);
            let count = or_before(before, patience, pods_without_agent(deployment, namespace, ctx)).await?;
            let counted = WithoutAgent { count, at: now, of, complete };
            memory.targets.without_agent.insert(reference.name.clone(), counted);
            count
        }
    };
    if let Ok(container) = choose_container(deployment, reference.container.as_deref()) {
        let generation = deployment.metadata.generation;
        let workers = memory.targets.workers.entry(reference.name.clone()).or_default();
        seen.workers = count_workers(&ctx.client, namespace, container, generation, workers, patience).await?;
        let hooks = memory.targets.hooks.entry(reference.name.clone()).or_default();
        let is_first = hooks.is_none();
        let read = async {
            let (inherited, refused) = inherited_hooks(ctx, namespace, container).await?;
            if let (true, None, Some(refused)) = (is_first, &inherited, refused) {
                warn!("{STARTUP_HOOKS} may stand where it counts as not set, and is replaced then: {refused}");
            }
            Ok(inherited)
        };
        seen.inherited_hooks = recent(hooks, generation, read_of(container), READ_AGE, patience, read).await?;
    }
    Ok(seen)
}

/// What `envFrom` gives to LiteLLM's startup hooks in a container; and what may not be read, where they may stand, too.
///
/// # Errors
/// When the API server does not answer.
pub async fn inherited_hooks(
    ctx: &Context,
    namespace: &str,
    container: &Container,
) -> Result<(Option<Inherited>, Option<String>), kube::Error> {
    let setting = startup_hooks(container);
    if setting == Setting::Absent {
        return Ok((None, None));
    }
    let values = read_all(&ctx.client, namespace, setting.refs()).await?;
    let value = setting.resolve(STARTUP_HOOKS, &|r: &Ref| values.get(r)).ok().flatten();
    Ok((value.map(|value| Inherited { from: "envFrom".to_owned(), value }), values.refused()))
}

/// Live pods of the Deployment without our label.
async fn pods_without_agent(deployment: &Deployment, namespace: &str, ctx: &Context) -> Result<usize, kube::Error> {
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    let Some(selector) = without_agent(selector) else { return Ok(0) };
    let unfinished = "status.phase!=Succeeded,status.phase!=Failed";
    let params = ListParams::default().labels_from(&selector).fields(unfinished);
    let pods = Api::<PartialObjectMeta<Pod>>::namespaced(ctx.client.clone(), namespace).list(&params).await?;
    Ok(pods.items.len())
}

/// What selects the pods without our label. None of a selector with an operator that this does not know: rather no pod than
/// those of others.
fn without_agent(selector: LabelSelector) -> Option<Selector> {
    let mut selector = Selector::try_from(selector).ok()?;
    selector.extend([Expression::NotEqual(ATTACHED_LABEL.to_owned(), ATTACHED_VALUE.to_owned())]);
    Some(selector)
}

async fn redis(
    tb: &TokenBudget,
    namespace: &str,
    targets: &[TargetSeen],
    ctx: &Context,
    memory: &mut Memory,
    patience: Patience,
) -> Result<Option<Located>, Error> {
    let kept = &mut memory.ledger.location;
    // What is missing may be there any moment.
    if !kept.as_ref().is_some_and(|last| matches!(last.value(), Some(Ok(_)))) {
        *kept = None;
    }
    // Another target, or other variables, may be another Redis: what was read of those before says nothing of it.
    let of = (tb.metadata.generation, targets.iter().map(|target| target.container().map(read_of)).collect());
    let located = locate_for_all(tb, namespace, targets, ctx);
    Ok(recent(kept, None, of, READ_AGE, patience, located).await?)
}

/// The one Redis that all targets name; none while there is no container to ask.
async fn locate_for_all(
    tb: &TokenBudget,
    namespace: &str,
    targets: &[TargetSeen],
    ctx: &Context,
) -> Result<Option<Located>, kube::Error> {
    let wanted = tb.spec.redis.as_ref().map(|redis| &redis.url_secret_ref);
    let mut found: Option<Located> = None;
    for target in targets {
        let Some(container) = target.container() else {
            continue;
        };
        let located = locate(&ctx.client, namespace, wanted, container, ctx.settings.default_redis.as_ref()).await?;
        found = Some(match (found, located) {
            (Some(Ok(a)), Ok(b)) if a != b => Err(NoRedis::several(&target.reference.name)),
            (Some(Err(first)), _) => Err(first),
            (_, located) => located,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Reason;
    use crate::controller::test_support::{answering, context};

    #[tokio::test]
    async fn where_the_ledger_is_is_read_anew_of_other_targets_and_other_variables() {
        let target = |name: &str, host: &str| {
            let container = json!({"name": "litellm", "env": [{"name": "REDIS_HOST", "value": host}]});
            let deployment = json!({"metadata": {"name": name, "namespace": "llm"},
                "spec": {"selector": {}, "template": {"spec": {"containers": [container]}}}});
            TargetSeen {
                reference: TargetRef { name: name.to_owned(), container: None },
                deployment: Some(Arc::new(serde_json::from_value(deployment).unwrap())),
                ..TargetSeen::default()
            }
        };
        let ctx = context(answering(&[]));
        let tb: TokenBudget =
            serde_json::from_value(json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb", "generation": 1}, "spec": {"targetRefs": [{"name": "a"}, {"name": "b"}]}}))
            .unwrap();
        let mut memory = Memory::default();
        let patience = Patience::of_a_pass(Instant::now());
        let mut located = async |targets: &[TargetSeen]| {
            let located = redis(&tb, "llm", targets, &ctx, &mut memory, patience).await.unwrap().unwrap();
            located.map(|location| location.url).map_err(|none| none.reason)
        };
        let first = located(&[target("a", "r1")]).await.unwrap();
        assert_eq!(located(&[target("a", "r1"), target("b", "r2")]).await, Err(Reason::SeveralLedgers));
        assert_eq!(located(&[target("a", "r1"), target("b", "r1")]).await.as_ref(), Ok(&first));
        assert_ne!(located(&[target("a", "r3"), target("b", "r3")]).await.unwrap(), first);
    }

    #[test]
    fn pods_are_selected_as_the_deployment_selects_them() {
        let selected = |selector: serde_json::Value| {
            without_agent(serde_json::from_value(selector).unwrap()).map(|selector| selector.to_string())
        };
        let both = serde_json::json!({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["x"]}]});
        assert_eq!(selected(both).as_deref(), Some("app=a,tier in (x),tokenbudget.dev/agent!=attached"));
        assert_eq!(selected(serde_json::json!({"matchExpressions": [{"key": "tier", "operator": "Near"}]})), None);
    }
}
