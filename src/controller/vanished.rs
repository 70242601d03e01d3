//! Members whose pod vanished without the kubelet's word: deleted by force, or with its node. That a pod is gone proves nothing,
//! since its processes may run on. Its node does: one that is gone itself, or one that has been ready ever since, whose
//! kubelet ends what the API server does not have any more. Without this each such pod would hold its safe share for good.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use super::context::Context;
use super::evidence::Evidence;
use super::lost::Known;
use super::memory::Memory;
use super::observe::TargetSeen;
use crate::causes::Causes;
use crate::ledger::{Observation, Report};

/// A kubelet ends the processes of such a pod at once, and no later than their grace period; and until it counts as not ready
/// itself, a node may have been cut off for a minute. This at least.
const ABSENT: SignedDuration = SignedDuration::from_mins(3);
const CUT_OFF: SignedDuration = SignedDuration::from_mins(1);

/// `terminationGracePeriodSeconds` of a pod that does not say.
const GRACE_S: i64 = 30;

/// Without a word of the node, whose name an agent did not tell or which the operator may not read: nobody runs for so long
/// without the ledger.
const LAST_RESORT: SignedDuration = SignedDuration::from_hours(24);

/// How soon it is asked again.
const AGAIN: SignedDuration = SignedDuration::from_secs(15);

/// Pods that are asked for in one pass.
const MOST: usize = 10;

/// Pods that are asked for in all passes of a second: a Redis that none of thousands of agents reaches is no reason to flood the API server.
const MOST_A_SECOND: u32 = 50;

/// How many were asked for in the second that runs.
#[derive(Debug, Default)]
pub struct Pace {
    second: i64,
    asked: u32,
}

impl Pace {
    /// Whether one more may be asked for.
    fn allows(&mut self, now: Timestamp) -> bool {
        if self.second != now.as_second() {
            *self = Self { second: now.as_second(), asked: 0 };
        }
        self.asked += 1;
        self.asked <= MOST_A_SECOND
    }
}

/// What was found of a pod that is not there.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Since when it is missing, as far as this operator knows; none for one that is there.
    missing_since: Option<Timestamp>,
    asked: Timestamp,
}

impl Search {
    /// What lies ahead was noted before a clock was set back: it must not make the search wait for longer.
    fn not_ahead_of(&mut self, now: Timestamp) {
        self.asked = self.asked.min(now);
        self.missing_since = self.missing_since.map(|since| since.min(now));
    }

    /// Whether it is time to ask again.
    fn is_due(&self, now: Timestamp) -> bool {
        now.duration_since(self.asked) >= AGAIN
    }
}

/// What the API server says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeSeen {
    /// It is gone, so its processes are. Kubernetes goes by the same ("Force Delete StatefulSet Pods").
    Gone,
    /// It is ready, since then.
    Ready(Timestamp),
    /// It is not, or nobody knows which it is.
    Unknown,
}

/// Looks for the pods of members that are silent and have not ended, and takes note of those that have.
pub async fn look(
    namespace: &str,
    targets: &[TargetSeen],
    seen: &Observation,
    ctx: &Context,
    evidence: &Evidence,
    memory: &mut Memory,
    now: Timestamp,
) {
    let suspects = suspects(targets, seen, &memory.fleet.known, now);
    let named: BTreeSet<&str> = suspects.iter().map(|(report, _)| &*report.pod_uid).collect();
    memory.fleet.vanished.retain(|uid, _| named.contains(&**uid));
    memory.fleet.vanished.values_mut().for_each(|search| search.not_ahead_of(now));
    let due = |uid: &str, searches: &BTreeMap<String, Search>| searches.get(uid).is_none_or(|s| s.is_due(now));
    let due: Vec<_> =
        suspects.into_iter().filter(|(report, _)| due(&report.pod_uid, &memory.fleet.vanished)).take(MOST).collect();
    let absent = absent(targets);
    for (report, silent) in due {
        if !ctx.pace_of_searches().allows(now) {
            return;
        }
        // Noted before it is asked: an answer that does not come in time must not be waited for in each pass.
        let before = Search { missing_since: None, asked: now };
        memory.fleet.vanished.entry(report.pod_uid.clone()).or_insert(before).asked = now;
        match ask(namespace, &report, ctx).await {
            Ok(None) => drop(memory.fleet.vanished.insert(report.pod_uid, before)),
            Ok(Some(node)) => {
                let search = memory.fleet.vanished.entry(report.pod_uid.clone()).or_insert(before);
                let missing_since = *search.missing_since.get_or_insert(now);
                if has_ended(node, now, missing_since, absent, silent) {
                    info!(pod = report.pod, node = report.node, ?node, "a process has ended: its pod is gone");
                    evidence.vanished(&report.pod_uid, &report.container, now);
                }
            }
            Err(error) => {
                warn!(pod = report.pod, node = report.node, error = %Causes(&error), "looking for a pod that is silent");
            }
        }
    }
}

