//! The targets that are ready now: fixed URLs, or a Deployment's pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::core::Selector;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::spec::TargetSpec;

/// Something a request can be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The pod's name, or the URL.
    pub name: Arc<str>,
    /// `http://host:port`
    pub url: Arc<str>,
}

impl Target {
    /// A target; `/v1` at the end of the URL is taken off.
    #[must_use]
    pub fn new(name: &str, url: &str) -> Self {
        let url = url.trim_end_matches('/');
        Self { name: Arc::from(name), url: Arc::from(url.strip_suffix("/v1").unwrap_or(url)) }
    }
}

/// The ready targets, sorted by name, kept current until it is dropped.
#[derive(Debug)]
pub struct TargetWatch {
    ready: watch::Receiver<Arc<[Target]>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl TargetWatch {
    /// The targets that are ready now.
    #[must_use]
    pub fn ready(&self) -> Arc<[Target]> {
        self.ready.borrow().clone()
    }

    /// Fixed targets.
    #[must_use]
    pub fn fixed(urls: &[String]) -> Self {
        let targets = urls.iter().map(|url| Target::new(url, url)).collect();
        Self { ready: watch::channel(targets).1, _task: None }
    }

    /// The targets of a load. A Deployment is looked up with the client that
    /// KUBECONFIG (or the pod's service account) gives.
    ///
    /// # Errors
    /// When the cluster does not answer or has no such Deployment.
    pub async fn of(spec: &TargetSpec) -> Result<Self> {
        match spec {
            TargetSpec::Urls(urls) => Ok(Self::fixed(urls)),
            TargetSpec::Deployment { namespace, name, port } => {
                let client = Client::try_default().await.context("kubeconfig")?;
                Self::deployment(client, namespace, name, *port).await
            }
        }
    }

    /// The Ready pods of a Deployment. Comes back with the first list of pods.
    ///
    /// # Errors
    /// When the cluster does not answer or has no such Deployment.
    pub async fn deployment(client: Client, namespace: &str, name: &str, port: u16) -> Result<Self> {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let deployment = deployments.get(name).await.with_context(|| format!("Deployment {namespace}/{name}"))?;
        let selector = deployment.spec.unwrap_or_default().selector;
        let selector =
            Selector::try_from(selector).with_context(|| format!("the selector of Deployment {namespace}/{name}"))?;
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let config = watcher::Config::default().labels_from(&selector);
        let (send, mut ready) = watch::channel::<Arc<[Target]>>(Arc::new([]));
        let task = tokio::spawn(async move {
            let mut events = watcher(pods, config).default_backoff().boxed();
            let mut known = BTreeMap::new();
            let mut listing = BTreeMap::new();
            while let Some(event) = events.next().await {
                match event {
                    // While a new list comes in, the old one stays in force.
                    Ok(Event::Init) => {
                        listing.clear();
                        continue;
                    }
                    Ok(Event::InitApply(pod)) => {
                        keep(&mut listing, &pod, port);
                        continue;
                    }
                    Ok(Event::InitDone) => known = std::mem::take(&mut listing),
                    Ok(Event::Apply(pod)) => keep(&mut known, &pod, port),
                    Ok(Event::Delete(pod)) => {
                        known.remove(pod.metadata.name.as_deref().unwrap_or_default());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "watching pods");
                        continue;
                    }
                }
                send.send_replace(known.values().cloned().collect());
            }
        });
        let task = AbortOnDropHandle::new(task);
        let first = tokio::time::timeout(std::time::Duration::from_secs(30), ready.changed());
        first.await.context("the list of pods")??;
        Ok(Self { ready, _task: Some(task) })
    }
}

/// Notes a pod as a target, or forgets it when it is not ready (any more).
fn keep(known: &mut BTreeMap<String, Target>, pod: &Pod, port: u16) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    match ready_ip(pod) {
        Some(ip) => {
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let target = Target::new(&name, &format!("http://{ip}:{port}"));
            known.insert(name, target);
        }
        None => {
            known.remove(&name);
        }
    }
}

/// The IP of a pod that is Ready and not being deleted.
fn ready_ip(pod: &Pod) -> Option<&str> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    status.pod_ip.as_deref().filter(|_| ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(ready: &str, deleting: bool) -> Pod {
        let mut pod = json!({"metadata": {"name": "p"}, "status": {"podIP": "127.1.2.3",
            "conditions": [{"type": "Ready", "status": ready}]}});
        if deleting {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn only_ready_pods_that_stay_are_targets() {
        let mut known = BTreeMap::new();
        keep(&mut known, &pod("True", false), 4000);
        assert_eq!(&*known["p"].url, "http://127.1.2.3:4000");
        keep(&mut known, &pod("True", true), 4000);
        assert!(known.is_empty());
        keep(&mut known, &pod("False", false), 4000);
        assert!(known.is_empty());
    }

    #[test]
    fn urls_are_targets_for_ever() {
        let targets = TargetWatch::fixed(&["http://a:1/v1/".to_owned()]);
        assert_eq!(&*targets.ready()[0].url, "http://a:1");
    }
}
