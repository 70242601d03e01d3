//! Every sequence of a few things that can happen to two processes that share two tokens.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use tokenbudget::ledger::rules::{Moment, Rule, Rules};
use tokenbudget::ledger::{BookAnswer, BookId, BookState, MemberPlan, PlanWrite, Unit};
use tokenbudget::simulate::member::{Book, Clocks, Sent};

const BUDGET: u64 = 2;
const LEASE: f64 = 30.0;
/// An answer that took longer is dropped, in seconds.
const TIMEOUT: f64 = 1.8;
const NAMES: [&str; 2] = ["a", "b"];

#[derive(Clone, Copy, Debug)]
enum Action {
    /// Seconds pass.
    Pass(f64),
    /// A process admits a request of one token, and sends it.
    Admit(usize),
    /// A draw for one more token, or a beat: whether it arrives, and whether its answer does.
    Call { who: usize, draw: bool, arrives: bool, answered: bool },
    /// The answer that did not arrive arrives now.
    Late(usize),
    /// Seconds pass, in which the first process's machine is suspended and its boot-time clock stands still.
    Suspend(f64),
    /// The operator writes shares and evidence.
    Plan,
    /// The first process is killed; the kubelet says so.
    Kill,
    /// A replica that lacks the last write takes over.
    FailOver,
}

#[derive(Clone, Debug)]
struct State {
    now: f64,
    books: [Book; 2],
    /// Answers on their way.
    late: [Option<(u64, Sent, BookAnswer)>; 2],
    /// How long the first process's machine was suspended.
    slept: f64,
    seqs: [u64; 2],
    /// As `finishedAt` says, unix ms.
    killed: Option<u64>,
    ledger: BookState,
    before: BookState,
    server: u8,
    /// When tokens reached the provider.
    arrived: Vec<f64>,
}

/// What the operator writes: a safe share is set aside for a live process that the ledger does not know.
fn write(finished_ms: Option<u64>, first: bool, unknown: u64) -> PlanWrite {
    let members: BTreeMap<String, MemberPlan> = NAMES
        .iter()
        .enumerate()
        .map(|(who, name)| ((*name).to_owned(), MemberPlan { share: 1, finished_ms: finished_ms.filter(|_| who == 0) }))
        .collect();
    let book = BookId::new("b", Unit::Tokens);
    PlanWrite {
        book,
        first,
        budget: BUDGET,
        aside: unknown,
        level: 1,
        safe: 1,
        lease_ms: (LEASE * 1000.0) as u64,
        members,
    }
}

impl State {
    fn new(rules: Rules) -> Self {
        let ledger = BookState::create(&write(None, true, 2), &Moment { time_ms: 1_000_000, replid: "0" }, &rules);
        let book = || Book::new(BUDGET, 1, LEASE, 1000.0, rules);
        Self {
            now: 1000.0,
            books: [book(), book()],
            late: [None; 2],
            slept: 0.0,
            seqs: [0; 2],
            killed: None,
            before: ledger.clone(),
            ledger,
            server: 0,
            arrived: vec![],
        }
    }

    const fn clocks(&self, who: usize) -> Clocks {
        Clocks { boot: if who == 0 { self.now - self.slept } else { self.now }, wall: self.now }
    }

    /// The operator's passes between are left out, but for the last: they keep the ledger from being silent.
    fn pass(&mut self, seconds: f64, rules: &Rules) {
        self.now += seconds;
        self.ledger.clock_ms += (seconds * 1000.0) as u64;
        self.ledger.time_ms += (seconds * 1000.0) as u64;
        self.arrived.retain(|arrived| self.now - arrived < 60.0);
        if seconds >= 1.0 {
            self.plan(rules);
        }
    }

    /// The state after an action, if it can happen.
    fn after(&self, action: Action, rules: &Rules) -> Option<Self> {
        let mut next = self.clone();
        let server = self.server.to_string();
        let at = Moment { time_ms: (self.now * 1000.0) as u64, replid: &server };
        match action {
            Action::Pass(seconds) => next.pass(seconds, rules),
            Action::Suspend(seconds) => {
                next.pass(seconds, rules);
                next.slept += seconds;
            }
            Action::Admit(who) => {
                let clocks = self.clocks(who);
                if (who == 0 && self.killed.is_some()) || !next.books[who].fits(1.0, clocks) {
                    return None;
                }
                let mut charge = next.books[who].ring.charge(1.0);
                next.books[who].ring.stamp(&mut charge, clocks.boot);
                next.books[who].ring.settle(&mut charge, 1.0, clocks.boot);
                next.arrived.push(self.now);
            }
            Action::Call { who, draw, arrives, answered } => {
                if who == 0 && self.killed.is_some() {
                    return None;
                }
                let clocks = self.clocks(who);
                let (need, seq) = (f64::from(u8::from(draw)), self.seqs[who] + 1);
                let sent = next.books[who].prepare(!draw, need, need, clocks, false);
                next.books[who].quiet = clocks.boot;
                next.seqs[who] = seq;
                if arrives {
                    next.before = self.ledger.clone();
                    let answer = next.ledger.settle(NAMES[who], seq, false, &sent.ask, &at, rules);
                    if answered {
                        next.books[who].apply(&sent, &answer, clocks);
                    } else {
                        next.late[who] = Some((seq, sent, answer));
                    }
                }
            }
            Action::Late(who) => {
                let (seq, sent, answer) = next.late[who].take()?;
                let received = self.clocks(who);
                let late = received.boot - sent.at.boot > TIMEOUT || seq < self.seqs[who];
                if (late && rules.hold(Rule::DropLate)) || (who == 0 && self.killed.is_some()) {
                    return None;
                }
                next.books[who].apply(&sent, &answer, received);
            }
            Action::Plan => {
                next.plan(rules);
            }
            Action::Kill => {
                if self.killed.is_some() {
                    return None;
                }
                next.killed = Some(self.now as u64 * 1000);
            }
            Action::FailOver => {
                if self.server > 0 {
                    return None;
                }
                next.ledger = self.before.clone();
                next.server = 1;
            }
        }
        Some(next)
    }