/// Members that are silent or that the ledger lost, whose pods are not among those that are known; a pod once, with how long it has been silent.
fn suspects(
    targets: &[TargetSeen],
    seen: &Observation,
    known: &Known,
    now: Timestamp,
) -> Vec<(Report, SignedDuration)> {
    let lost = known.lost().map(|(_, report, since)| (&*report.pod_uid, (report, now.duration_since(since))));
    let mut found: BTreeMap<&str, (&Report, SignedDuration)> = lost.collect();
    for book in seen.books.values() {
        let silent = book.members.iter().filter(|(_, m)| m.ended_ms.is_none() && m.lease_is_over(book.clock_ms));
        for (id, member) in silent {
            let Some(report) = seen.reports.get(id) else { continue };
            let ms = i64::try_from(book.clock_ms - member.until_ms).unwrap_or(i64::MAX);
            let for_so_long = SignedDuration::from_millis(ms);
            let least = found.entry(&report.pod_uid).or_insert((report, for_so_long));
            least.1 = least.1.min(for_so_long);
        }
    }
    // Mostly nobody is silent, and then the pods, which may be thousands, are not looked at.
    if !found.is_empty() {
        for uid in targets.iter().flat_map(|target| &target.pods).filter_map(|pod| pod.metadata.uid.as_deref()) {
            found.remove(uid);
        }
    }
    found.into_values().map(|(report, silent)| (report.clone(), silent)).collect()
}

/// What is known of the node of a pod that is not there any more; `None` for one that is.
async fn ask(namespace: &str, report: &Report, ctx: &Context) -> Result<Option<NodeSeen>, kube::Error> {
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    // One that lost the label by which the others are found is still there.
    let this = ListParams::default().fields(&format!("metadata.name={}", report.pod));
    if pods.list_metadata(&this).await?.iter().any(|pod| pod.uid().as_deref() == Some(&report.pod_uid)) {
        return Ok(None);
    }
    if report.node.is_empty() {
        return Ok(Some(NodeSeen::Unknown));
    }
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    match nodes.get_opt(&report.node).await {
        Ok(node) => Ok(Some(node.map_or(NodeSeen::Gone, |node| readiness(&node)))),
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(Some(NodeSeen::Unknown)),
        Err(error) => Err(error),
    }
}

fn readiness(node: &Node) -> NodeSeen {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == "True");
    let since = ready.and_then(|condition| condition.last_transition_time.as_ref());
    since.map_or(NodeSeen::Unknown, |since| NodeSeen::Ready(since.0))
}

/// For how long a pod has to be missing from a node that is ready.
fn absent(targets: &[TargetSeen]) -> SignedDuration {
    let graces = targets.iter().filter_map(|target| {
        let spec = target.deployment.as_ref()?.spec.as_ref()?.template.spec.as_ref()?;
        spec.termination_grace_period_seconds
    });
    let grace = SignedDuration::from_secs(graces.max().unwrap_or(GRACE_S).clamp(0, LAST_RESORT.as_secs()));
    ABSENT.max(grace + CUT_OFF)
}

