//! The operator's view of one namespace, or of all: watched, cached, stripped of what is not needed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{BoxStream, Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{Predicate, PredicateConfig, WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::Error;
use super::agent_pod::AgentPod;
use super::evidence::Evidence;
use super::index::Index;
use super::packed::{LAST_APPLIED, PackedDeployment};
use super::roster::Roster;
use crate::api::{TargetRef, TokenBudget};
use crate::litellm::{ATTACHED_LABEL, ATTACHED_VALUE, attached_container};

/// A stream of changed objects, for the controller's triggers.
pub type Changes<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// The objects of this namespace, or of all.
pub fn api_in<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    namespace.map_or_else(|| Api::all(client.clone()), |name| Api::namespaced(client.clone(), name))
}

/// The caches.
#[derive(Clone)]
pub struct World {
    /// Every TokenBudget.
    pub budgets: Store<TokenBudget>,
    /// Every Deployment.
    pub deployments: Store<PackedDeployment>,
    /// Every HorizontalPodAutoscaler.
    pub autoscalers: Store<HorizontalPodAutoscaler>,
    /// Pods that carry our label.
    pub pods: Store<AgentPod>,
    indices: Arc<Indices>,
    /// What the kubelets said about ended containers.
    pub evidence: Arc<Evidence>,
    filling: Arc<Filling>,
}

/// Objects by the Deployment that they name.
#[derive(Default)]
struct Indices {
    budgets: Index,
    autoscalers: Index,
    pods: Index,
}

/// Caches that are not whole yet. [`Store::wait_until_ready`] is not for this: kube-runtime 5.0.0 wakes only the last of
/// several that wait, and the controller waits too (`utils/delayed_init.rs` polls one receiver with each waiter's context).
struct Filling {
    left: AtomicUsize,
    synced: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Filling {
    /// One more cache is whole.
    fn filled(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(synced) = self.synced.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            synced();
        }
    }
}

/// The streams that keep the caches up to date; they do so only while they are read.
pub struct Streams {
    /// Changed TokenBudgets.
    pub budgets: Changes<TokenBudget>,
    /// Changed Deployments.
    pub deployments: Changes<PackedDeployment>,
    /// Changed HorizontalPodAutoscalers.
    pub autoscalers: Changes<HorizontalPodAutoscaler>,
    /// Changed pods.
    pub pods: Changes<AgentPod>,
}

impl World {
    /// Watches this namespace, or all of them; `synced` is called when all caches are whole, `gone` for each TokenBudget that
    /// is no more.
    #[must_use]
    pub fn watch(
        client: &Client,
        namespace: Option<&str>,
        synced: impl FnOnce() + Send + 'static,
        gone: impl Fn(&ObjectRef<TokenBudget>) + Send + Sync + 'static,
    ) -> (Self, Streams) {
        let filling = Arc::new(Filling { left: AtomicUsize::new(4), synced: Mutex::new(Some(Box::new(synced))) });
        let from = Source { client, namespace, filling: &filling };
        let everything = watcher::Config::default();
        let ours = watcher::Config::default().labels(&format!("{ATTACHED_LABEL}={ATTACHED_VALUE}"));
        let evidence = Arc::new(Evidence::default());
        let noted = evidence.clone();

        let indices = Arc::new(Indices::default());
        let [of_budgets, of_autoscalers, of_pods] = [(); 3].map(|()| indices.clone());
        let budget = |tb: &mut TokenBudget| {
            tb.managed_fields_mut().clear();
            tb.annotations_mut().remove(LAST_APPLIED);
        };
        let mut roster = Roster::default();
        let (budgets, budget_changes) = cached(&from, everything.clone(), budget, move |event| {
            of_budgets.budgets.take(event, targets);
            roster.take(event).iter().for_each(&gone);
        });
        let (deployments, deployment_changes) = cached(&from, everything.clone(), |_| {}, |_| {});
        let autoscaler = |a: &mut HorizontalPodAutoscaler| {
            a.managed_fields_mut().clear();
            a.annotations_mut().clear();
            a.status = None;
        };
        let (autoscalers, autoscaler_changes) =
            cached(&from, everything, autoscaler, move |event| of_autoscalers.autoscalers.take(event, scaled));
        let pod = move |pod: &mut AgentPod| {
            noted.note(pod, Timestamp::now());
            pod.strip();
        };
        let (pods, pod_changes) = cached(&from, ours, pod, move |event| {
            of_pods.pods.take(event, |pod| pod.deployment().map(str::to_owned).into_iter().collect());
        });
        let world = Self { budgets, deployments, autoscalers, pods, indices, evidence, filling };
        let streams = Streams {
            // There is nothing to do for one that is gone.
            // What we write into a status is no reason for a pass. A deletion is a generation, too.
            budgets: budget_changes
                .applied_objects()
                .predicate_filter(predicates::generation.combine(predicates::finalizers), PredicateConfig::default())
                .boxed(),
            deployments: deployment_changes.touched_objects().boxed(),
            autoscalers: autoscaler_changes.touched_objects().boxed(),
            pods: pod_changes.touched_objects().boxed(),
        };
        (world, streams)
    }

