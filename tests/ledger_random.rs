//! Random sequences of calls on a real Redis server: what the ledger never does, whatever it is told.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::RedisServer;
use common::figures::ask;
use proptest::prelude::*;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{
    BookCall, BookId, BookStanding, BookState, Call, Epoch, HOLD_MS, Keys, Ledger, LedgerError, MemberPlan, PlanWrite,
    RedisLedger, Timeouts, Unit,
};

const MEMBERS: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Call {
        member: usize,
        leave: bool,
        stale: bool,
        books: Vec<[u64; 6]>,
    },
    Plan {
        old_epoch: bool,
        lease: u64,
        books: Vec<[u64; 3]>,
        shares: Vec<u64>,
        gone: Vec<bool>,
    },
    /// Ledger time passes.
    Pass(u64),
    /// The server's clock seems to have gone on (or back) since the last call.
    Step(i64),
    Takeover,
    Flush,
    OtherServer,
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..1_200_u64, 1 => Just(0), 1 => 0..=1_000_000_000_000_u64, 1 => 999_999_999_000..=1_000_000_000_000_u64]
}

fn op() -> impl Strategy<Value = Op> {
    let amounts = prop::array::uniform6(amount());
    prop_oneof![
        12 => (0..MEMBERS, prop::bool::weighted(0.08), prop::bool::weighted(0.1), prop::collection::vec(amounts, 3))
            .prop_map(|(member, leave, stale, books)| Op::Call { member, leave, stale, books }),
        4 => (
            prop::bool::weighted(0.2),
            prop_oneof![Just(5_000_u64), Just(30_000), Just(100_000)],
            prop::collection::vec(prop::array::uniform3(amount()), 3),
            prop::collection::vec(amount(), MEMBERS),
            prop::collection::vec(prop::bool::weighted(0.3), MEMBERS),
        )
            .prop_map(|(old_epoch, lease, books, shares, gone)| Op::Plan { old_epoch, lease, books, shares, gone }),
        3 => prop_oneof![0..1_500_u64, 60_000..70_000_u64, 90_000..200_000_u64].prop_map(Op::Pass),
        2 => (-5_000..5_000_i64).prop_map(Op::Step),
        1 => Just(Op::Takeover),
        1 => prop::bool::weighted(0.3).prop_map(|flush| if flush { Op::Flush } else { Op::OtherServer }),
    ]
}

struct World {
    uid: String,
    ledger: RedisLedger,
    redis: MultiplexedConnection,
    ids: Vec<BookId>,
    epoch: Epoch,
    old: Epoch,
    seqs: [u64; MEMBERS],
    ever: bool,
}

type Books = BTreeMap<BookId, BookState>;

impl World {
    async fn books(&self) -> Books {
        let books = self.ledger.observe(&self.uid, &self.ids).await.unwrap().books;
        for (id, book) in &books {
            let sum: u64 = book.members.values().map(|m| m.record).sum();
            assert_eq!(sum, book.lent, "records do not sum up to what is lent in {id}");
        }
        books
    }

    async fn all(&mut self, field: &str, by: i64) {
        for id in &self.ids {
            let key = Keys::new(&self.uid).book(id);
            if self.redis.exists(&key).await.unwrap() {
                let _: i64 = self.redis.hincr(&key, field, by).await.unwrap();
            }
        }
    }

    async fn step(&mut self, op: &Op) {
        let before = self.books().await;
        match op {
            Op::Call { member, leave, stale, books } => self.call(&before, *member, *leave, *stale, books).await,
            Op::Plan { old_epoch, lease, books, shares, gone } => {
                self.plan(&before, *old_epoch, *lease, books, shares, gone).await;
            }
            Op::Pass(ms) => self.all("clock", *ms as i64).await,
            Op::Step(ms) => self.all("time", -ms).await,
            Op::Takeover => {
                self.old = self.epoch;
                self.epoch = self.ledger.claim(&self.uid).await.unwrap();
            }
            Op::Flush => {
                let _: () = redis::cmd("FLUSHALL").query_async(&mut self.redis).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                self.old = self.epoch;
                self.epoch = self.ledger.claim(&self.uid).await.unwrap();
            }
            Op::OtherServer => {
                for id in before.keys() {
                    let _: () = self.redis.hset(Keys::new(&self.uid).book(id), "replid", "other").await.unwrap();
                }
            }
        }
        self.books().await;
    }

