//! Which policies a process may still go by: the one that the ledger has, and those that it had until a moment ago. Pure.

use jiff::Timestamp;

use super::arrange::LEASE;

/// The versions of the policy that were in the ledger within a lease.
#[derive(Debug, Default)]
pub struct StoredPolicies {
    /// Since when it is looked; an operator that has just begun does not know which one was there before.
    since: Option<Timestamp>,
    /// Each with the time when it was seen last.
    seen: Vec<(String, Timestamp)>,
    now: Timestamp,
}

impl StoredPolicies {
    /// Takes note of what the ledger has now.
    pub fn note(&mut self, version: Option<&str>, now: Timestamp) {
        self.now = now;
        let since = *self.since.get_or_insert(now);
        self.since = Some(since.min(now)); // a clock that was set back
        self.seen.retain(|(known, at)| now.duration_since(*at) <= LEASE && version != Some(known));
        self.seen.extend(version.map(|version| (version.to_owned(), now)));
    }

    /// Whether a process that reports this version is not behind.
    #[must_use]
    pub fn is_recent(&self, version: &str) -> bool {
        let begins = self.since.is_none_or(|since| self.now.duration_since(since) <= LEASE);
        begins || self.seen.is_empty() || self.seen.iter().any(|(known, _)| known == version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_lease_to_take_a_new_policy() {
        let mut policies = StoredPolicies::default();
        let mut is_recent = |stored: Option<&str>, second: i64, has: &str| {
            policies.note(stored, Timestamp::from_second(second).unwrap());
            policies.is_recent(has)
        };
        assert!(is_recent(Some("b"), 0, "a"), "an operator that has just begun");
        assert!(is_recent(Some("b"), 30, "a"));
        assert!(!is_recent(Some("b"), 31, "a"));
        assert!(is_recent(Some("b"), 31, "b"));
        assert!(is_recent(Some("c"), 32, "b"));
        assert!(is_recent(Some("d"), 50, "b"));
        assert!(is_recent(Some("e"), 61, "b"), "many edits of an HPA");
        assert!(!is_recent(Some("e"), 62, "b"), "each has a lease of its own");
        assert!(is_recent(Some("e"), 62, "d"));
        assert!(!is_recent(Some("f"), 63, "a"), "a new one is no excuse for one that was behind");
        assert!(is_recent(None, 99, "f"), "a ledger that was flushed");
        assert!(is_recent(Some("g"), 10, "e"), "a clock that was set back");
    }
}