    /// Whether every cache has been filled once.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.filling.left.load(Ordering::Acquire) == 0
    }

    /// A Deployment by name, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn deployment(&self, namespace: &str, name: &str) -> Result<Option<Arc<Deployment>>, Error> {
        let packed = self.deployments.get(&ObjectRef::new(name).within(namespace));
        packed.map(|packed| unpack(&packed).map(Arc::new)).transpose()
    }

    /// The Deployments that carry what the operator put in, and that no TokenBudget names.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn strays(&self, namespace: &str) -> Result<Vec<TargetRef>, Error> {
        let is_stray = |deployment: &&Arc<PackedDeployment>| {
            deployment.namespace().as_deref() == Some(namespace)
                && deployment.is_attached
                && self.budgets_of(namespace, &deployment.name_any()).is_empty()
        };
        // Whose entries they are is dear to know: asked last.
        let reference = |deployment: &Arc<PackedDeployment>| {
            let container = unpack(deployment).map(|deployment| attached_container(&deployment));
            container.map(|found| Some(TargetRef { name: deployment.name_any(), container: Some(found?) })).transpose()
        };
        self.deployments.state().iter().filter(is_stray).filter_map(reference).collect()
    }

    /// `maxReplicas` of the autoscaler that scales this Deployment, if there is one (the largest, if there are several).
    #[must_use]
    pub fn most_replicas(&self, namespace: &str, deployment: &str) -> Option<i32> {
        let names = self.indices.autoscalers.of(namespace, deployment);
        found(&self.autoscalers, namespace, &names).map(|autoscaler| autoscaler.spec.max_replicas).max()
    }

    /// The pods of this Deployment that carry our label, by name.
    #[must_use]
    pub fn attached_pods(&self, namespace: &str, deployment: &str) -> Vec<Arc<AgentPod>> {
        found(&self.pods, namespace, &self.indices.pods.of(namespace, deployment)).collect()
    }

    /// The TokenBudgets that name this Deployment, by name.
    #[must_use]
    pub fn budgets_of(&self, namespace: &str, deployment: &str) -> Vec<Arc<TokenBudget>> {
        found(&self.budgets, namespace, &self.indices.budgets.of(namespace, deployment)).collect()
    }
}

/// The Deployments that a TokenBudget names.
fn targets(budget: &TokenBudget) -> Vec<String> {
    budget.spec.target_refs.iter().map(|target| target.name.clone()).collect()
}

/// The Deployment that an autoscaler scales.
fn scaled(autoscaler: &HorizontalPodAutoscaler) -> Vec<String> {
    let target = &autoscaler.spec.scale_target_ref;
    if target.kind == "Deployment" { vec![target.name.clone()] } else { Vec::new() }
}

/// Those of these objects that the cache has.
fn found<K>(store: &Store<K>, namespace: &str, names: &[String]) -> impl Iterator<Item = Arc<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope> + Clone + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    names.iter().filter_map(move |name| store.get(&ObjectRef::new(name).within(namespace)))
}

/// Where caches are filled from.
struct Source<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    filling: &'a Arc<Filling>,
}

fn cached<K>(
    from: &Source<'_>,
    config: watcher::Config,
    strip: impl FnMut(&mut K) + Send + 'static,
    mut index: impl FnMut(&watcher::Event<K>) + Send + 'static,
) -> (Store<K>, impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static)
where
    K: Resource<Scope = kube::core::NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone + Unpin + Send + Sync,
{
    let client = from.client.clone();
    let api = api_in(&client, from.namespace);
    let (store, writer) = reflector::store();
    let mut filling = Some(from.filling.clone());
    let changes = watcher(api, config).default_backoff().modify(strip).reflect(writer).inspect(move |event| {
        if let Ok(event) = event {
            index(event);
        }
        if matches!(event, Ok(watcher::Event::InitDone))
            && let Some(filling) = filling.take()
        {
            filling.filled();
        }
    });
    (store, changes)
}

fn unpack(deployment: &PackedDeployment) -> Result<Deployment, Error> {
    deployment.unpack().map_err(|source| Error::Packed { name: deployment.name_any(), source })
}

#[cfg(test)]
impl World {
    /// One that has this Deployment and nothing else.
    pub fn of(deployment: serde_json::Value) -> Self {
        let (deployments, mut writer) = reflector::store();
        let packed: PackedDeployment = serde_json::from_value(deployment).expect("a Deployment");
        writer.apply_watcher_event(&watcher::Event::Apply(packed));
        Self {
            budgets: reflector::store().0,
            deployments,
            autoscalers: reflector::store().0,
            pods: reflector::store().0,
            indices: Arc::default(),
            evidence: Arc::default(),
            filling: Arc::new(Filling { left: AtomicUsize::new(0), synced: Mutex::default() }),
        }
    }

    /// The same with these TokenBudgets.
    pub fn with_budgets(mut self, budgets: impl IntoIterator<Item = TokenBudget>) -> Self {
        let (store, mut writer) = reflector::store();
        for budget in budgets {
            let event = watcher::Event::Apply(budget);
            self.indices.budgets.take(&event, targets);
            writer.apply_watcher_event(&event);
        }
        self.budgets = store;
        self
    }
}
