//! The ledger's server in the simulation: the books by their rules, its clock, and the replica that lags behind it.

use std::collections::VecDeque;

use super::process::Outgoing;
use crate::ledger::rules::{Moment, Rule, Rules};
use crate::ledger::{BookAnswer, BookStanding, BookState, Epoch, PlanWrite, PlannedBook};

/// How far back a replica may lag, in seconds.
const MOST_LAG: f64 = 5.0;

/// What is replicated.
#[derive(Clone, Debug, Default)]
struct Data {
    epoch: Option<u64>,
    books: Vec<Option<BookState>>,
}

/// A server.
#[derive(Debug)]
pub struct Server {
    data: Data,
    /// Earlier states, for a replica that takes over.
    history: VecDeque<(f64, Data)>,
    keeps_history: bool,
    /// How often another server has taken over, and as what it names itself.
    servers: u64,
    replid: String,
    /// What its clock differs from true time, in seconds.
    clock: f64,
    /// Until when it refuses connections.
    pub down_until: f64,
    /// Until when it is not heard.
    pub silent_until: f64,
    rules: Rules,
    /// What was lent that the pool did not have: a breach.
    pub overlent: Option<String>,
}

impl Server {
    /// An empty server for so many books.
    #[must_use]
    pub fn new(books: usize, keeps_history: bool, rules: Rules) -> Self {
        Self {
            data: Data { epoch: None, books: vec![None; books] },
            history: VecDeque::new(),
            keeps_history,
            servers: 1,
            replid: "1".to_owned(),
            clock: 1_790_000_000.0,
            down_until: 0.0,
            silent_until: 0.0,
            rules,
            overlent: None,
        }
    }

    /// The server's time, in seconds.
    #[must_use]
    pub fn time(&self, now: f64) -> f64 {
        ((now + self.clock) * 1000.0).floor() / 1000.0
    }

    fn time_ms(&self, now: f64) -> u64 {
        ((now + self.clock) * 1000.0).max(0.0) as u64
    }

    /// The books.
    #[must_use]
    pub fn books(&self) -> &[Option<BookState>] {
        &self.data.books
    }

    fn remember(&mut self, now: f64) {
        if !self.keeps_history {
            return;
        }
        if self.history.back().is_none_or(|(at, _)| now - at >= 0.1) {
            self.history.push_back((now, self.data.clone()));
        }
        while self.history.front().is_some_and(|(at, _)| now - at > MOST_LAG + 1.0) {
            self.history.pop_front();
        }
    }

    /// A member's call.
    pub fn call(&mut self, member: &str, out: &Outgoing, now: f64) -> Vec<BookAnswer> {
        self.remember(now);
        let (time_ms, rules) = (self.time_ms(now), self.rules);
        let at = Moment { time_ms, replid: &self.replid };
        let mut answers = Vec::with_capacity(out.asks.len());
        for (place, (book, ask)) in self.data.books.iter_mut().zip(&out.asks).enumerate() {
            let Some(book) = book else {
                answers.push(BookAnswer { state: BookStanding::None, grant: 0, share: 0, pool: 0, budget: 0, safe: 0 });
                continue;
            };
            let (lent, known) = (book.lent, book.members.contains_key(member));
            let answer = book.settle(member, out.seq, out.leave, ask, &at, &rules);
            // What the member's record was before.
            let before = (lent + answer.grant).saturating_sub(book.lent);
            let covered =
                if !known && book.learning() { ask.keep } else { ask.keep.min(before.max(ask.spent).max(ask.off)) };
            if answer.state != BookStanding::Stale && answer.grant > covered && answer.pool < 0 {
                self.overlent =
                    Some(format!("book {place}: {} lent to {member}, the pool is {}", answer.grant, answer.pool));
            }
            answers.push(answer);
        }
        answers
    }

    /// The operator takes over.
    pub fn claim(&mut self, now: f64) -> Epoch {
        let epoch = (self.data.epoch.unwrap_or(0) + 1).max(self.time_ms(now));
        self.data.epoch = Some(epoch);
        Epoch(epoch)
    }

    /// The operator's plan; `None` when it is fenced.
    pub fn plan(&mut self, epoch: Epoch, writes: &[PlanWrite], now: f64) -> Option<Vec<PlannedBook>> {
        self.remember(now);
        if self.data.epoch != Some(epoch.0) && self.rules.hold(Rule::Fence) {
            return None;
        }
        let time_ms = self.time_ms(now);
        let at = Moment { time_ms, replid: &self.replid };
        let planned = self.data.books.iter_mut().zip(writes).map(|(book, write)| match book {
            Some(book) => book.plan(write, &at, &self.rules).0,
            None => book.insert(BookState::create(write, &at, &self.rules)).planned(true),
        });
        Some(planned.collect())
    }

    /// A replica that lacks the writes of the last `lag` seconds takes over.
    pub fn fail_over(&mut self, lag: f64, now: f64) {
        let place = self.history.iter().rposition(|(at, _)| *at <= now - lag);
        if let Some((_, data)) = place.and_then(|place| self.history.get(place)) {
            self.data = data.clone();
        }
        self.is_another();
    }

    /// It starts again, with its data or without.
    pub fn restart(&mut self, keep: bool) {
        if !keep {
            self.flush();
        }
        self.is_another();
    }

    fn is_another(&mut self) {
        self.servers += 1;
        self.replid = self.servers.to_string();
        self.history.clear();
    }

    /// Everything is deleted.
    pub fn flush(&mut self) {
        self.data = Data { epoch: None, books: vec![None; self.data.books.len()] };
    }

    /// The clock is set.
    pub const fn set_clock(&mut self, by: f64) {
        self.clock += by;
    }

    /// Sum of the records against what the books say, and what is left of them: a breach, if any.
    #[must_use]
    pub fn breach(&self) -> Option<String> {
        if self.overlent.is_some() {
            return self.overlent.clone();
        }
        self.data.books.iter().flatten().enumerate().find_map(|(place, book)| {
            let sum: u64 = book.members.values().map(|m| m.record).sum();
            (sum != book.lent).then(|| format!("book {place}: records come to {sum}, lent says {}", book.lent))
        })
    }
}