/// Whether the processes of a pod that is not there have ended, too.
fn has_ended(
    node: NodeSeen,
    now: Timestamp,
    missing_since: Timestamp,
    absent: SignedDuration,
    silent: SignedDuration,
) -> bool {
    let long = |since: Timestamp| now.duration_since(since) >= absent;
    match node {
        NodeSeen::Gone => true,
        NodeSeen::Ready(since) => long(since) && long(missing_since),
        NodeSeen::Unknown => silent >= LAST_RESORT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::agent_pod::AgentPod;
    use crate::ledger::{BookId, BookState, MemberRecord, Unit};

    fn report(pod_uid: &str) -> Report {
        serde_json::from_value(serde_json::json!({"pod": "p", "podUid": pod_uid, "container": "litellm", "worker": 1,
            "startedMs": 0, "agent": "0.1.0", "state": "Enforcing"}))
        .unwrap()
    }

    #[test]
    fn so_many_are_asked_for_in_a_second() {
        let now: Timestamp = "2026-11-28T12:00:00.9Z".parse().unwrap();
        let mut pace = Pace::default();
        assert_eq!((0..200).filter(|_| pace.allows(now)).count(), MOST_A_SECOND as usize);
        assert!(pace.allows(now + SignedDuration::from_millis(200)));
    }

    #[test]
    fn a_clock_that_was_set_back_holds_up_no_search() {
        let noted: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let mut search = Search { missing_since: Some(noted), asked: noted };
        let back = noted - SignedDuration::from_hours(1);
        search.not_ahead_of(back);
        assert!(!search.is_due(back + AGAIN - SignedDuration::from_secs(1)));
        assert!(search.is_due(back + AGAIN));
        assert_eq!(search.missing_since, Some(back), "it is missing for no longer than is certain");
        search.not_ahead_of(back + ABSENT);
        assert_eq!(search.missing_since, Some(back));
    }

    #[test]
    fn a_ready_node_has_to_have_been_ready_for_long_enough() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let ago = |seconds| now - SignedDuration::from_secs(seconds);
        let day = SignedDuration::from_hours(24);
        let has_ended = |node, missing_since, silent| has_ended(node, now, missing_since, ABSENT, silent);
        assert!(has_ended(NodeSeen::Gone, now, SignedDuration::ZERO));
        assert!(has_ended(NodeSeen::Ready(ago(180)), ago(180), SignedDuration::ZERO));
        assert!(!has_ended(NodeSeen::Ready(ago(179)), ago(180), day), "it was cut off meanwhile");
        assert!(!has_ended(NodeSeen::Ready(ago(999)), ago(179), day), "the pod was there until just now");
        assert!(!has_ended(NodeSeen::Unknown, ago(9_999), day - SignedDuration::from_secs(1)));
        assert!(has_ended(NodeSeen::Unknown, now, day));
    }

    #[test]
    fn processes_may_end_as_late_as_their_grace_period() {
        let target = |grace: serde_json::Value| {
            let spec = serde_json::json!({"selector": {}, "template": {"spec": {"containers": [], "terminationGracePeriodSeconds": grace}}});
            let deployment = serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap();
            TargetSeen { deployment: Some(std::sync::Arc::new(deployment)), ..TargetSeen::default() }
        };
        assert_eq!(absent(&[]), SignedDuration::from_mins(3));
        assert_eq!(absent(&[target(serde_json::Value::Null)]), SignedDuration::from_mins(3));
        assert_eq!(absent(&[target(600.into()), target(30.into())]), SignedDuration::from_mins(11));
    }

    #[test]
    fn only_a_silent_member_of_an_unknown_pod_is_looked_for() {
        let member = |until_ms, ended_ms| MemberRecord { until_ms, ended_ms, ..MemberRecord::default() };
        let records = [("live", member(2_000, None)), ("silent", member(400, None)), ("ended", member(400, Some(500)))];
        let members = records.map(|(id, record)| (id.to_owned(), record)).into();
        let book = BookState { clock_ms: 1_000, members, ..BookState::default() };
        let seen = Observation {
            reports: ["live", "silent", "ended"].map(|id| (id.to_owned(), report(id))).into(),
            books: [(BookId::new("a", Unit::Tokens), book)].into(),
            ..Observation::default()
        };
        let found = |targets: &[TargetSeen]| -> Vec<(String, i128)> {
            suspects(targets, &seen, &Known::default(), Timestamp::UNIX_EPOCH)
                .into_iter()
                .map(|(r, silent)| (r.pod_uid.clone(), silent.as_millis()))
                .collect()
        };
        assert_eq!(found(&[]), [("silent".to_owned(), 600)]);
        let mut pod = AgentPod::default();
        pod.metadata.uid = Some("silent".to_owned());
        assert_eq!(found(&[TargetSeen { pods: vec![pod.into()], ..TargetSeen::default() }]), []);
    }

    #[test]
    fn a_node_is_ready_since_its_condition_says_so() {
        let node = |status: &str| -> Node {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n"}, "status": {"conditions": [
                {"type": "MemoryPressure", "status": "False", "lastTransitionTime": "2026-11-28T10:00:00Z"},
                {"type": "Ready", "status": status, "lastTransitionTime": "2026-11-28T11:00:00Z"}]}}))
            .unwrap()
        };
        assert_eq!(readiness(&node("True")), NodeSeen::Ready("2026-11-28T11:00:00Z".parse().unwrap()));
        assert_eq!(readiness(&node("Unknown")), NodeSeen::Unknown);
    }
}
