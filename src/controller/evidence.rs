//! Which containers have ended, as the kubelet said, or as the node of a pod that vanished shows (`vanished`), and which workers in
//! one that lives, as their siblings said (`siblings`): the only evidence that a process is gone (design rule 8).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::agent_pod::AgentPod;
use crate::ledger::{HOLD_MS, Report};

/// How long evidence is kept after it was seen: longer than the ledger holds the record of an ended member (65 s). That of a
/// pod that is still there is seen again in each pass, however long the ledger cannot be told.
const KEEP: SignedDuration = SignedDuration::from_mins(30);

/// An end without a time of the kubelet's is taken to be so long after it was seen, as the operator's clock may be behind the
/// node's: a window later nothing counts as having left before it (`plan_member` in `ledger/rules.rs`).
const NO_TIME: SignedDuration = SignedDuration::from_millis(HOLD_MS as i64);

/// When containers and pods ended.
#[derive(Debug, Default)]
pub struct Evidence {
    ended: Mutex<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    /// By pod UID and container name.
    containers: HashMap<(String, String), Ended>,
    /// Pods of which no container runs any more, nor ever will, by UID. The status of one that was evicted may name no time for
    /// the end of its containers, or no containers at all.
    pods: HashMap<String, Ended>,
    /// Workers of containers that live, by pod UID, container name, process id and start.
    workers: HashMap<(String, String, u32, u64), Ended>,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    /// The newest `finishedAt` of a container; of a pod or a worker when it was first seen to be over, and [`NO_TIME`].
    finished: Timestamp,
    /// When this was seen last.
    seen: Timestamp,
}

impl Evidence {
    /// Takes note of the ended containers in a pod's status. Call it with every version of a pod that a watch brings, the
    /// last one included.
    pub fn note(&self, pod: &AgentPod, now: Timestamp) {
        self.keep(pod, now);
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |ended: &Ended| now.duration_since(ended.seen) < KEEP;
        ended.containers.retain(|_, ended| is_fresh(ended));
        ended.pods.retain(|_, ended| is_fresh(ended));
        ended.workers.retain(|_, ended| is_fresh(ended));
    }

    /// Keeps what the status of a pod that is there says.
    pub fn keep(&self, pod: &AgentPod, now: Timestamp) {
        let mut said = pod.finished().peekable();
        let Some(uid) = &pod.metadata.uid else { return };
        if said.peek().is_none() && !pod.is_over() {
            return;
        }
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if pod.is_over() {
            // The first word stays: it does not end again with each pass.
            let known = ended.pods.entry(uid.clone()).or_insert(Ended { finished: now + NO_TIME, seen: now });
            known.seen = now;
        }
        for (container, finished) in said {
            // A cache may be behind what the watch has brought.
            let known =
                ended.containers.entry((uid.clone(), container.to_owned())).or_insert(Ended { finished, seen: now });
            *known = Ended { finished: known.finished.max(finished), seen: now };
        }
    }

    /// Takes note of a pod that vanished, and whose processes have ended by now.
    pub fn vanished(&self, pod_uid: &str, container: &str, now: Timestamp) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.containers.insert((pod_uid.to_owned(), container.to_owned()), Ended { finished: now, seen: now });
    }

    /// Takes note of a worker that has ended by now.
    pub fn worker_ended(&self, report: &Report, now: Timestamp) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ended.workers.entry(worker(report)).or_insert(Ended { finished: now + NO_TIME, seen: now });
        known.seen = now;
    }

    /// When the process of this report ended: its container, the whole pod, or it alone.
    pub fn end_of(&self, report: &Report) -> Option<u64> {
        self.finished_ms(&report.pod_uid, &report.container, report.started_ms).or_else(|| {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.workers.get(&worker(report)).and_then(unix_ms)
        })
    }

    /// When a process that started at `started_ms` in this container ended: the container ended after that, or the whole pod
    /// has. Both by the wall clock of the node, unix ms. The kubelet cuts `finishedAt` to whole seconds, so a process of the
    /// next container never starts before it.
    fn finished_ms(&self, pod_uid: &str, container: &str, started_ms: u64) -> Option<u64> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let of_container = ended.containers.get(&(pod_uid.to_owned(), container.to_owned())).and_then(unix_ms);
        of_container.filter(|finished| started_ms < *finished).or_else(|| ended.pods.get(pod_uid).and_then(unix_ms))
    }
}

fn unix_ms(ended: &Ended) -> Option<u64> {
    u64::try_from(ended.finished.as_millisecond()).ok()
}

