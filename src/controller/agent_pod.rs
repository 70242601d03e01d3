//! What the operator keeps of a pod that carries the agent. A whole `Pod` takes 11 kB, also one with hardly anything in it;
//! this takes less than one, and there may be 20,000 of them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Deserializer};

/// A pod that carries the agent's label.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub struct AgentPod {
    /// Name, namespace, UID and when it was deleted; in a cache nothing else.
    pub metadata: ObjectMeta,
    status: Option<Status>,
    /// Of the Deployment that it belongs to; set by [`Self::strip`].
    #[serde(skip)]
    deployment: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default, rename = "phase", deserialize_with = "is_over")]
    over: bool,
    conditions: Option<Vec<Condition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
}

/// Whether all of its containers have ended for good: one that was evicted stays in the list for long. A kubelet says so only
/// when none runs any more (`mergePodStatus`); of a pod whose node is gone the garbage collector does.
fn is_over<'de, D: Deserializer<'de>>(phase: D) -> Result<bool, D::Error> {
    Ok(matches!(Option::<String>::deserialize(phase)?.as_deref(), Some("Failed" | "Succeeded")))
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(default)]
    restart_count: i32,
    state: Option<State>,
    last_state: Option<State>,
}

#[derive(Clone, Debug, Deserialize)]
struct State {
    running: Option<Running>,
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Running {
    started_at: Option<Time>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terminated {
    finished_at: Option<Time>,
}

impl AgentPod {
    /// Leaves what a cache is asked for.
    pub fn strip(&mut self) {
        self.deployment = self.named_deployment();
        let ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, .. } =
            std::mem::take(&mut self.metadata);
        self.metadata =
            ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, ..ObjectMeta::default() };
        if let Some(conditions) = self.status.as_mut().and_then(|status| status.conditions.as_mut()) {
            conditions.retain(|condition| condition.kind == "Ready");
            conditions.shrink_to_fit();
        }
    }

    /// The name of the Deployment that it belongs to: its ReplicaSet's name without the template's hash.
    fn named_deployment(&self) -> Option<String> {
        let hash = self.labels().get("pod-template-hash")?;
        let owner = self.owner_references().iter().find(|o| o.kind == "ReplicaSet")?;
        Some(owner.name.strip_suffix(hash)?.strip_suffix('-')?.to_owned())
    }

    /// The name of the Deployment that a stripped pod belongs to.
    #[must_use]
    pub fn deployment(&self) -> Option<&str> {
        self.deployment.as_deref()
    }

    /// All of its containers have ended for good, whether or not there is a time for it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.over)
    }

    /// Nobody has deleted it, and it has not ended.
    #[must_use]
    pub fn is_living(&self) -> bool {
        self.metadata.deletion_timestamp.is_none() && !self.is_over()
    }

    /// It is living and Ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let mut conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        self.is_living() && conditions.any(|condition| condition.kind == "Ready" && condition.status == "True")
    }

    /// Since when this container has been running; `None`: it is not.
    #[must_use]
    pub fn running_since(&self, container: &str) -> Option<Timestamp> {
        let running =
            self.containers().filter(|c| c.name == container).find_map(|c| c.state.as_ref()?.running.as_ref());
        running?.started_at.as_ref().map(|time| time.0)
    }

    /// The containers that have ended, also those that run again: the newest `finishedAt` of each. One that was restarted and
    /// whose end has no time (the runtime did not know it any more) had ended when it started again.
    pub fn finished(&self) -> impl Iterator<Item = (&str, Timestamp)> {
        self.containers().filter_map(|container| {
            let states = [&container.state, &container.last_state].into_iter().flatten();
            let finished =
                states.filter_map(|state| state.terminated.as_ref()?.finished_at.as_ref()).map(|time| time.0);
            let restarted = || {
                let running = container.state.as_ref().filter(|_| container.restart_count > 0)?.running.as_ref()?;
                running.started_at.as_ref().map(|time| time.0)
            };
            Some((container.name.as_str(), finished.max().or_else(restarted)?))
        })
    }

    fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.status.iter().flat_map(|status| status.container_statuses.iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> AgentPod {
        let mut pod: AgentPod = serde_saphyr::from_str(yaml).unwrap();
        pod.strip();
        pod
    }

    #[test]
    fn a_pod_names_its_deployment_through_its_replica_set() {
        let pod = pod("metadata: {name: a-b-7d4-x1, labels: {pod-template-hash: 7d4}, \
             ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: a-b-7d4, uid: u}]}");
        assert_eq!(pod.deployment(), Some("a-b"));
        assert_eq!((pod.labels().len(), pod.owner_references().len()), (0, 0), "and keeps nothing else");
    }

    #[test]
    fn a_stripped_pod_still_says_whether_it_is_ready_and_since_when_it_runs() {
        let pod = pod(
            "{metadata: {name: p}, status: {conditions: [{type: PodScheduled, status: 'True'}, {type: Ready, status: 'True'}], \
             containerStatuses: [{name: litellm, state: {running: {startedAt: '2026-01-01T00:00:11Z'}}, \
             lastState: {terminated: {exitCode: 137, finishedAt: '2026-01-01T00:00:10Z'}}}]}}",
        );
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(pod.is_ready());
        assert_eq!(pod.running_since("litellm"), Some(at("2026-01-01T00:00:11Z")));
        assert_eq!(pod.running_since("sidecar"), None);
        assert_eq!(pod.finished().collect::<Vec<_>>(), [("litellm", at("2026-01-01T00:00:10Z"))]);
    }

    #[test]
    fn a_container_that_runs_again_had_ended_before() {
        let finished = |restarts: u32, last: &str| {
            let pod = pod(&format!(
                "{{metadata: {{name: p}}, status: {{containerStatuses: [{{name: litellm, restartCount: {restarts}, \
                 state: {{running: {{startedAt: '2026-01-01T00:00:11Z'}}}}, lastState: {last}}}]}}}}"
            ));
            pod.finished().map(|(_, at)| at.to_string()).collect::<Vec<_>>()
        };
        let unknown = "{terminated: {exitCode: 137, reason: ContainerStatusUnknown, finishedAt: null}}";
        assert_eq!(finished(1, unknown), ["2026-01-01T00:00:11Z"]);
        assert_eq!(finished(1, "{}"), ["2026-01-01T00:00:11Z"], "what was is not known any more");
        assert_eq!(finished(1, "{terminated: {finishedAt: '2026-01-01T00:00:10Z'}}"), ["2026-01-01T00:00:10Z"]);
        assert!(finished(0, "{}").is_empty(), "it has not ended yet");
    }

    #[test]
    fn a_pod_that_was_evicted_does_not_live() {
        let is_living =
            |phase: &str| pod(&format!("{{metadata: {{name: p}}, status: {{phase: {phase}}}}}")).is_living();
        assert!(is_living("Running") && is_living("Pending") && is_living("null"));
        assert!(!is_living("Failed") && !is_living("Succeeded"));
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_not_ready() {
        let pod = pod(
            "{metadata: {name: p, deletionTimestamp: '2026-01-01T00:00:11Z'}, status: {conditions: [{type: Ready, status: 'True'}]}}",
        );
        assert!(!pod.is_ready() && !pod.is_living());
    }
}
