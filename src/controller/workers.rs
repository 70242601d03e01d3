//! How many worker processes LiteLLM starts in a container, also where a Secret, a ConfigMap or its image says it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use kube::Client;
use tracing::{info, warn};

use super::observe::TargetSeen;
use super::reading::{ContainerRead, Patience, recent};
use super::redis_url::read_all;
use crate::ledger::Observation;
use crate::litellm::{worker_refs, workers};

/// What was read counts for so long: processes take a change with their next start only.
const AGE: Duration = Duration::from_secs(30);

/// A worker counts beside the others of its pod from this age on: until then the one whose place it takes may still have a lease.
const GROWN: SignedDuration = SignedDuration::from_secs(90);

/// For so long a number that was seen counts: after a rollout no process has the age for a while.
const KEPT: SignedDuration = SignedDuration::from_mins(10);

/// More workers than the template says: how many were seen in a pod, and when last.
pub type SeenWorkers = BTreeMap<String, (u32, Timestamp)>;

/// How many worker processes the container starts; `last` is what an earlier pass read, and `of` which container this is.
///
/// # Errors
/// When the API server does not answer. What does not exist or may not be read counts as not set.
pub async fn count_workers(
    client: &Client,
    namespace: &str,
    container: &Container,
    of: (Option<i64>, String),
    last: &mut ContainerRead<u32>,
    patience: Patience,
) -> Result<u32, kube::Error> {
    let refs = worker_refs(container);
    if refs.is_empty() {
        return Ok(workers(container, |_| None));
    }
    let is_first = last.is_none();
    let read = async {
        let values = read_all(client, namespace, &refs).await?;
        if let (Some(refused), true) = (values.refused(), is_first) {
            warn!("the number of workers may stand where it counts as not set: {refused}");
        }
        Ok(workers(container, |reference| values.get(reference)))
    };
    recent(last, of, AGE, patience, read).await
}

/// Takes note of how many worker processes each pod began with, and answers for those that differ from their Deployment now.
/// An operator that has just begun takes them to be as the template is.
pub fn others(targets: &[TargetSeen], began: &mut HashMap<String, u32>) -> BTreeMap<String, u32> {
    let pods = || targets.iter().flat_map(|target| target.pods.iter().map(move |pod| (target.workers, pod)));
    let uids: HashSet<&str> = pods().filter_map(|(_, pod)| pod.metadata.uid.as_deref()).collect();
    began.retain(|uid, _| uids.contains(uid.as_str()));
    let mut others = BTreeMap::new();
    for (workers, pod) in pods() {
        let Some(uid) = pod.metadata.uid.as_deref() else { continue };
        match began.get(uid) {
            Some(&first) if first != workers => drop(others.insert(uid.to_owned(), first)),
            Some(_) => {}
            None => drop(began.insert(uid.to_owned(), workers)),
        }
    }
    others
}

