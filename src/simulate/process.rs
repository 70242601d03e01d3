//! One LiteLLM process: its books, its requests, its calls. It knows its own clocks only. The model of `Agent` and `Ledger`
//! in `agent/src`.

use std::collections::{HashMap, VecDeque};

use super::member::{Book, Charge, Clocks, Drift, Sent};
use crate::ledger::rules::{Rule, Rules};
use crate::ledger::{Ask, BookAnswer};

/// Least time between two calls, in seconds.
pub const DRAW_GAP: f64 = 0.05;

/// How often a waiting request looks again, in seconds.
pub const RECHECK: f64 = 0.05;

/// Least time between two beats, in seconds.
const BEAT_GAP: f64 = 0.1;

/// An answer that took longer is dropped, in seconds.
pub const TIMEOUT: f64 = 1.8;

/// An event loop that did not run for longer may have held requests back after their stamp, in seconds.
const STALL: f64 = 0.1;

/// A request stamped this long before a stall may still have been on its way out, in seconds.
const MARGIN: f64 = 0.2;

/// A reservation older than this when it is about to leave is admitted again, in seconds.
const STALE_CHECK: f64 = 1.0;

/// What a request needs of one book.
pub type Need = (usize, f64);

/// A request as the process sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its number.
    pub id: u64,
    /// What it is charged when it is admitted, by book.
    pub needs: Vec<Need>,
    /// What it really costs, in the same order.
    pub actual: Vec<f64>,
    /// Until the end of its answer, in seconds.
    pub latency: f64,
}

/// What becomes of a request that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is reserved.
    Admitted,
    /// It waits for tokens.
    Waits,
    /// It got a 429.
    Refused,
}

/// An admitted request.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What it is.
    pub request: Request,
    charges: Vec<Charge>,
    reserved: f64,
}

/// What a call carries.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its number.
    pub seq: u64,
    /// The final call.
    pub leave: bool,
    /// One entry per book.
    pub asks: Vec<Ask>,
}

/// A call without an answer yet.
#[derive(Clone, Debug)]
struct Flight {
    seq: u64,
    sent: Vec<Sent>,
}

/// What the policy says beyond the books' figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manners {
    /// How long a grant lasts, in seconds.
    pub lease: f64,
    /// Time between beats, in seconds.
    pub beat: f64,
    /// How long a request may wait, in seconds.
    pub max_wait: f64,
}

/// A process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its member id.
    pub member: String,
    /// Its books.
    pub books: Vec<Book>,
    /// What the policy says.
    pub manners: Manners,
    /// Requests that wait, with the end of their patience (boot time).
    pub waiting: VecDeque<(Request, f64)>,
    /// Admitted requests that have not ended, by number.
    pub attempts: HashMap<u64, Attempt>,
    /// When the last call was begun (boot time).
    pub last_call: f64,
    drift: Drift,
    seq: u64,
    flight: Option<Flight>,
    /// Calls that were given up; only without [`Rule::DropLate`] is their answer of any use.
    given_up: Vec<Flight>,
    last_tick: f64,
    rules: Rules,
}

impl Process {
    /// A process that starts now, with the budgets and safe shares of its policy file.
    #[must_use]
    pub fn new(member: String, limits: &[(u64, u64)], manners: Manners, now: Clocks, rules: Rules) -> Self {
        let drift = Drift::default();
        let mut books: Vec<Book> =
            limits.iter().map(|&(budget, safe)| Book::new(budget, safe, manners.lease, now.boot, rules)).collect();
        books.iter_mut().for_each(|book| book.ring.set_guard(drift.guard()));
        Self {
            member,
            books,
            manners,
            waiting: VecDeque::new(),
            attempts: HashMap::new(),
            last_call: -1e9,
            drift,
            seq: 0,
            flight: None,
            given_up: Vec::new(),
            last_tick: now.boot,
            rules,
        }
    }

    /// A new policy: a shorter lease counts at once, a longer one from the next answer on.
    pub fn set_manners(&mut self, manners: Manners) {
        self.manners = manners;
        self.books.iter_mut().for_each(|book| book.lease = manners.lease);
    }

