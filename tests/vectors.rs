//! The agent's side of the rules has two implementations: the model here, and the agent in Python. The model makes the test
//! vectors that the agent has to reproduce exactly (`agent/tests/unit/test_vectors.py`).
//!
//! `TOKENBUDGET_WRITE_VECTORS=1 cargo test --test vectors` writes them anew after a change of the rules.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};
use tokenbudget::ledger::rules::Rules;
use tokenbudget::ledger::{BookAnswer, BookStanding};
use tokenbudget::simulate::member::{Book, Charge, Clocks, Drift, Sent};
use tokenbudget::simulate::size::SplitMix64;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/agent/tests/vectors.json");
const SEQUENCES: u64 = 30;
const STEPS: usize = 50;

struct Sequence {
    rng: SplitMix64,
    now: Clocks,
    book: Book,
    drift: Drift,
    charges: Vec<Charge>,
    sent: Option<Sent>,
    ledger: f64,
    steps: Vec<Value>,
}

impl Sequence {
    fn new(seed: u64) -> Self {
        let now = Clocks { boot: 1000.0, wall: 5000.0 };
        let mut book = Book::new(60_000, 10_000, 30.0, now.boot, Rules::default());
        let drift = Drift::default();
        book.ring.set_guard(drift.guard());
        let rng = SplitMix64::new(seed);
        Self { rng, now, book, drift, charges: vec![], sent: None, ledger: 9000.0, steps: vec![] }
    }

    fn amount(&mut self) -> f64 {
        self.rng.below(9_000) as f64
    }

    fn pass(&mut self) {
        // Moments, the time between beats, about a lease, more than a window.
        let most = [0.2, 0.7, 5.0, 32.0, 70.0, 100.0][[0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5][self.rng.below(11)]];
        let by = most * self.rng.unit();
        let step = if self.rng.below(20) == 0 { 40.0 * self.rng.unit() - 20.0 } else { 0.0 };
        self.now = Clocks { boot: self.now.boot + by, wall: self.now.wall + by + step };
        self.ledger += by * (0.99 + 0.02 * self.rng.unit()) + if self.rng.below(25) == 0 { 200.0 } else { 0.0 };
        self.ledger = (self.ledger * 1000.0).floor() / 1000.0;
    }

    fn step(&mut self) {
        self.pass();
        let now = self.now;
        let mut step = match self.rng.below(12) {
            0 | 1 => {
                let amount = self.amount();
                self.charges.push(self.book.ring.charge(amount));
                json!({"do": "charge", "amount": amount})
            }
            2 | 3 if !self.charges.is_empty() => {
                let at = self.rng.below(self.charges.len());
                self.book.ring.stamp(&mut self.charges[at], now.boot);
                json!({"do": "stamp", "charge": at})
            }
            4 if !self.charges.is_empty() => {
                let (at, actual) = (self.rng.below(self.charges.len()), self.amount());
                self.book.ring.settle(&mut self.charges[at], actual, now.boot);
                json!({"do": "settle", "charge": at, "actual": actual})
            }
            5 if !self.charges.is_empty() => {
                let at = self.rng.below(self.charges.len());
                self.book.ring.give_back(&mut self.charges[at]);
                json!({"do": "giveBack", "charge": at})
            }
            6 => {
                let (since, turn) = (now.boot - 3.0 * self.rng.unit(), self.rng.below(2) == 0);
                self.book.ring.stall(since, now.boot, turn);
                json!({"do": "stall", "since": since, "turn": turn})
            }
            7 => {
                let (id, amount) = (self.rng.below(5) as u64, self.amount());
                if self.rng.below(3) == 0 {
                    self.book.denied.forget(id);
                    json!({"do": "admitted", "id": id})
                } else {
                    self.book.denied.add(id, amount, now.boot);
                    json!({"do": "refused", "id": id, "amount": amount})
                }
            }
            8 | 9 if self.sent.is_some() => self.answer(),
            _ => self.call(),
        };
        let need = self.amount();
        let fits = self.book.fits(need, now);
        step["boot"] = json!(now.boot);
        step["wall"] = json!(now.wall);
        step["need"] = json!(need);
        step["then"] = json!({
            "fits": fits, "spent": self.book.ring.spent(), "allowed": self.book.allowed(now), "grant": self.book.grant,
            "off": self.book.off, "share": self.book.share, "slack": self.book.slack, "denied": self.book.denied.total(),
            "leaseOver": self.book.lease_over(now), "guard": self.drift.guard(), "giveBackAt": self.book.give_back_at(now),
        });
        self.steps.push(step);
    }

    fn call(&mut self) -> Value {
        let beat = self.rng.below(3) > 0;
        let (pending, smallest) = if self.rng.below(2) == 0 { (0.0, 0.0) } else { (self.amount() + 500.0, 500.0) };
        let leave = self.rng.below(80) == 0;
        let sent = self.book.prepare(beat, pending, smallest, self.now, leave);
        self.book.quiet = self.now.boot;
        self.sent = Some(sent);
        let ask = sent.ask;
        json!({"do": "call", "beat": beat, "pending": pending, "smallest": smallest, "leave": leave,
               "asks": [ask.keep, ask.want, ask.least, ask.spent, ask.denied, ask.off],
               "asOfMs": ask.as_of_ms, "leaves": ask.leaves.0[..]})
    }

    fn answer(&mut self) -> Value {
        let sent = self.sent.take().unwrap();
        let states = [
            (BookStanding::Ok, "ok"),
            (BookStanding::Ok, "ok"),
            (BookStanding::Ok, "ok"),
            (BookStanding::Contended, "contended"),
            (BookStanding::Learning, "learning"),
            (BookStanding::Stale, "stale"),
            (BookStanding::None, "none"),
        ];
        let (state, word) = states[self.rng.below(states.len())];
        let answer = BookAnswer {
            state,
            grant: sent.ask.keep + self.rng.below(20_000) as u64,
            share: self.rng.below(30_000) as u64,
            pool: self.rng.below(40_000) as i64 - 10_000,
            budget: [60_000, 60_000, 24_000][self.rng.below(3)],
            safe: [10_000, 4_000][self.rng.below(2)],
        };
        self.drift.note(sent.at.boot, self.now.boot, self.ledger);
        let counted = self.book.apply(&sent, &answer, self.now);
        self.book.ring.set_guard(self.drift.guard());
        json!({"do": "answer", "ledger": self.ledger, "counted": counted,
               "answer": [word, answer.grant, answer.share, answer.pool, answer.budget, answer.safe]})
    }
}

#[test]
fn the_vectors_are_those_of_the_model() {
    let sequences: Vec<Value> = (1..=SEQUENCES)
        .map(|seed| {
            let mut sequence = Sequence::new(seed);
            (0..STEPS).for_each(|_| sequence.step());
            Value::from(sequence.steps)
        })
        .collect();
    // One step on each line: a change shows in a diff.
    let lines: Vec<String> = sequences
        .iter()
        .map(|steps| {
            let steps: Vec<String> = steps.as_array().unwrap().iter().map(Value::to_string).collect();
            format!("[\n{}\n]", steps.join(",\n"))
        })
        .collect();
    let text = format!("[\n{}\n]\n", lines.join(",\n"));
    if std::env::var_os("TOKENBUDGET_WRITE_VECTORS").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let stored = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(stored == text, "the rules changed: TOKENBUDGET_WRITE_VECTORS=1 cargo test --test vectors");
}