/// Takes note of pods in which more workers live than they began with by their template: their image sets the number.
pub fn see(
    seen: &Observation,
    targets: &[TargetSeen],
    others: &BTreeMap<String, u32>,
    memory: &mut SeenWorkers,
    now: Timestamp,
) {
    let is_grown = |started_ms: u64| {
        let started = i64::try_from(started_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        started.is_some_and(|started| now.duration_since(started) > GROWN)
    };
    let lives = |id: &str| {
        let mut records = seen.books.values().filter_map(|book| Some((book.members.get(id)?, book.clock_ms)));
        records.any(|(record, clock_ms)| record.ended_ms.is_none() && !record.lease_is_over(clock_ms))
    };
    let mut by_pod: HashMap<(&str, &str), u32> = HashMap::new();
    for (id, report) in &seen.reports {
        if is_grown(report.started_ms) && lives(id) {
            *by_pod.entry((&report.pod_uid, &report.container)).or_default() += 1;
        }
    }
    let mut most_of: HashMap<&str, u32> = HashMap::new();
    for ((uid, _), live) in by_pod {
        let most = most_of.entry(uid).or_default();
        *most = live.max(*most);
    }
    for target in targets {
        let uids = target.pods.iter().filter_map(|pod| pod.metadata.uid.as_deref());
        let more = uids.filter_map(|uid| {
            let began = others.get(uid).copied().unwrap_or(target.workers);
            most_of.get(uid).copied().filter(|live| *live > began)
        });
        let Some(most) = more.max() else { continue };
        let name = &target.reference.name;
        let before = memory.get(name).map_or(0, |(before, _)| *before);
        if most > before {
            info!(deployment = name, workers = most, "its pods have more workers than its template says: they count");
        }
        memory.insert(name.clone(), (most.max(before), now));
    }
}

/// The larger of what the templates say and what was seen counts, also for the pods that are to come.
pub fn raise(targets: &mut [TargetSeen], others: &mut BTreeMap<String, u32>, memory: &mut SeenWorkers, now: Timestamp) {
    memory.retain(|_, (_, at)| now.duration_since(*at) < KEPT);
    for target in targets {
        let Some(&(most, _)) = memory.get(&target.reference.name) else { continue };
        target.workers = target.workers.max(most);
        let uids = target.pods.iter().filter_map(|pod| pod.metadata.uid.as_deref());
        for uid in uids {
            if others.get(uid).is_some_and(|began| *began < most) {
                others.insert(uid.to_owned(), most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::TargetRef;
    use crate::controller::agent_pod::AgentPod;
    use crate::ledger::{BookId, MemberRecord, Unit};

    fn fleet(workers: u32, pods: &[&str]) -> Vec<TargetSeen> {
        let pod = |uid: &&str| {
            let mut pod = AgentPod::default();
            pod.metadata.uid = Some((*uid).to_owned());
            Arc::new(pod)
        };
        let reference = TargetRef { name: "litellm".to_owned(), ..TargetRef::default() };
        vec![TargetSeen { reference, workers, pods: pods.iter().map(pod).collect(), ..TargetSeen::default() }]
    }

    #[test]
    fn a_pod_has_the_workers_that_it_began_with() {
        let mut began = HashMap::new();
        assert!(others(&fleet(1, &["a", "b"]), &mut began).is_empty());
        assert_eq!(others(&fleet(4, &["b", "c"]), &mut began), [("b".to_owned(), 1)].into());
    }

    /// Members by pod, with the second of their start and until when their lease lasts; the ledger's clock is at 1,000 s.
    fn ledger(members: &[(&str, u64, u64)]) -> Observation {
        let mut seen = Observation::default();
        let book = seen.books.entry(BookId::new("gpt", Unit::Tokens)).or_default();
        book.clock_ms = 1_000_000;
        for (place, (pod, started, until)) in members.iter().enumerate() {
            let id = format!("{pod}.{place}");
            let report = serde_json::json!({"pod": "p", "podUid": pod, "container": "litellm", "worker": place,
                "startedMs": started * 1000, "agent": "0.1.0", "state": "Enforcing"});
            book.members.insert(id.clone(), MemberRecord { until_ms: until * 1000, ..MemberRecord::default() });
            seen.reports.insert(id, serde_json::from_value(report).unwrap());
        }
        seen
    }

    /// How many workers a pod counts as in the end, at so many seconds.
    fn counted(
        workers: u32,
        pods: &[&str],
        seen: &Observation,
        at: i64,
        began: &mut HashMap<String, u32>,
        memory: &mut SeenWorkers,
    ) -> (u32, BTreeMap<String, u32>) {
        let (mut targets, now) = (fleet(workers, pods), Timestamp::from_second(at).unwrap());
        let mut others = others(&targets, began);
        see(seen, &targets, &others, memory, now);
        raise(&mut targets, &mut others, memory, now);
        (targets[0].workers, others)
    }

    #[test]
    fn workers_that_the_image_sets_are_seen_once_they_have_lived_for_a_while() {
        let (mut began, mut memory) = (HashMap::new(), SeenWorkers::new());
        let mut count =
            |seen: &[(&str, u64, u64)], at| counted(1, &["a", "b"], &ledger(seen), at, &mut began, &mut memory).0;
        assert_eq!(count(&[("a", 900, 1_029), ("a", 911, 1_029)], 1_000), 1, "the second may be its successor");
        assert_eq!(count(&[("a", 900, 999), ("a", 900, 1_029)], 1_000), 1, "the first is silent");
        assert_eq!(count(&[("a", 900, 1_029), ("c", 900, 1_029)], 1_000), 1, "of no pod of this Deployment");
        assert_eq!(count(&[("a", 900, 1_029), ("a", 900, 1_029)], 1_000), 2);
        assert_eq!(count(&[("b", 999, 1_029)], 1_599), 2, "a rollout: none is old enough");
        assert_eq!(count(&[("b", 999, 1_029)], 1_600), 1);
    }

    #[test]
    fn a_template_that_says_fewer_than_before_is_believed() {
        let (mut began, mut memory) = (HashMap::new(), SeenWorkers::new());
        let four = ledger(&[("a", 900, 1_029); 4]);
        let mut count = |workers, pods: &[&str]| counted(workers, pods, &four, 1_000, &mut began, &mut memory);
        assert_eq!(count(4, &["a"]), (4, BTreeMap::new()));
        assert_eq!(count(1, &["a", "b"]), (1, [("a".to_owned(), 4)].into()), "the old pod has what its template said");
    }

    #[test]
    fn pods_that_began_when_it_was_not_known_count_as_many_as_the_others() {
        let (mut began, mut memory) = (HashMap::new(), SeenWorkers::new());
        assert_eq!(counted(1, &["a"], &ledger(&[]), 990, &mut began, &mut memory), (1, BTreeMap::new()));
        let seen = ledger(&[("b", 900, 1_029); 3]);
        assert_eq!(counted(2, &["a", "b"], &seen, 1_000, &mut began, &mut memory), (3, [("a".to_owned(), 3)].into()));
    }
}