    /// The light loop: it sees when nothing ran.
    pub fn tick(&mut self, now: Clocks) {
        let last = std::mem::replace(&mut self.last_tick, now.boot);
        if now.boot - last > STALL {
            self.books.iter_mut().for_each(|book| book.ring.stall(last - MARGIN, now.boot, true));
        }
    }

    /// Time passed without events, as the light loop would have seen it.
    pub const fn ran_until(&mut self, now: Clocks) {
        self.last_tick = now.boot;
    }

    fn fits(&mut self, needs: &[Need], now: Clocks) -> bool {
        needs.iter().all(|&(book, amount)| self.books[book].fits(amount, now))
    }

    /// A client's request.
    pub fn offer(&mut self, request: Request, now: Clocks) -> Verdict {
        if self.reserve(&request, now) {
            return Verdict::Admitted;
        }
        let never = request.needs.iter().any(|&(book, amount)| amount > self.books[book].budget as f64);
        if never || self.manners.max_wait <= 0.0 {
            self.refuse(&request, never, now);
            return Verdict::Refused;
        }
        self.waiting.push_back((request, now.boot + self.manners.max_wait));
        Verdict::Waits
    }

    /// All or nothing over the books.
    fn reserve(&mut self, request: &Request, now: Clocks) -> bool {
        if !self.fits(&request.needs, now) {
            return false;
        }
        let charges = request
            .needs
            .iter()
            .map(|&(book, amount)| {
                self.books[book].denied.forget(request.id);
                self.books[book].ring.charge(amount)
            })
            .collect();
        self.attempts.insert(request.id, Attempt { request: request.clone(), charges, reserved: now.boot });
        true
    }

    fn refuse(&mut self, request: &Request, never: bool, now: Clocks) {
        for &(book, amount) in &request.needs {
            let book = &mut self.books[book];
            if !never {
                book.denied.add(request.id, amount, now.boot);
                book.pending = book.pending.max(amount);
            }
        }
    }

    /// Looks at the waiting requests again: answers with those that are admitted and those that are refused.
    pub fn recheck(&mut self, now: Clocks) -> (Vec<u64>, Vec<Request>) {
        let (mut admitted, mut refused) = (Vec::new(), Vec::new());
        let waiting = std::mem::take(&mut self.waiting);
        for (request, until) in waiting {
            if self.reserve(&request, now) {
                admitted.push(request.id);
            } else if now.boot >= until {
                self.refuse(&request, false, now);
                refused.push(request);
            } else {
                self.waiting.push_back((request, until));
            }
        }
        (admitted, refused)
    }

    /// What waiting requests and refusals need of a book: all of them, and the smallest.
    fn wanted(&self, book: usize) -> (f64, f64) {
        let waiting = self.waiting.iter().flat_map(|(request, _)| &request.needs);
        let pending = Some(self.books[book].pending).filter(|amount| *amount > 0.0);
        let amounts = waiting.filter(|(b, _)| *b == book).map(|(_, amount)| *amount).chain(pending);
        amounts.fold((0.0, f64::INFINITY), |(sum, least), amount| (sum + amount, least.min(amount)))
    }

    /// Whether a draw would ask for something.
    #[must_use]
    pub fn wants(&self) -> bool {
        !self.waiting.is_empty() || self.books.iter().any(|book| book.pending > 0.0)
    }

    /// Until the next beat, in seconds: under pressure what leaves the window goes back at once, if it is worth it.
    #[must_use]
    pub fn time_to_beat(&self, now: Clocks) -> f64 {
        let sooner = self.books.iter().filter_map(|book| book.give_back_at(now)).fold(f64::INFINITY, f64::min);
        (sooner - now.boot).max(BEAT_GAP).min(self.manners.beat)
    }

    /// Whether a call is under way.
    #[must_use]
    pub const fn is_calling(&self) -> bool {
        self.flight.is_some()
    }