    async fn call(&mut self, before: &Books, member: usize, leave: bool, stale: bool, amounts: &[[u64; 6]]) {
        let id = format!("m{member}");
        if !stale {
            self.seqs[member] += 1;
        }
        let calls: Vec<BookCall> = self
            .ids
            .iter()
            .zip(amounts)
            .map(|(book, figures)| BookCall { book: book.clone(), ask: ask(*figures) })
            .collect();
        let call = Call { member: &id, seq: self.seqs[member], leave, books: &calls, ..Call::default() };
        let answer = self.ledger.call(&self.uid, &call).await.unwrap();
        let after = self.books().await;
        for (call, answer) in calls.iter().zip(&answer.books) {
            let Some(old) = before.get(&call.book) else {
                assert_eq!(answer.state, BookStanding::None);
                assert!(!after.contains_key(&call.book));
                continue;
            };
            let new = &after[&call.book];
            if old.members.get(&id).is_some_and(|m| m.seq >= self.seqs[member]) {
                assert_eq!(answer.state, BookStanding::Stale);
                assert_eq!(new, old);
                continue;
            }
            let was = old.members.get(&id).cloned().unwrap_or_default();
            let is = &new.members[&id];
            let base = if new.learning() && !old.members.contains_key(&id) {
                call.ask.keep
            } else {
                call.ask.keep.min(was.record.max(call.ask.spent).max(call.ask.off.min(call.ask.keep)))
            };
            let lent = answer.grant.checked_sub(base).expect("the record fell below what the member may have spent");
            assert_eq!(
                (is.record, is.spent, is.denied, is.off),
                (answer.grant, call.ask.spent, call.ask.denied, call.ask.off)
            );
            assert_eq!(is.share, if old.members.contains_key(&id) { was.share } else { old.safe });
            assert_eq!(answer.pool, new.pool());
            assert!((old.clock_ms..=old.clock_ms + 3_000).contains(&new.clock_ms), "{} {}", old.clock_ms, new.clock_ms);
            for (other, record) in &old.members {
                assert!(other == &id || &new.members[other] == record, "{other} changed");
            }
            let free = new.pool() + lent as i64;
            if lent > 0 {
                assert!(!leave && new.pool() >= 0 && answer.grant <= call.ask.want, "{new:?}");
                assert!(answer.grant >= call.ask.least, "less than what is of use");
                let given = was.record.saturating_sub(base);
                assert!(!new.learning() || lent <= old.spare + given, "lent {lent} of {} + {given}", old.spare);
            } else if !leave && !new.learning() && call.ask.want > base && new.claimed() == is.claim {
                let useless = base.saturating_add(u64::try_from(free).unwrap_or(0)) < call.ask.least
                    || call.ask.want < call.ask.least;
                assert!(free <= 0 || useless, "{free} were free and {} wanted", call.ask.want - base);
            }
            if lent > 0 && answer.grant > base.max(is.share) {
                // It has no claim of its own now: these are others'.
                assert!(new.pool() >= new.claimed() as i64, "lent what others had claimed: {new:?}");
            }
            let short = call.ask.want.min(is.share).saturating_sub(answer.grant);
            assert_eq!(is.claim, if leave { 0 } else { short });
            if leave {
                assert_eq!((is.ended_ms, is.until_ms), (Some(new.clock_ms), new.clock_ms));
            } else {
                assert_eq!((is.ended_ms, is.until_ms), (None, was.until_ms.max(new.clock_ms + old.lease_ms)));
            }
            let expected = if new.pool() < 0 {
                BookStanding::Contended
            } else if new.learning() {
                BookStanding::Learning
            } else {
                BookStanding::Ok
            };
            assert_eq!(answer.state, expected);
        }
    }

