//! What the handlers share: settings, books and the quota's windows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ledger::{Ledger, Ticket};
use super::settings::Settings;
use crate::clock::unix_ms;
use crate::judge::{Arrival, RollingWindow, WINDOW_MS};

/// The state of a provider.
#[derive(Debug)]
pub struct State {
    settings: Mutex<Arc<Settings>>,
    books: Mutex<Books>,
    requests: AtomicU64,
}

/// The books and the quota windows: under one lock, so that an arrival is
/// stamped, judged and written down in one step.
#[derive(Debug)]
pub struct Books {
    /// What was seen.
    pub ledger: Ledger,
    quota: BTreeMap<String, RollingWindow>,
}

/// What the provider decided about an arrival.
#[derive(Debug)]
pub enum Verdict {
    /// Admitted; the ticket ends it.
    Admitted(Ticket),
    /// Refused because an injected failure hit it.
    Failed,
    /// Refused by the quota; room is there again after this many milliseconds
    /// (`None`: it is larger than the quota).
    OverQuota {
        /// The quota, in tokens per minute.
        limit: u64,
        /// Tokens of it in use.
        spent: u64,
        /// Milliseconds until it fits.
        wait_ms: Option<u64>,
    },
}

/// Locks, and goes on with the data if another thread died while holding it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// A provider that has seen nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Mutex::new(Arc::new(settings)),
            books: Mutex::new(Books { ledger: Ledger::new(unix_ms()), quota: BTreeMap::new() }),
            requests: AtomicU64::new(0),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        lock(&self.settings).clone()
    }

    /// Replaces the settings.
    pub fn set(&self, settings: Settings) {
        *lock(&self.settings) = Arc::new(settings);
    }

    /// Replaces some of the settings, in one step.
    pub fn patch(&self, patch: &serde_json::Value) -> Result<Arc<Settings>, String> {
        let mut settings = lock(&self.settings);
        *settings = Arc::new(settings.patched(patch)?);
        Ok(settings.clone())
    }

    /// The books, locked.
    pub fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    /// Forgets all usage and what the quota holds.
    pub fn reset(&self) {
        let mut books = self.books();
        books.ledger.reset(unix_ms());
        books.quota.clear();
    }

    /// A new number for a request.
    pub fn next_number(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Stamps an arrival, decides about it and writes it down.
    pub fn arrive(
        &self,
        settings: &Settings,
        tokens: u64,
        model: &str,
        (key, id): (&str, Option<&str>),
        fails: bool,
    ) -> Verdict {
        let mut books = self.books();
        let at_ms = unix_ms();
        let arrival = Arrival { at_ms, tokens };
        if fails {
            let status = settings.failures.status;
            books.ledger.arrived(arrival, model, key, id, status);
            return Verdict::Failed;
        }
        if let Some(&limit) = settings.quota.get(model) {
            let window = books.quota.entry(model.to_owned()).or_insert_with(|| RollingWindow::new(WINDOW_MS));
            if !window.admit(arrival, limit) {
                let verdict = Verdict::OverQuota {
                    limit,
                    spent: window.sum_at(at_ms),
                    wait_ms: window.wait_ms(at_ms, tokens, limit),
                };
                books.ledger.arrived(arrival, model, key, id, 429);
                return verdict;
            }
        }
        Verdict::Admitted(books.ledger.arrived(arrival, model, key, id, 200))
    }

    /// Writes down the end of an admitted request.
    pub fn end(&self, ticket: &Ticket, tokens: u64) {
        let mut books = self.books();
        books.ledger.ended(ticket, unix_ms(), tokens);
    }
}