    /// Begins a call.
    pub fn call(&mut self, beat: bool, leave: bool, now: Clocks) -> Outgoing {
        self.seq += 1;
        self.last_call = now.boot;
        let sent: Vec<Sent> = (0..self.books.len())
            .map(|book| {
                let (wanted, smallest) = self.wanted(book);
                let sent = self.books[book].prepare(beat, wanted, smallest, now, leave);
                self.books[book].quiet = now.boot;
                sent
            })
            .collect();
        let asks = sent.iter().map(|sent| sent.ask).collect();
        self.flight = Some(Flight { seq: self.seq, sent });
        Outgoing { seq: self.seq, leave, asks }
    }

    /// The time of the call is over, or its connection is.
    pub fn give_up(&mut self, seq: u64) {
        let flight = self.flight.take_if(|flight| flight.seq == seq);
        if !self.rules.hold(Rule::DropLate) {
            self.given_up.extend(flight);
        }
    }

    /// An answer; `ledger` is the server's time in seconds.
    pub fn answered(&mut self, seq: u64, answers: &[BookAnswer], ledger: f64, now: Clocks) {
        let late = self.given_up.iter().position(|flight| flight.seq == seq).map(|place| self.given_up.remove(place));
        let Some(flight) = self.flight.take_if(|flight| flight.seq == seq).or(late) else {
            return;
        };
        let Some(at) = flight.sent.first().map(|sent| sent.at) else { return };
        if now.boot - at.boot > TIMEOUT && self.rules.hold(Rule::DropLate) {
            return;
        }
        self.drift.note(at.boot, now.boot, ledger);
        for ((book, sent), answer) in self.books.iter_mut().zip(&flight.sent).zip(answers) {
            book.apply(sent, answer, now);
            book.ring.set_guard(self.drift.guard());
        }
    }

    /// The last hook before the call leaves: admits again what was reserved too long ago. False: it did not leave.
    pub fn before_send(&mut self, id: u64, now: Clocks) -> bool {
        let Some(mut attempt) = self.attempts.remove(&id) else { return false };
        let old = now.boot - attempt.reserved > STALE_CHECK;
        if old && self.rules.hold(Rule::AdmitAgain) {
            let needs: Vec<Need> = attempt.request.needs.iter().map(|&(book, _)| (book, 0.0)).collect();
            if !self.fits(&needs, now) {
                for (&(book, _), charge) in attempt.request.needs.iter().zip(&mut attempt.charges) {
                    self.books[book].ring.give_back(charge);
                }
                return false;
            }
        }
        for (&(book, _), charge) in attempt.request.needs.iter().zip(&mut attempt.charges) {
            self.books[book].ring.stamp(charge, now.boot);
        }
        self.attempts.insert(id, attempt);
        true
    }

    /// The request has ended; `known`: its usage was reported.
    pub fn end(&mut self, id: u64, known: bool, now: Clocks) {
        let Some(mut attempt) = self.attempts.remove(&id) else { return };
        if !known {
            return;
        }
        let actual = attempt.request.actual.iter();
        for ((&(book, _), charge), actual) in attempt.request.needs.iter().zip(&mut attempt.charges).zip(actual) {
            self.books[book].ring.settle(charge, *actual, now.boot);
        }
    }

    /// An attempt that left failed without a word of its usage, and is tried again: a charge of its own.
    pub fn retry(&mut self, id: u64, again: u64, now: Clocks) -> bool {
        let Some(attempt) = self.attempts.remove(&id) else { return false };
        let request = Request { id: again, ..attempt.request.clone() };
        if !self.rules.hold(Rule::ChargeRetries) {
            self.attempts.insert(again, Attempt { request, reserved: now.boot, ..attempt });
            return true;
        }
        if self.reserve(&request, now) {
            return true;
        }
        self.refuse(&request, false, now);
        false
    }

    /// A forked process is a new member with nothing lent to it.
    pub fn forked(&self, member: String, limits: &[(u64, u64)], now: Clocks) -> Self {
        if self.rules.hold(Rule::ForkIsNew) {
            return Self::new(member, limits, self.manners, now, self.rules);
        }
        Self { attempts: HashMap::new(), waiting: VecDeque::new(), ..self.clone() }
    }
}
