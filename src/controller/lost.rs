//! Members that the ledger had, and that it lost with its data. Such a process may be frozen or cut off, and its pod's object
//! gone without a word: what it may spend when it goes on is then in no record, and nobody else would count it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::evidence::Evidence;
use crate::ledger::{Observation, Report};

/// Members that the ledger was seen to have and that have not ended, by id.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, Member>);

#[derive(Debug)]
struct Member {
    report: Report,
    /// Since when the ledger has no record of it.
    lost_since: Option<Timestamp>,
}

impl Known {
    /// Takes note of what the ledger has now. Members that it has no more stay until there is evidence of their end.
    pub fn note(&mut self, seen: &Observation, evidence: &Evidence, now: Timestamp) {
        // Whether they live, by id.
        let mut records: BTreeMap<&str, bool> = BTreeMap::new();
        for (id, record) in seen.books.values().flat_map(|book| &book.members) {
            *records.entry(id).or_default() |= record.ended_ms.is_none();
        }
        self.0.retain(|id, Member { report, lost_since }| {
            let lives = records.get(&**id).copied();
            *lost_since = lives.is_none().then(|| lost_since.unwrap_or(now));
            // Of one that is not lost the ledger will say so.
            lives.unwrap_or_else(|| evidence.end_of(report).is_none())
        });
        for (id, _) in records.into_iter().filter(|(_, lives)| *lives) {
            let Some(report) = seen.reports.get(id) else { continue };
            match self.0.get_mut(id) {
                Some(known) if known.report == *report => {}
                Some(known) => known.report = report.clone(),
                None => drop(self.0.insert(id.to_owned(), Member { report: report.clone(), lost_since: None })),
            }
        }
    }

    /// Puts the last reports of members whose record is back into what was seen: agents repeat them only each 10 s, and a
    /// record that nobody could tell the pod of would count for nobody.
    pub fn fill(&self, seen: &mut Observation) {
        let ids = seen.books.values().flat_map(|book| book.members.keys());
        let missing = ids.filter(|id| !seen.reports.contains_key(*id));
        let found: Vec<_> = missing.filter_map(|id| Some((id.clone(), self.0.get(id)?.report.clone()))).collect();
        seen.reports.extend(found);
    }

    /// The members of which the ledger has no record, with their last reports, and since when.
    pub fn lost(&self) -> impl Iterator<Item = (&str, &Report, Timestamp)> {
        self.0.iter().filter_map(|(id, member)| Some((id.as_str(), &member.report, member.lost_since?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{BookId, BookState, MemberRecord, Unit};

    fn report(id: &str) -> Report {
        serde_json::from_value(serde_json::json!({"pod": id, "podUid": id, "container": "litellm", "worker": 1,
            "startedMs": 0, "agent": "0.1.0", "state": "Enforcing"}))
        .unwrap()
    }

    fn seen(live: &[&str], ended: &[&str]) -> Observation {
        let record =
            |ended_ms| move |id: &&str| ((*id).to_owned(), MemberRecord { ended_ms, ..MemberRecord::default() });
        let members = live.iter().map(record(None)).chain(ended.iter().map(record(Some(1)))).collect();
        Observation {
            reports: live.iter().chain(ended).map(|id| ((*id).to_owned(), report(id))).collect(),
            books: [(BookId::new("a", Unit::Tokens), BookState { members, ..BookState::default() })].into(),
            ..Observation::default()
        }
    }

    #[test]
    fn a_member_is_lost_until_it_is_back_or_there_is_evidence_of_its_end() {
        let (mut known, evidence) = (Known::default(), Evidence::default());
        let at = |second| Timestamp::from_second(second).unwrap();
        let lost = |known: &Known| -> Vec<(String, i64)> {
            known.lost().map(|(id, _, since)| (id.to_owned(), since.as_second())).collect()
        };
        known.note(&seen(&["a", "b", "c"], &[]), &evidence, at(1));
        assert_eq!(lost(&known), []);
        known.note(&seen(&["b"], &["c"]), &evidence, at(2));
        known.note(&seen(&["b"], &[]), &evidence, at(3));
        assert_eq!(lost(&known), [("a".to_owned(), 2)], "c has said good-bye");
        known.note(&Observation::default(), &evidence, at(4));
        assert_eq!(lost(&known), [("a".to_owned(), 2), ("b".to_owned(), 4)]);
        known.note(&seen(&["b"], &[]), &evidence, at(5));
        assert_eq!(lost(&known), [("a".to_owned(), 2)]);
        evidence.vanished("a", "litellm", at(6));
        known.note(&seen(&["b"], &[]), &evidence, at(7));
        assert_eq!(lost(&known), []);
    }

    #[test]
    fn a_record_that_is_back_has_the_last_report() {
        let (mut known, evidence) = (Known::default(), Evidence::default());
        known.note(&seen(&["a"], &[]), &evidence, Timestamp::UNIX_EPOCH);
        let mut later = seen(&["a"], &[]);
        later.reports.insert("a".to_owned(), Report { policy: "second".to_owned(), ..report("a") });
        known.note(&later, &evidence, Timestamp::UNIX_EPOCH);
        let mut after = seen(&["a", "new"], &[]);
        after.reports.clear();
        known.fill(&mut after);
        assert_eq!(after.reports.iter().map(|(id, r)| (&**id, &*r.policy)).collect::<Vec<_>>(), [("a", "second")]);
    }
}
