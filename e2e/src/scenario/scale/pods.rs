//! TokenBudgets with pods that the API server has and nobody runs: a node of our own, which says that all its pods are running.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokenbudget::api::TokenBudget;
use tokenbudget::litellm::is_attached;
use tokio::time::{Instant, sleep};

use crate::scenario::rig::create;

/// Where all of it is.
pub const NAMESPACE: &str = "scale";
/// The node of all pods.
pub const NODE: &str = "scale";
/// The `pod-template-hash` of all pods.
const HASH: &str = "5c4d3b2a19";
const AT_ONCE: usize = 24;
const ATTACHED_WITHIN: Duration = Duration::from_secs(300);
/// A kubelet renews its Lease so often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A TokenBudget with its Deployment and pods.
#[derive(Clone, Debug)]
pub struct Made {
    /// Of the Deployment and the TokenBudget.
    pub name: String,
    /// The TokenBudget's.
    pub uid: String,
    /// The ReplicaSet of its pods.
    owner: OwnerReference,
    /// Names and UIDs of its pods.
    pub pods: Vec<(String, String)>,
}

/// The namespace, with the Secret that names the ledger.
///
/// # Errors
/// When the API server refuses it.
pub async fn namespace(client: &Client, redis_url: &str) -> Result<()> {
    create::<Namespace>(&Api::all(client.clone()), json!({"metadata": {"name": NAMESPACE}})).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    create(&secrets, json!({"metadata": {"name": "redis"}, "stringData": {"url": redis_url}})).await.map(drop)
}

/// The node, whose Lease is renewed for as long as the answer is awaited.
///
/// # Errors
/// When the API server refuses it.
pub async fn node(client: &Client) -> Result<impl Future<Output = Result<()>> + use<>> {
    let nodes: Api<Node> = Api::all(client.clone());
    create(&nodes, json!({"metadata": {"name": NODE}})).await?;
    let now = Timestamp::now().to_string();
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Scale", "message": "",
        "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
    nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    Ok(async move {
        loop {
            let spec = json!({"holderIdentity": NODE, "leaseDurationSeconds": 40,
                "renewTime": format!("{:.6}", Timestamp::now())});
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE}, "spec": spec});
            leases.patch(NODE, &PatchParams::apply("scale").force(), &Patch::Apply(lease)).await?;
            sleep(HEARTBEAT).await;
        }
    })
}

/// Makes a TokenBudget of so many tokens per minute, its Deployment, and so many pods with the agent.
///
/// # Errors
/// When the API server refuses something, or the operator does not attach the Deployment.
pub async fn make(client: &Client, name: String, tokens: u64, pods: usize) -> Result<Made> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let labels = json!({"app": name});
    // Paused: its pods are made here, by what the operator made of the template.
    create(
        &deployments,
        json!({"metadata": {"name": name}, "spec": {"paused": true, "replicas": pods, "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": {"automountServiceAccountToken": false,
                "containers": [{"name": "litellm", "image": "ghcr.io/berriai/litellm:v1.106.2"}]}}}}),
    )
    .await?;
    let budgets: Api<TokenBudget> = Api::namespaced(client.clone(), NAMESPACE);
    let budget = create(
        &budgets,
        json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget", "metadata": {"name": name},
            "spec": {"targetRefs": [{"name": name}], "redis": {"urlSecretRef": {"name": "redis", "key": "url"}},
                "limits": [{"name": super::LIMIT, "models": [{"modelName": "m"}], "tokensPerMinute": tokens}]}}),
    )
    .await?;
    let uid = budget.uid().context("a TokenBudget without UID")?;
    let began = Instant::now();
    let deployment = loop {
        let deployment = deployments.get(&name).await?;
        if is_attached(&deployment) {
            break deployment;
        }
        if began.elapsed() > ATTACHED_WITHIN {
            bail!("Deployment {name} was not attached in {ATTACHED_WITHIN:?}");
        }
        sleep(Duration::from_millis(500)).await;
    };
    // What the pods name as their owner. Its own selector is another, so that its controller leaves them alone.
    let others = json!({"of": "nobody"});
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), NAMESPACE);
    let set = create(
        &sets,
        json!({"metadata": {"name": format!("{name}-{HASH}")}, "spec": {"replicas": 0, "selector": {"matchLabels": others},
            "template": {"metadata": {"labels": others}, "spec": {"containers": [{"name": "none", "image": "none"}]}}}}),
    )
    .await?;
    let owner = set.owner_ref(&()).context("a ReplicaSet without UID")?;
    let mut made = Made { name, uid, owner, pods: Vec::new() };
    add(client, &deployment, &mut made, 0..pods).await?;
    Ok(made)
}

/// Takes pods away at once, as a node that is gone would, and makes as many new ones.
///
/// # Errors
/// When the API server refuses something.
pub async fn replace(client: &Client, made: &mut Made, count: usize) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let old: Vec<_> = made.pods.drain(..count).collect();
    let now = Timestamp::now().to_string();
    let ended = |name: String| {
        let api = &api;
        let state = json!({"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": now}});
        async move {
            let patch =
                Patch::Merge(json!({"status": {"phase": "Failed", "containerStatuses": [container(&state, false)]}}));
            api.patch_status(&name, &PatchParams::default(), &patch).await?;
            api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
            anyhow::Ok(())
        }
    };
    stream::iter(old).map(|(name, _)| ended(name)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let deployment = deployments.get(&made.name).await?;
    let first = made.pods.len() + count;
    add(client, &deployment, made, first..first + count).await
}

async fn add(client: &Client, deployment: &Deployment, made: &mut Made, which: std::ops::Range<usize>) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let template = deployment.spec.as_ref().map(|spec| &spec.template).context("a Deployment without template")?;
    let template = serde_json::to_value(template)?;
    let one = async |index: usize| -> Result<(String, String)> {
        let name = format!("{}-{index}", made.name);
        let mut pod = template.clone();
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["labels"]["pod-template-hash"] = json!(HASH);
        pod["metadata"]["ownerReferences"] = json!([made.owner]);
        pod["spec"]["nodeName"] = json!(NODE);
        pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        let created: Pod = create(&api, pod).await?;
        let now = Timestamp::now().to_string();
        let state = json!({"running": {"startedAt": now}});
        let status = json!({"status": {"phase": "Running", "startTime": now, "podIP": "10.255.0.1",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            "containerStatuses": [container(&state, true)]}});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok((name, created.uid().context("a pod without UID")?))
    };
    let new: Vec<_> = stream::iter(which).map(one).buffer_unordered(AT_ONCE).try_collect().await?;
    made.pods.extend(new);
    Ok(())
}

fn container(state: &Value, ready: bool) -> Value {
    json!({"name": "litellm", "image": "ghcr.io/berriai/litellm:v1.106.2", "imageID": "", "ready": ready, "restartCount": 0,
        "started": ready, "state": state})
}