    fn plan(&mut self, rules: &Rules) {
        self.before = self.ledger.clone();
        let known = |who: usize| self.ledger.members.contains_key(NAMES[who]) || (who == 0 && self.killed.is_some());
        let unknown = (0..2).filter(|who| !known(*who)).count() as u64;
        let server = self.server.to_string();
        let at = Moment { time_ms: (self.now * 1000.0) as u64, replid: &server };
        self.ledger.plan(&write(self.killed, false, unknown), &at, rules);
    }

    fn breach(&self) -> bool {
        self.arrived.len() as u64 > BUDGET
    }
}

fn actions() -> Vec<Action> {
    let mut all =
        vec![Action::Pass(0.5), Action::Pass(31.0), Action::Pass(66.0), Action::Plan, Action::Kill, Action::FailOver];
    all.push(Action::Suspend(97.0));
    for who in 0..2 {
        all.extend([Action::Admit(who), Action::Late(who)]);
        for (draw, arrives, answered) in
            [(true, true, true), (true, true, false), (true, false, false), (false, true, true)]
        {
            all.push(Action::Call { who, draw, arrives, answered });
        }
    }
    all
}

/// Looks at every state within so many actions; answers with the number of states, or the actions that break the promise.
fn search(start: State, actions: &[Action], depth: usize, rules: Rules) -> Result<usize, Vec<Action>> {
    let mut seen = HashSet::new();
    let mut level = vec![(start, Vec::new())];
    for _ in 0..depth {
        let mut next_level = Vec::new();
        for (state, path) in &level {
            for action in actions {
                let Some(next) = state.after(*action, &rules) else { continue };
                let path: Vec<Action> = path.iter().copied().chain([*action]).collect();
                if next.breach() {
                    return Err(path);
                }
                let mut hash = DefaultHasher::new();
                format!("{next:?}").hash(&mut hash);
                if seen.insert(hash.finish()) {
                    next_level.push((next, path));
                }
            }
        }
        level = next_level;
    }
    Ok(seen.len())
}

#[test]
fn nothing_that_can_happen_breaks_the_promise() {
    let depth = std::env::var("TOKENBUDGET_DEPTH").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    match search(State::new(Rules::default()), &actions(), depth, Rules::default()) {
        Ok(states) => println!("{states} states within {depth} actions"),
        Err(path) => panic!("{path:#?}"),
    }
}

const fn draw(who: usize) -> Action {
    Action::Call { who, draw: true, arrives: true, answered: true }
}

const fn beat(who: usize, answered: bool) -> Action {
    Action::Call { who, draw: false, arrives: true, answered }
}

/// The same few actions break nothing with all rules, and something without these.
fn finds(missing: &[Rule], actions: &[Action], depth: usize) {
    // The ledger knows both processes, and has lent nothing.
    let start = |rules: Rules| {
        [draw(0), draw(1), Action::Plan]
            .iter()
            .fold(State::new(rules), |state, action| state.after(*action, &rules).unwrap())
    };
    let (all, rules) = (Rules::default(), Rules::without(missing));
    let whole = search(start(all), actions, depth, all).expect("with all rules");
    let path = search(start(rules), actions, depth, rules)
        .expect_err(&format!("nothing shows that {missing:?} is missing, in {whole} states"));
    println!("without {missing:?}, of {whole} states: {path:?}");
}

#[test]
fn the_search_finds_what_is_missing() {
    let calls = [draw(0), draw(1), Action::Admit(0), Action::Admit(1)];
    let and = |more: &[Action]| [&calls[..], more].concat();
    finds(&[Rule::LendFromPool, Rule::Contended], &calls, 8);
    finds(&[Rule::HoldGone], &and(&[Action::Pass(31.0), Action::Kill]), 8);
    finds(&[Rule::Learn], &and(&[Action::FailOver, Action::Pass(1.5)]), 8);
    let lost = Action::Call { who: 0, draw: true, arrives: true, answered: false };
    finds(&[Rule::DropLate], &and(&[lost, beat(0, true), Action::Late(0)]), 8);
    finds(&[Rule::LeaseFromSent], &and(&[lost, Action::Suspend(97.0), Action::Late(0)]), 8);
    finds(&[Rule::ShrinkFirst], &and(&[beat(0, false), Action::Pass(66.0)]), 8);
}
