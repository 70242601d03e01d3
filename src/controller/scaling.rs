//! How many processes share each limit, and when a change of that is worth an event: once the fleet is as large as it stays. While
//! a large fleet rolls, the number is another in each pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::api::LimitStatus;

/// A fleet whose numbers were the same for so long has scaled.
const STILL: Duration = Duration::from_secs(15);

/// Time between two events, at least.
const PAUSE: Duration = Duration::from_secs(60);

/// How many processes share each limit.
#[derive(Debug, Default)]
pub struct Scaling {
    /// By the limit's name and unit.
    limits: BTreeMap<(String, String), Count>,
    /// Since when all of them are as they are; none until they were seen.
    since: Option<Instant>,
    /// When it was told last.
    told_at: Option<Instant>,
}

#[derive(Debug)]
struct Count {
    /// When the fleet was still last; 0: nobody.
    told: i64,
    now: i64,
}

impl Scaling {
    /// Takes what the status says that an operator before this one wrote.
    pub fn said_before(&mut self, limits: &[LimitStatus]) {
        self.limits = limits.iter().map(|row| (key(row), Count { told: row.members, now: row.members })).collect();
    }

    /// Takes note of the limits of a pass in which the ledger answered, and answers what is to be told now. Of a fleet that
    /// begins or ends the conditions tell.
    pub fn note(&mut self, limits: &[LimitStatus], now: Instant) -> Vec<String> {
        let is_known = |row: &LimitStatus| self.limits.get(&key(row)).is_some_and(|count| count.now == row.members);
        if self.limits.len() != limits.len() || !limits.iter().all(is_known) {
            let before = std::mem::take(&mut self.limits);
            let told = |row: &LimitStatus| before.get(&key(row)).map_or(0, |count| count.told);
            self.limits = limits.iter().map(|row| (key(row), Count { told: told(row), now: row.members })).collect();
            self.since = Some(now);
        }
        let since = *self.since.get_or_insert(now);
        let may_tell = self.told_at.is_none_or(|at| now.duration_since(at) >= PAUSE);
        if now.duration_since(since) < STILL || !may_tell {
            return Vec::new();
        }
        // One for all limits whose fleet grew or shrank alike: with many limits each scaling would be told as often.
        let mut changes: BTreeMap<(i64, i64), BTreeSet<&str>> = BTreeMap::new();
        for ((name, _), count) in &mut self.limits {
            let before = std::mem::replace(&mut count.told, count.now);
            if before != count.now && before > 0 && count.now > 0 {
                changes.entry((before, count.now)).or_default().insert(name);
            }
        }
        if !changes.is_empty() {
            self.told_at = Some(now);
        }
        changes.into_iter().map(|((before, now), limits)| text(&limits, before, now)).collect()
    }
}

fn key(row: &LimitStatus) -> (String, String) {
    (row.name.clone(), row.unit.clone())
}

fn text(limits: &BTreeSet<&str>, before: i64, now: i64) -> String {
    let first = limits.first().copied().unwrap_or_default();
    let others = match limits.len() {
        1 => String::new(),
        more => format!(" (and {} more limits)", more - 1),
    };
    format!("limit {first}{others}: {now} processes share it now, {before} before")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(names: &[&str], members: i64) -> Vec<LimitStatus> {
        let row = |name: &&str| LimitStatus {
            name: (*name).to_owned(),
            unit: "tokens".to_owned(),
            members,
            ..LimitStatus::default()
        };
        names.iter().map(row).collect()
    }

    /// What is told in which second, of a fleet with so many members in each.
    fn told(scaling: &mut Scaling, members: impl IntoIterator<Item = i64>) -> Vec<(usize, String)> {
        let (start, mut told) = (Instant::now(), Vec::new());
        for (second, members) in members.into_iter().enumerate() {
            let at = start + Duration::from_secs(second as u64);
            told.extend(scaling.note(&rows(&["a"], members), at).into_iter().map(|note| (second, note)));
        }
        told
    }

    #[test]
    fn a_scaling_is_told_once_when_it_is_over() {
        let mut scaling = Scaling::default();
        scaling.said_before(&rows(&["a"], 2));
        let members = (2..=40).chain(std::iter::repeat_n(40, 300));
        assert_eq!(told(&mut scaling, members), [(53, "limit a: 40 processes share it now, 2 before".to_owned())]);
    }

    #[test]
    fn one_that_goes_up_and_down_is_told_once_a_minute() {
        let mut scaling = Scaling::default();
        let members = (0..10).flat_map(|i| std::iter::repeat_n(2 + i % 2, 20));
        let at: Vec<_> = told(&mut scaling, members).into_iter().map(|(second, _)| second).collect();
        assert_eq!(at, [35, 95, 155]);
    }

    #[test]
    fn what_comes_back_to_what_it_was_is_no_news() {
        let mut scaling = Scaling::default();
        let members = [20, 5, 20].map(|n| std::iter::repeat_n(n, 10)).into_iter().flatten();
        assert!(told(&mut scaling, std::iter::repeat_n(20, 20).chain(members).chain([20; 20])).is_empty());
    }

    #[test]
    fn a_fleet_that_begins_or_ends_is_told_by_the_conditions() {
        let mut scaling = Scaling::default();
        assert!(told(&mut scaling, [0, 20, 0, 5].map(|n| [n; 20]).into_iter().flatten()).is_empty());
    }

    #[test]
    fn one_event_tells_of_a_scaling_whatever_the_number_of_limits() {
        let (mut scaling, start) = (Scaling::default(), Instant::now());
        scaling.said_before(&rows(&["a", "b", "c"], 2));
        assert!(scaling.note(&rows(&["a", "b", "c"], 5), start).is_empty());
        let notes = scaling.note(&rows(&["a", "b", "c"], 5), start + STILL);
        assert_eq!(notes, ["limit a (and 2 more limits): 5 processes share it now, 2 before"]);
    }
}
