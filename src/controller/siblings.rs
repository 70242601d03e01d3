//! A worker that died in a container that lives on: the kubelet says nothing, but its siblings say which processes their
//! supervisor still has. uvicorn kills a worker that does not answer for 5 s, and starts another. Pure.

use std::collections::BTreeMap;

use crate::ledger::{BookState, Observation, Report};

/// So much later than the last call of a silent worker the last one of its sibling has to be: a report may be 10 s old
/// (`REPORT_EVERY` in `agent/src/constants.py`).
const LATER_MS: u64 = 15_000;

/// The reports of workers that have ended: silent for a lease, and no child of their supervisor any more.
pub fn ended(seen: &Observation) -> Vec<&Report> {
    // One that knows of nobody beside it is not spoken of.
    let speak = || seen.reports.iter().filter(|(_, report)| report.siblings.is_some());
    let silent: Vec<_> = speak().filter(|(id, _)| seen.is_silent(id)).collect();
    // Mostly nobody is silent, and then the others, who may be thousands, are not looked at.
    if silent.is_empty() {
        return Vec::new();
    }
    let mut containers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, report) in speak() {
        containers.entry((&report.pod_uid, &report.container)).or_default().push((id, report));
    }
    let is_missed = |(id, report): &(&String, &Report)| {
        let mut beside = containers.get(&(&report.pod_uid, &report.container)).into_iter().flatten();
        beside.any(|(other, by)| misses(by, report) && calls_after(seen, other, id))
    };
    silent.into_iter().filter(is_missed).map(|(_, report)| report).collect()
}

/// Whether a process says that another one of its supervisor's is not there.
fn misses(by: &Report, of: &Report) -> bool {
    let (Some(by), Some(siblings)) = (&by.siblings, &of.siblings) else { return false };
    by.supervisor == siblings.supervisor && !by.workers.contains(&of.worker)
}

/// Whether one has called since the other's last call, in each book of that.
fn calls_after(seen: &Observation, one: &str, other: &str) -> bool {
    let mut last = seen.books.values().filter_map(|book| until(book, other).map(|until_ms| (book, until_ms)));
    last.all(|(book, until_ms)| until(book, one).is_some_and(|later| later > until_ms + LATER_MS))
}

fn until(book: &BookState, id: &str) -> Option<u64> {
    book.members.get(id).map(|record| record.until_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{BookId, MemberRecord, Unit};

    /// A worker: its process id, its supervisor, whom it names, and until when its lease lasts.
    type Worker<'a> = (u32, u32, &'a [u32], u64);

    /// Who has ended when the ledger's clock is at 100 s, by process id.
    fn who(workers: &[Worker<'_>]) -> Vec<u32> {
        let mut seen = Observation::default();
        let book = seen.books.entry(BookId::new("gpt", Unit::Tokens)).or_default();
        book.clock_ms = 100_000;
        for (worker, supervisor, names, until_ms) in workers {
            let id = format!("u.{worker}.{until_ms}");
            let report = serde_json::json!({"pod": "p", "podUid": "u", "container": "litellm", "worker": worker, "startedMs": 0,
                "agent": "0.1.0", "state": "Enforcing", "siblings": {"supervisor": supervisor, "workers": names}});
            book.members.insert(id.clone(), MemberRecord { until_ms: *until_ms, ..MemberRecord::default() });
            seen.reports.insert(id, serde_json::from_value(report).unwrap());
        }
        ended(&seen).into_iter().map(|report| report.worker).collect()
    }

    #[test]
    fn a_silent_worker_that_its_supervisor_does_not_have_any_more_has_ended() {
        let lives: Worker<'_> = (9, 1, &[9, 10], 129_000);
        assert_eq!(who(&[lives, (8, 1, &[8, 9], 99_999)]), [8]);
        assert!(who(&[lives, (10, 1, &[9, 10], 99_999)]).is_empty(), "it is frozen");
        assert!(who(&[lives, (8, 1, &[8, 9], 100_000)]).is_empty(), "its lease lasts");
        assert!(who(&[lives, (8, 2, &[8], 99_999)]).is_empty(), "another supervisor's");
        assert!(who(&[(8, 1, &[8, 9], 99_999)]).is_empty(), "nobody says so");
        let at_once: Worker<'_> = (9, 1, &[9, 10], 114_999);
        assert!(who(&[at_once, (8, 1, &[8, 9], 99_999)]).is_empty(), "what the sibling says may be older");
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        for siblings in
            ["1", "null", "{}", r#"{"supervisor": -1, "workers": []}"#, r#"{"supervisor": 1, "workers": ["x"]}"#]
        {
            let text = format!(
                r#"{{"pod": "p", "podUid": "u", "container": "c", "worker": 1, "startedMs": 0, "agent": "a", "state": "Enforcing",
                "siblings": {siblings}}}"#
            );
            assert_eq!(serde_json::from_str::<Report>(&text).unwrap().siblings, None, "{siblings}");
        }
    }
}