    async fn plan(
        &mut self,
        before: &Books,
        old_epoch: bool,
        lease: u64,
        books: &[[u64; 3]],
        shares: &[u64],
        gone: &[bool],
    ) {
        let writes: Vec<PlanWrite> = self
            .ids
            .iter()
            .zip(books)
            .map(|(book, &[budget, aside, safe])| PlanWrite {
                book: book.clone(),
                budget,
                aside,
                level: 0,
                safe,
                lease_ms: lease,
                first: !self.ever,
                members: (0..MEMBERS)
                    .map(|i| (format!("m{i}"), MemberPlan { share: shares[i], finished_ms: gone[i].then_some(1) }))
                    .collect(),
            })
            .collect();
        if old_epoch && self.old != self.epoch {
            let result = self.ledger.plan(&self.uid, self.old, &writes).await;
            assert!(matches!(result, Err(LedgerError::Fenced)), "{result:?}");
            assert_eq!(&self.books().await, before);
            return;
        }
        let planned = self.ledger.plan(&self.uid, self.epoch, &writes).await.unwrap();
        let after = self.books().await;
        for write in &writes {
            let (new, says) = (&after[&write.book], &planned.books[&write.book]);
            assert_eq!((new.budget, new.aside, new.safe, new.lease_ms), (write.budget, write.aside, write.safe, lease));
            assert_eq!((says.lent, says.pool, says.learning), (new.lent, new.pool(), new.learning()));
            let Some(old) = before.get(&write.book) else {
                assert!(says.created && new.members.is_empty());
                assert_eq!(new.learning(), self.ever);
                continue;
            };
            let now = new.clock_ms;
            assert!((old.clock_ms..=old.clock_ms + 3_000).contains(&now));
            assert!(new.learn_until_ms >= old.learn_until_ms);
            for (id, was) in &old.members {
                let plan = write.members[id];
                let ended = was.ended_ms.or(plan.finished_ms.map(|_| now));
                let drop = ended.is_some_and(|at| now >= at + HOLD_MS) && now >= was.until_ms;
                assert_eq!(new.members.contains_key(id), !drop, "{id} {was:?} at {now}");
                let Some(is) = new.members.get(id) else {
                    continue;
                };
                let silent = ended.is_none() && now >= was.until_ms + HOLD_MS;
                let record = if silent { was.record.min(was.off) } else { was.record };
                assert_eq!((is.record, is.share, is.ended_ms), (record, plan.share, ended));
                assert_eq!((is.seq, is.until_ms, is.off, is.claim), (was.seq, was.until_ms, was.off, was.claim));
            }
            assert!(new.members.keys().all(|id| old.members.contains_key(id)), "a plan made a record");
        }
        self.ever = true;
    }
}

#[test]
fn the_books_balance_whatever_happens() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(RedisServer::start());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(48);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let cases_run = std::cell::Cell::new(0);
    proptest!(config, |(ops in prop::collection::vec(op(), 1..80))| {
        cases_run.set(cases_run.get() + 1);
        let number = cases_run.get();
        runtime.block_on(async {
            let ledger = RedisLedger::connect(&server.url(), Timeouts::default()).unwrap();
            let uid = format!("case-{number}");
            let epoch = ledger.claim(&uid).await.unwrap();
            let ids = vec![
                BookId::new("one", Unit::Tokens),
                BookId::new("one", Unit::Requests),
                BookId::new("two", Unit::Tokens),
            ];
            let redis = server.connection().await;
            let mut world = World { uid, ledger, redis, ids, epoch, old: epoch, seqs: [0; MEMBERS], ever: false };
            // Mostly there are books.
            world.step(&Op::Plan {
                old_epoch: false,
                lease: 30_000,
                books: vec![[1_000, 0, 100], [1_000_000_000_000, 7, 1_000], [500, 20, 50]],
                shares: vec![100; MEMBERS],
                gone: vec![false; MEMBERS],
            }).await;
            for op in &ops {
                world.step(op).await;
            }
        });
    });
}
