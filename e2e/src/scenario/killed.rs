//! LiteLLM processes that end without a word of their own: the ledger comes to know of it, by the kubelet, by the node, or as
//! the node is gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::DeleteParams;
use tokenbudget::ledger::{BookId, Ledger, RedisLedger, Timeouts, Unit};
use tokio::task::JoinHandle;

use super::chaos;
use super::checks::{delete_within, manifest, until_attached};
use super::fleet::{Fleet, text, until};
use super::rig::Rig;
use super::scale::members::Members;
use super::scale::{self, pods};

/// The kubelet says it at once, the operator passes each second.
const SOON: Duration = Duration::from_secs(10);

/// The container starts again.
const BOOT: Duration = Duration::from_secs(120);

/// A lease is over, and the other worker's next report has come: 31 s. But a supervisor that waits for a word of the killed one
/// just then does so for the 60 s of `--timeout_worker_healthcheck`, and names it until it has given up.
const WORKER: Duration = Duration::from_secs(150);

/// A lease is over, and the node has been ready for 3 minutes since: 211 to 225 s where nothing is slow.
const VANISHED: Duration = Duration::from_secs(300);

/// The least time until a process that cannot say a word is known to have ended, on a node that lives.
const HELD: Duration = Duration::from_secs(180);

/// The TokenBudget of [`lose_node`].
const ON_LOST_NODE: &str = "on-lost-node";

/// The Deployment and the TokenBudget of [`vanish`].
const VANISHING: &str = "vanishing";

/// A process that ended, and when.
struct Ended {
    ledger: RedisLedger,
    /// Of the fleet's TokenBudget, and its book.
    uid: String,
    book: BookId,
    pod_uid: String,
    at: Instant,
}

/// A node that is gone: how long it took until the ledger knew that its pod has ended.
pub struct LostNode(JoinHandle<Result<Duration>>);

/// A pod that vanished from a node that lives: the same.
pub struct Vanished(JoinHandle<Result<Duration>>);

/// Kills a process of the fleet, and waits for its pod to be ready again.
///
/// # Errors
/// When the ledger does not come to know of it, or the pod does not come back.
pub async fn run(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    let ready = fleet.ready_pods()?.len();
    let pod = chaos::kill_process(rig)?;
    let ended = Ended::of(rig, fleet, "gpt-4o", &pod).await?;
    let took = ended.until_known(SOON).await?;
    println!("check: the ledger knows of a killed process after {:.1} s", took.as_secs_f32());
    fleet.until_ready(ready, BOOT).await.map(drop)
}

/// Kills one of a pod's two workers: the container lives on, so only the other worker can say so.
///
/// # Errors
/// When the ledger does not come to know of it.
pub async fn a_worker(rig: &Rig, fleet: &Fleet<'_>, budget: &str, pod: &str) -> Result<()> {
    let ended = Ended::of(rig, fleet, budget, pod).await?;
    let workers = ended.workers().await?;
    ensure!(workers.len() == 2, "pod {pod} has workers {workers:?}");
    chaos::kill_worker(rig, pod, &workers)?;
    let took = ended.until_known(WORKER).await?;
    println!("check: the ledger knows of a killed worker in a container that lives after {:.0} s", took.as_secs_f32());
    Ok(())
}

/// Deletes a pod by force whose process stands still: its kubelet has nowhere to say that it ended, and the agent cannot.
///
/// # Errors
/// When its process does not come up.
pub async fn vanish(rig: &Rig) -> Result<Vanished> {
    let fleet = Fleet::of(rig);
    fleet.copy_plain(VANISHING, |deployment| deployment["spec"]["replicas"] = 0.into())?;
    let spec = format!(
        "targetRefs: [{{name: {VANISHING}}}]\n  limits: [{{name: a, models: [{{modelName: gpt-4o}}], tokensPerMinute: 6000}}]"
    );
    rig.apply_text(&manifest(VANISHING, &spec))?;
    until_attached(&fleet, VANISHING).await?;
    rig.kubectl(&["-n", "llm", "scale", "deployment", VANISHING, "--replicas=1"])?;
    let row = || Ok::<_, anyhow::Error>(fleet.get("tokenbudget", VANISHING)?["status"]["pods"][0].clone());
    until("its pod enforces", BOOT, || Ok(row()?["state"] == "Enforcing")).await?;
    let pod = text(&row()?["pod"]).to_owned();
    let ended = Ended::of(rig, &fleet, VANISHING, &pod).await?;
    chaos::freeze(rig, &pod)?;
    rig.kubectl(&["-n", "llm", "delete", "pod", &pod, "--grace-period=0", "--force"])?;
    Ok(Vanished(tokio::spawn(async move { ended.until_known(VANISHED).await })))
}

