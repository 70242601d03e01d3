//! A ledger in memory, by the same rules: for the simulator and for tests. It has no clock and no identity of its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::rules::{Moment, Rules};
use super::{
    Answer, BookAnswer, BookId, BookStanding, BookState, Call, Epoch, Ledger, LedgerError, Observation, PlanWrite,
    Planned, Policy, Report,
};

/// What `close.lua` leaves.
const CLOSED: &str = "detached";

/// The policy that `close.lua` leaves.
const CLOSED_POLICY: &str = r#"{"version":"detached","mode":"Detached"}"#;

/// What a server holds for one TokenBudget. A clone is a replica of this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// The operator's fence; `None` before the first claim.
    pub epoch: Option<u64>,
    /// Version and text of the policy.
    pub policy: Option<(String, String)>,
    /// The members' reports.
    pub reports: BTreeMap<String, Report>,
    /// The books.
    pub books: BTreeMap<BookId, BookState>,
}

impl Stored {
    /// `claim.lua`
    pub fn claim(&mut self, at: &Moment<'_>) -> Epoch {
        let epoch = (self.epoch.unwrap_or(0) + 1).max(at.time_ms);
        self.epoch = Some(epoch);
        Epoch(epoch)
    }

    fn fence(&self, epoch: Epoch) -> Result<(), LedgerError> {
        if self.epoch == Some(epoch.0) { Ok(()) } else { Err(LedgerError::Fenced) }
    }

    fn is_closed(&self) -> bool {
        self.policy.as_ref().is_some_and(|(version, _)| version == CLOSED)
    }

    /// `publish.lua`
    ///
    /// # Errors
    /// [`LedgerError::Fenced`]
    pub fn publish(&mut self, epoch: Epoch, policy: &Policy, removed: &[BookId]) -> Result<(), LedgerError> {
        self.fence(epoch)?;
        let text = serde_json::to_string(policy).map_err(|_| LedgerError::malformed("policy"))?;
        self.policy = Some((policy.version.clone(), text));
        self.books.retain(|book, _| !removed.contains(book));
        Ok(())
    }

    /// `plan.lua`
    ///
    /// # Errors
    /// [`LedgerError::Fenced`].
    pub fn plan(
        &mut self,
        epoch: Epoch,
        writes: &[PlanWrite],
        at: &Moment<'_>,
        rules: &Rules,
    ) -> Result<Planned, LedgerError> {
        if rules.hold(super::rules::Rule::Fence) {
            self.fence(epoch)?;
        }
        let mut planned = Planned::default();
        let mut leaving = Vec::new();
        for write in writes {
            leaving
                .extend(write.members.iter().filter(|(_, plan)| plan.finished_ms.is_some()).map(|(id, _)| id.clone()));
            let outcome = match self.books.get_mut(&write.book) {
                Some(book) => {
                    let (outcome, dropped) = book.plan(write, at, rules);
                    leaving.extend(dropped);
                    outcome
                }
                None => {
                    let book = BookState::create(write, at, rules);
                    let outcome = book.planned(true);
                    self.books.insert(write.book.clone(), book);
                    outcome
                }
            };
            planned.books.insert(write.book.clone(), outcome);
        }
        // A member whose records went from every book has nothing left to report.
        for id in leaving {
            let held = writes.iter().any(|w| self.books.get(&w.book).is_some_and(|b| b.members.contains_key(&id)));
            if !held && self.reports.remove(&id).is_some() {
                planned.dropped.push(id);
            }
        }
        planned.dropped.sort();
        Ok(planned)
    }

    /// `close.lua`
    ///
    /// # Errors
    /// [`LedgerError::Fenced`]
    pub fn close(&mut self, epoch: Epoch, books: &[BookId]) -> Result<(), LedgerError> {
        self.fence(epoch)?;
        self.reports.clear();
        self.books.retain(|book, _| !books.contains(book));
        self.policy = Some((CLOSED.to_owned(), CLOSED_POLICY.to_owned()));
        Ok(())
    }

    /// `call.lua`
    pub fn call(&mut self, call: &Call<'_>, at: &Moment<'_>, rules: &Rules) -> Answer {
        let mut answers = Vec::with_capacity(call.books.len());
        for asked in call.books {
            answers.push(match self.books.get_mut(&asked.book) {
                Some(book) => book.settle(call.member, call.seq, call.leave, &asked.ask, at, rules),
                None => BookAnswer { state: BookStanding::None, grant: 0, share: 0, pool: 0, budget: 0, safe: 0 },
            });
        }
        let (version, text) = self.policy.clone().unwrap_or_default();
        let stale = answers.iter().any(|answer| answer.state == BookStanding::Stale);
        if let Some(report) = call.report
            && !stale
            && !self.is_closed()
        {
            self.reports.insert(call.member.to_owned(), report.clone());
        }
        let policy = (!version.is_empty() && version != call.version).then_some(text);
        Answer { version, time_ms: at.time_ms, policy, books: answers }
    }

    /// What the operator reads.
    #[must_use]
    pub fn observe(&self, books: &[BookId]) -> Observation {
        Observation {
            policy_version: self.policy.as_ref().map(|(version, _)| version.clone()),
            reports: self.reports.clone(),
            unreadable: Vec::new(),
            books: books.iter().filter_map(|id| Some((id.clone(), self.books.get(id)?.clone()))).collect(),
        }
    }
}

/// One server.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    server: Mutex<Server>,
}

/// What a [`MemoryLedger`] is now.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Its TIME, ms since 1970.
    pub time_ms: u64,
    /// Its `master_replid`.
    pub replid: String,
    /// What it holds, by the TokenBudget's UID.
    pub stored: BTreeMap<String, Stored>,
}

impl MemoryLedger {
    /// The server, to move its clock or to look at what it holds.
    pub fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, uid: &str, work: impl FnOnce(&mut Stored, &Moment<'_>) -> T) -> T {
        let mut server = self.server();
        let Server { time_ms, replid, stored } = &mut *server;
        let at = Moment { time_ms: *time_ms, replid: replid.as_str() };
        work(stored.entry(uid.to_owned()).or_default(), &at)
    }
}

impl Ledger for MemoryLedger {
    async fn claim(&self, uid: &str) -> Result<Epoch, LedgerError> {
        Ok(self.with(uid, Stored::claim))
    }

    async fn observe(&self, uid: &str, books: &[BookId]) -> Result<Observation, LedgerError> {
        Ok(self.with(uid, |stored, _| stored.observe(books)))
    }

    async fn policy(&self, uid: &str) -> Result<Option<Policy>, LedgerError> {
        let text = self.with(uid, |stored, _| stored.policy.as_ref().map(|(_, text)| text.clone()));
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    async fn publish(&self, uid: &str, epoch: Epoch, policy: &Policy, removed: &[BookId]) -> Result<(), LedgerError> {
        self.with(uid, |stored, _| stored.publish(epoch, policy, removed))
    }

    async fn plan(&self, uid: &str, epoch: Epoch, writes: &[PlanWrite]) -> Result<Planned, LedgerError> {
        self.with(uid, |stored, at| stored.plan(epoch, writes, at, &Rules::default()))
    }

    async fn close(&self, uid: &str, epoch: Epoch, books: &[BookId]) -> Result<(), LedgerError> {
        self.with(uid, |stored, _| stored.close(epoch, books))
    }

    async fn call(&self, uid: &str, call: &Call<'_>) -> Result<Answer, LedgerError> {
        Ok(self.with(uid, |stored, at| stored.call(call, at, &Rules::default())))
    }
}
