//! How many processes share a Redis, over all TokenBudgets: what the beats of each of them go by.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Every TokenBudget has had a pass by then, after another operator led.
const KNOWN_AFTER: Duration = Duration::from_secs(30);

/// The processes of each TokenBudget, by its UID.
#[derive(Debug, Default)]
pub struct Crowd {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    of: HashMap<String, (String, u32)>,
    /// Sums by server.
    all: HashMap<String, u64>,
    since: Option<Instant>,
}

impl Crowd {
    /// Takes note of the most processes of a TokenBudget whose ledger is on this server.
    pub fn set(&self, uid: &str, server: String, processes: u32, now: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.since.get_or_insert(now);
        *inner.all.entry(server.clone()).or_default() += u64::from(processes);
        let old = inner.of.insert(uid.to_owned(), (server, processes));
        inner.take(old);
    }

    /// The processes of the others whose ledgers are on this server.
    pub fn beside(&self, uid: &str, server: &str) -> u32 {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let own = inner.of.get(uid).filter(|(of, _)| of == server).map_or(0, |(_, processes)| u64::from(*processes));
        let all = inner.all.get(server).copied().unwrap_or(0);
        u32::try_from(all - own).unwrap_or(u32::MAX)
    }

    /// Whether every TokenBudget is among them by now.
    pub fn is_known(&self, now: Instant) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.since.is_some_and(|since| now.duration_since(since) >= KNOWN_AFTER)
    }

    /// Forgets a TokenBudget that is gone.
    pub fn forget(&self, uid: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let old = inner.of.remove(uid);
        inner.take(old);
    }

    /// Forgets all: another operator leads.
    pub fn clear(&self) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = Inner::default();
    }
}

impl Inner {
    fn take(&mut self, old: Option<(String, u32)>) {
        if let Some((server, processes)) = old
            && let Entry::Occupied(mut all) = self.all.entry(server)
        {
            *all.get_mut() -= u64::from(processes);
            if *all.get() == 0 {
                all.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{RedisLedger, Timeouts};

    fn server(url: &str) -> String {
        RedisLedger::connect(url, Timeouts::default()).unwrap().server()
    }

    #[tokio::test]
    async fn those_of_one_server_are_counted_whatever_they_reach_it_with() {
        let (crowd, now) = (Crowd::default(), Instant::now());
        crowd.set("a", server("redis://redis:6379/0"), 20, now);
        crowd.set("b", server("rediss://user:p%40ss@redis:6379/1"), 300, now);
        crowd.set("c", server("redis://other:6379"), 4_000, now);
        assert_eq!(
            ["a", "b", "c", "new"].map(|uid| crowd.beside(uid, &server("redis://redis:6379"))),
            [300, 20, 320, 320]
        );
        crowd.set("b", server("redis://redis:6379"), 40, now);
        assert_eq!(crowd.beside("a", &server("redis://redis:6379")), 40, "it has become smaller");
        crowd.set("b", server("redis://other:6379"), 40, now);
        assert_eq!(crowd.beside("a", &server("redis://redis:6379")), 0, "it has moved");
        crowd.forget("c");
        assert_eq!(crowd.beside("new", &server("redis://other:6379")), 40);
    }

    #[tokio::test]
    async fn a_new_leader_knows_all_of_them_after_half_a_minute() {
        let (crowd, now) = (Crowd::default(), Instant::now());
        assert!(!crowd.is_known(now));
        crowd.set("a", server("redis://redis"), 1, now);
        assert!(!crowd.is_known(now + KNOWN_AFTER - Duration::from_millis(1)));
        assert!(crowd.is_known(now + KNOWN_AFTER));
        crowd.clear();
        assert!(!crowd.is_known(now + KNOWN_AFTER));
        assert_eq!(crowd.beside("b", &server("redis://redis")), 0);
    }
}