impl Vanished {
    /// Waits until the ledger knows that the pod has ended, and cleans up.
    ///
    /// # Errors
    /// When it does not in time, or did too early.
    pub async fn until_given_up(self, rig: &Rig) -> Result<()> {
        let took = self.0.await??;
        ensure!(took >= HELD, "a frozen process counted as ended after {took:?}: this check is void");
        println!("check: a pod that vanished on a healthy node holds nothing back after {:.0} s", took.as_secs_f32());
        delete_within(rig, VANISHING, Duration::from_secs(30))?;
        rig.kubectl(&["-n", "llm", "delete", "deployment", VANISHING]).map(drop)
    }
}

/// Loses a node with a pod on it, as a cloud takes one away: the process ends, the kubelet is silent, the Node is deleted.
/// The pod is only an object, and its process a member of the load program, as this machine is one node.
///
/// # Errors
/// When the pod's member does not come up.
pub async fn lose_node(rig: &Rig) -> Result<LostNode> {
    let client = rig.client().await?;
    pods::namespace(&client, &rig.redis_url).await?;
    let lease = tokio::spawn(pods::node(&client).await?);
    let made = pods::make(&client, ON_LOST_NODE.to_owned(), 6_000, 1).await?;
    let mut members = Members::new(&rig.redis_url)?;
    scale::started(&mut members, &made, &made.pods).await?;
    let mut ended = Ended {
        ledger: RedisLedger::connect(&rig.redis_url, Timeouts::default())?,
        uid: made.uid,
        book: BookId::new(scale::LIMIT, Unit::Tokens),
        pod_uid: made.pods[0].1.clone(),
        at: Instant::now(),
    };
    // A report goes with the first call.
    while ended.records().await?.is_empty() {
        ensure!(ended.at.elapsed() < SOON, "the member on the node that is lost does not call");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(members);
    lease.abort();
    Api::<Node>::all(client).delete(pods::NODE, &DeleteParams::default()).await?;
    ended.at = Instant::now();
    Ok(LostNode(tokio::spawn(async move { ended.until_known(VANISHED).await })))
}

impl LostNode {
    /// Waits until the ledger knows that the pod has ended, and cleans up.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_given_up(self, rig: &Rig) -> Result<()> {
        let took = self.0.await??;
        println!("check: a pod whose node is gone holds nothing back after {:.0} s", took.as_secs_f32());
        rig.kubectl(&["-n", pods::NAMESPACE, "delete", "tb", ON_LOST_NODE, "--timeout=60s"])?;
        rig.kubectl(&["delete", "namespace", pods::NAMESPACE, "--timeout=60s"]).map(drop)
    }
}

impl Ended {
    async fn of(rig: &Rig, fleet: &Fleet<'_>, budget: &str, pod: &str) -> Result<Self> {
        let budget = fleet.get("tokenbudget", budget)?;
        let ended = Self {
            ledger: RedisLedger::connect(&rig.redis_url, Timeouts::default())?,
            uid: text(&budget["metadata"]["uid"]).to_owned(),
            book: BookId::new(text(&budget["status"]["limits"][0]["name"]), Unit::Tokens),
            pod_uid: text(&fleet.get("pod", pod)?["metadata"]["uid"]).to_owned(),
            at: Instant::now(),
        };
        ensure!(!ended.records().await?.is_empty(), "the ledger has no record of pod {pod}");
        Ok(ended)
    }

    /// Of each record of its processes in the ledger, since when they are known to have ended.
    async fn records(&self) -> Result<Vec<Option<u64>>> {
        let seen = self.ledger.observe(&self.uid, std::slice::from_ref(&self.book)).await?;
        let state = seen.books.get(&self.book).context("the fleet has no book")?;
        let of_pod = state.members.iter().filter(|(id, _)| id.starts_with(&self.pod_uid));
        Ok(of_pod.map(|(_, member)| member.ended_ms).collect())
    }

    /// The ids of its processes, by their reports.
    async fn workers(&self) -> Result<Vec<u32>> {
        let seen = self.ledger.observe(&self.uid, std::slice::from_ref(&self.book)).await?;
        Ok(seen.reports.values().filter(|report| report.pod_uid == self.pod_uid).map(|report| report.worker).collect())
    }

    async fn until_known(&self, limit: Duration) -> Result<Duration> {
        loop {
            let records = self.records().await?;
            // 65 s after that it is gone.
            if records.is_empty() || records.iter().any(Option::is_some) {
                return Ok(self.at.elapsed());
            }
            let uid = &self.pod_uid;
            ensure!(self.at.elapsed() < limit, "after {limit:?} the ledger does not know that pod {uid} has ended");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