fn worker(report: &Report) -> (String, String, u32, u64) {
    (report.pod_uid.clone(), report.container.clone(), report.worker, report.started_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_ends_alone_and_when_that_was_seen_first() {
        let evidence = Evidence::default();
        let report = |worker: u32| -> Report {
            serde_json::from_value(serde_json::json!({"pod": "p", "podUid": "u", "container": "c", "worker": worker,
                "startedMs": 7, "agent": "a", "state": "Enforcing"}))
            .unwrap()
        };
        let at = |minutes: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        evidence.worker_ended(&report(8), at(1));
        evidence.worker_ended(&report(8), at(20));
        assert_eq!((evidence.end_of(&report(8)), evidence.end_of(&report(9))), (Some(60_000 + HOLD_MS), None));
        evidence.note(&AgentPod::default(), at(49));
        assert!(evidence.end_of(&report(8)).is_some());
        evidence.note(&AgentPod::default(), at(50));
        assert_eq!(evidence.end_of(&report(8)), None);
    }

    fn pod(yaml: &str) -> AgentPod {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn only_processes_from_before_the_end_are_gone() {
        let evidence = Evidence::default();
        let restarted = pod(r#"
            metadata: {uid: u1, name: p}
            status:
              containerStatuses:
              - name: litellm
                image: x
                imageID: x
                ready: true
                restartCount: 1
                state: {running: {startedAt: "2026-01-01T00:00:11Z"}}
                lastState: {terminated: {exitCode: 137, finishedAt: "2026-01-01T00:00:10Z"}}
        "#);
        let now: Timestamp = "2026-01-01T00:00:12Z".parse().unwrap();
        evidence.note(&restarted, now);
        let at = |text: &str| u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap();
        let early = at("2026-01-01T00:00:02Z");
        assert_eq!(evidence.finished_ms("u1", "litellm", early), Some(at("2026-01-01T00:00:10Z")));
        assert_eq!(evidence.finished_ms("u1", "litellm", at("2026-01-01T00:00:10.5Z")), None);
        assert_eq!(evidence.finished_ms("u1", "other", early), None);
        assert_eq!(evidence.finished_ms("u2", "litellm", early), None);
    }

    #[test]
    fn what_a_pod_that_is_there_says_is_kept() {
        let evidence = Evidence::default();
        let ended = pod(
            r#"{metadata: {uid: u1, name: p}, status: {containerStatuses: [{name: litellm, image: x, imageID: x,
            ready: true, restartCount: 1, lastState: {terminated: {exitCode: 1, finishedAt: "2026-01-01T00:00:10Z"}}}]}}"#,
        );
        let at = |minutes: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        let known = || evidence.finished_ms("u1", "litellm", 0).is_some();
        evidence.note(&ended, at(0));
        evidence.keep(&ended, at(20));
        let passes = |minutes| evidence.note(&AgentPod::default(), at(minutes));
        passes(49);
        assert!(known());
        passes(50);
        assert!(!known(), "the pod is gone for half an hour");
    }

    #[test]
    fn a_running_pod_is_no_evidence() {
        let evidence = Evidence::default();
        let running = pod(r#"
            metadata: {uid: u1, name: p, deletionTimestamp: "2026-01-01T00:00:00Z"}
            status:
              containerStatuses:
              - {name: litellm, image: x, imageID: x, ready: true, restartCount: 0, state: {running: {startedAt: "2026-01-01T00:00:00Z"}}}
        "#);
        evidence.note(&running, Timestamp::UNIX_EPOCH);
        assert_eq!(evidence.finished_ms("u1", "litellm", 0), None);
    }

    #[test]
    fn a_pod_that_is_over_is_evidence_without_a_time() {
        let evicted = |containers: &str| {
            pod(&format!(
                "{{metadata: {{uid: u1, name: p}}, status: {{phase: Failed, reason: Evicted, containerStatuses: {containers}}}}}"
            ))
        };
        let unknown = "[{name: litellm, restartCount: 1, state: {terminated: {exitCode: 137, reason: ContainerStatusUnknown, \
             finishedAt: null}}, lastState: {terminated: {finishedAt: '2026-01-01T00:00:10Z'}}}]";
        let at =
            |seconds: i64| "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
        let ms = |at: Timestamp| u64::try_from(at.as_millisecond()).unwrap();
        for containers in [unknown, "[]", "null"] {
            let evidence = Evidence::default();
            let finished = |started: i64| evidence.finished_ms("u1", "litellm", ms(at(started)));
            evidence.note(&evicted(containers), at(100));
            assert_eq!(finished(20), Some(ms(at(165))), "{containers}");
            evidence.keep(&evicted(containers), at(1_500));
            assert_eq!(finished(20), Some(ms(at(165))), "the first word stays");
            assert_eq!(finished(170), Some(ms(at(165))), "whatever the clocks say, nothing of it runs");
            assert_eq!(evidence.finished_ms("u2", "litellm", 0), None);
            evidence.note(&AgentPod::default(), at(1_500) + KEEP);
            assert_eq!(finished(20), None, "it is gone");
        }
        let evidence = Evidence::default();
        evidence.note(&evicted(unknown), at(100));
        assert_eq!(evidence.finished_ms("u1", "litellm", ms(at(5))), Some(ms(at(10))), "one from before the restart");
    }
}
