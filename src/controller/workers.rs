//! How many worker processes LiteLLM starts in a container, also where a Secret, a ConfigMap or its image says it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use kube::Client;
use tracing::{info, warn};

use super::observe::TargetSeen;
use super::reading::{ContainerRead, Patience, read_of, recent};
use super::redis_url::read_all;
use crate::ledger::Observation;
use crate::litellm::{worker_refs, workers};

/// What was read counts for so long: processes take a change with their next start only.
const AGE: Duration = Duration::from_secs(30);

/// A worker counts beside the others of its pod from this age on: until then the one whose place it takes may still have a lease.
const GROWN: SignedDuration = SignedDuration::from_secs(90);

/// For so long a number that was seen counts: after a rollout no process has the age for a while.
const KEPT: SignedDuration = SignedDuration::from_mins(10);

/// A number has to be seen for so long: a process that died while Redis was away has a lease of up to 30 s when that is back.
const BELIEVED: SignedDuration = SignedDuration::from_secs(35);

/// More workers than the template says, by Deployment.
pub type SeenWorkers = BTreeMap<String, SeenInPods>;

/// How many workers live in one pod of a Deployment, where that is more than the template says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenInPods {
    /// What counts, and when it was seen last.
    believed: Option<(u32, Timestamp)>,
    /// What was seen in each pass since then.
    seen: Option<(u32, Timestamp)>,
}

impl SeenInPods {
    fn most(&self) -> u32 {
        self.believed.map_or(0, |(most, _)| most)
    }

    /// The next pass that saw the ledger.
    fn pass(&mut self, live: Option<u32>, now: Timestamp) {
        self.believed = self.believed.filter(|(_, at)| now.duration_since(*at) < KEPT);
        let more = live.filter(|live| *live > self.most());
        self.seen = match (more, self.seen) {
            (Some(live), Some((before, since))) => Some((live.min(before), since.min(now))),
            (Some(live), None) => Some((live, now)),
            (None, _) => None,
        };
        if let Some((live, _)) = self.seen.filter(|(_, since)| now.duration_since(*since) > BELIEVED) {
            (self.believed, self.seen) = (Some((live, now)), None);
        } else if live.is_some_and(|live| live >= self.most() && self.believed.is_some()) {
            self.believed = self.believed.map(|(most, _)| (most, now));
        }
    }
}

/// How many worker processes the container starts; `last` is what an earlier pass read, and `generation` its Deployment's.
///
/// # Errors
/// When the API server does not answer. What does not exist or may not be read counts as not set.
pub async fn count_workers(
    client: &Client,
    namespace: &str,
    container: &Container,
    generation: Option<i64>,
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
    recent(last, generation, read_of(container), AGE, patience, read).await
}

