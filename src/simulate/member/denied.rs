//! What a process refused in the last 60 s, each request once however often it was tried: the model of `Denied` in
//! `agent/src/counts.py`.

use std::collections::{HashMap, VecDeque};

use super::ring::WINDOW;

/// Refused requests by their number.
#[derive(Clone, Debug, Default)]
pub struct Denied {
    total: f64,
    queue: VecDeque<(f64, u64)>,
    by_id: HashMap<u64, f64>,
}

impl Denied {
    /// What was refused and has not been admitted since.
    #[must_use]
    pub const fn total(&self) -> f64 {
        self.total
    }

    /// Forgets what is older than the window.
    pub fn advance(&mut self, now: f64) {
        while let Some(&(at, id)) = self.queue.front() {
            if at + WINDOW > now {
                break;
            }
            self.queue.pop_front();
            self.forget(id);
        }
    }

    /// A refusal; a second one of the same request adds nothing.
    pub fn add(&mut self, id: u64, amount: f64, now: f64) {
        self.advance(now);
        if let std::collections::hash_map::Entry::Vacant(place) = self.by_id.entry(id) {
            place.insert(amount);
            self.queue.push_back((now, id));
            self.total += amount;
        }
    }

    /// The request was admitted after all.
    pub fn forget(&mut self, id: u64) {
        self.total -= self.by_id.remove(&id).unwrap_or(0.0);
        if self.by_id.is_empty() {
            self.total = 0.0;
        }
    }
}