/// Takes note of how many worker processes each pod began with, and answers for those that differ from their Deployment now.
/// An operator that has just begun takes them to be as the template is.
fn others(targets: &[TargetSeen], began: &mut HashMap<String, u32>) -> BTreeMap<String, u32> {
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

/// Takes note of pods in which more workers live than they began with by their template, as their image sets the number, and
/// answers for those pods whose number differs from `targets` now. Without a ledger (`None`) nothing new is seen.
pub fn count(
    targets: &mut [TargetSeen],
    began: &mut HashMap<String, u32>,
    seen: Option<&Observation>,
    memory: &mut SeenWorkers,
    now: Timestamp,
) -> BTreeMap<String, u32> {
    let mut others = others(targets, began);
    let grown = seen.map(|seen| grown_workers(seen, now));
    memory.retain(|name, _| targets.iter().any(|target| target.reference.name == *name));
    for target in targets {
        let template = target.workers;
        let uids = || target.pods.iter().filter_map(|pod| pod.metadata.uid.as_deref());
        let known = memory.entry(target.reference.name.clone()).or_default();
        if let Some(grown) = &grown {
            let before = known.most();
            let began = |uid| others.get(uid).copied().unwrap_or(template);
            let more = uids().filter_map(|uid| grown.get(uid).copied().filter(|grown| *grown > began(uid)));
            known.pass(more.max(), now);
            if known.most() > before {
                let (deployment, workers) = (&target.reference.name, known.most());
                info!(deployment, workers, "its pods have more workers than its template says: they count");
            }
        }
        let most = known.most();
        target.workers = template.max(most);
        for uid in uids() {
            let began = others.get(uid).copied().unwrap_or(template);
            // One that has reported shows its own number; one that has not may have as many as any.
            let shown = grown.as_ref().and_then(|grown| grown.get(uid)).map_or(most, |grown| most.min(*grown));
            let workers = began.max(shown);
            if workers == target.workers {
                others.remove(uid);
            } else {
                others.insert(uid.to_owned(), workers);
            }
        }
    }
    others
}

/// How many workers have lived for [`GROWN`], of each pod in which one has reported and lives, by its UID.
fn grown_workers(seen: &Observation, now: Timestamp) -> HashMap<&str, u32> {
    let is_grown = |started_ms: u64| {
        let started = i64::try_from(started_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        started.is_some_and(|started| now.duration_since(started) > GROWN)
    };
    let lives = |id: &str| {
        let mut records = seen.books.values().filter_map(|book| Some((book.members.get(id)?, book.clock_ms)));
        records.any(|(record, clock_ms)| record.ended_ms.is_none() && !record.lease_is_over(clock_ms))
    };
    let mut by_container: HashMap<(&str, &str), u32> = HashMap::new();
    for (_, report) in seen.reports.iter().filter(|(id, _)| lives(id)) {
        *by_container.entry((&report.pod_uid, &report.container)).or_default() +=
            u32::from(is_grown(report.started_ms));
    }
    let mut by_pod: HashMap<&str, u32> = HashMap::new();
    for ((uid, _), grown) in by_container {
        let most = by_pod.entry(uid).or_default();
        *most = grown.max(*most);
    }
    by_pod
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
        assert_eq!(others(&fleet(4, &["b", "c"]), &mut began), of(&[("b", 1)]));
        assert_eq!(began, [("b".to_owned(), 1), ("c".to_owned(), 4)].into());
    }

    /// Members by pod, with the second of their start and until when their lease lasts; the ledger's clock is at 1,000 s.
    fn ledger(members: &[Seen<'_>]) -> Observation {
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

    /// A Deployment over time, and what is remembered of it.
    #[derive(Default)]
    struct Fleet {
        began: HashMap<String, u32>,
        memory: SeenWorkers,
    }

    /// A member: its pod, the second of its start, and until when its lease lasts.
    type Seen<'a> = (&'a str, u64, u64);

    /// Workers of the Deployment, and of the pods that have others.
    type Counted = (u32, BTreeMap<String, u32>);

    impl Fleet {
        /// What is counted at so many seconds.
        fn at(&mut self, second: i64, template: u32, pods: &[&str], seen: &[Seen<'_>]) -> Counted {
            let (mut targets, now) = (fleet(template, pods), Timestamp::from_second(second).unwrap());
            let others = count(&mut targets, &mut self.began, Some(&ledger(seen)), &mut self.memory, now);
            (targets[0].workers, others)
        }

        /// The same after it was seen in each pass for long enough.
        fn believes(&mut self, second: i64, template: u32, pods: &[&str], seen: &[Seen<'_>]) -> Counted {
            self.at(second - 36, template, pods, seen);
            self.at(second, template, pods, seen)
        }
    }

    fn of(pods: &[(&str, u32)]) -> BTreeMap<String, u32> {
        pods.iter().map(|(uid, workers)| ((*uid).to_owned(), *workers)).collect()
    }

    const TWO: [Seen<'_>; 2] = [("a", 850, 1_029), ("a", 850, 1_029)];

    #[test]
    fn workers_that_the_image_sets_are_seen_once_they_have_lived_for_a_while() {
        let pods = ["a", "b"];
        let counts = |seen: &[Seen<'_>]| Fleet::default().believes(1_000, 1, &pods, seen).0;
        assert_eq!(counts(&[("a", 850, 1_029), ("a", 911, 1_029)]), 1, "the second may be its successor");
        assert_eq!(counts(&[("a", 850, 999), ("a", 850, 1_029)]), 1, "the first is silent");
        assert_eq!(counts(&[("a", 850, 1_029), ("c", 850, 1_029)]), 1, "of no pod of this Deployment");
        assert_eq!(counts(&TWO), 2);
    }

    #[test]
    fn a_number_counts_that_was_seen_in_each_pass_and_for_ten_minutes() {
        let (mut fleet, pods) = (Fleet::default(), ["a"]);
        assert_eq!(fleet.at(1_000, 1, &pods, &TWO).0, 1);
        assert_eq!(fleet.at(1_020, 1, &pods, &TWO[..1]).0, 1, "the other one had died while Redis was away");
        assert_eq!(fleet.at(1_021, 1, &pods, &TWO).0, 1);
        assert_eq!(fleet.at(1_056, 1, &pods, &TWO).0, 1);
        assert_eq!(fleet.at(1_057, 1, &pods, &TWO).0, 2);
        assert_eq!(fleet.at(1_058, 1, &pods, &TWO).0, 2);
        assert_eq!(fleet.at(1_657, 1, &["b"], &[]).0, 2, "a rollout: none is old enough");
        assert_eq!(fleet.at(1_658, 1, &["b"], &[]).0, 1);
    }

    #[test]
    fn each_pod_has_its_own_number_and_one_that_has_not_reported_that_of_the_others() {
        let seen = [("old", 800, 1_029), ("a", 850, 1_029), ("a", 850, 1_029), ("a", 850, 1_029)];
        let counted = Fleet::default().believes(1_000, 1, &["old", "a", "new"], &seen);
        assert_eq!(counted, (3, of(&[("old", 1)])), "a rollout to an image with three");
    }

    #[test]
    fn a_template_that_says_fewer_than_before_is_believed() {
        let (mut fleet, four) = (Fleet::default(), [("a", 850, 1_029); 4]);
        assert_eq!(fleet.believes(990, 4, &["a"], &four), (4, of(&[])));
        let seen = [&four[..], &[("b", 900, 1_029)]].concat();
        assert_eq!(fleet.believes(1_040, 1, &["a", "b"], &seen), (1, of(&[("a", 4)])));
    }

    #[test]
    fn without_the_ledger_nothing_new_is_seen_and_nothing_forgotten() {
        let (mut kept, now) = (Fleet::default(), Timestamp::from_second(2_000).unwrap());
        kept.believes(1_000, 1, &["a"], &TWO);
        let mut targets = fleet(1, &["a"]);
        count(&mut targets, &mut kept.began, None, &mut kept.memory, now);
        assert_eq!(targets[0].workers, 2);
    }
}
