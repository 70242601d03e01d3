//! One semantics, two implementations: the scripts on a real Redis server and the rules in Rust get the same random sequences,
//! and every answer and the whole state have to be the same.
//!
//! `TOKENBUDGET_SEQUENCES` says how many (1,000; `make test` runs 10,000), `TOKENBUDGET_SEED` repeats a run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::RedisServer;
use common::figures::{self, ask};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::memory::MemoryLedger;
use tokenbudget::ledger::{
    Ask, BookCall, BookId, Call, Epoch, Keys, LEAVE_STEPS, Leaves, Ledger, LedgerError, MemberPlan, MemberState,
    Observation, PlanWrite, Policy, RedisLedger, Report, Timeouts, Unit,
};

const MEMBERS: usize = 4;
const BOOKS: usize = 3;

/// As of when, and what leaves in each step.
type Leaving = (u64, Leaves);

#[derive(Clone, Debug)]
enum Op {
    Call {
        member: usize,
        leave: bool,
        stale: bool,
        known: bool,
        report: bool,
        books: Vec<(bool, [u64; 6], Leaving)>,
    },
    Plan {
        old_epoch: bool,
        first: bool,
        lease: u64,
        books: Vec<[u64; 4]>,
        shares: Vec<u64>,
        /// 0: it runs.
        finished: Vec<u64>,
    },
    Publish {
        old_epoch: bool,
        version: u8,
        removed: Vec<bool>,
    },
    Close {
        old_epoch: bool,
    },
    Claim,
    /// The server's clock has gone on, or back, since the last call.
    Time(i64),
    /// Ledger time has passed, with calls that changed nothing.
    Clock(u64),
    /// A key expired: a book, the policy, or the reports.
    Expired(usize),
    Flush,
    OtherServer,
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..1_200_u64, 1 => Just(0), 1 => 0..=1_000_000_000_000_u64, 1 => 999_999_999_000..=1_000_000_000_000_u64]
}

fn leaves() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 4 => 0..300_u64, 1 => 999_999_999_000..=1_000_000_000_000_u64]
}

fn op() -> impl Strategy<Value = Op> {
    let leaves =
        (0..70_000_u64, prop::collection::vec(leaves(), LEAVE_STEPS).prop_map(|all| Leaves(all.try_into().unwrap())));
    let ask = (prop::bool::weighted(0.9), prop::array::uniform6(amount()), leaves);
    prop_oneof![
        14 => (0..MEMBERS, prop::bool::weighted(0.08), prop::bool::weighted(0.1), any::<bool>(), any::<bool>(), prop::collection::vec(ask, BOOKS))
            .prop_map(|(member, leave, stale, known, report, books)| Op::Call { member, leave, stale, known, report, books }),
        5 => (
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.2),
            prop_oneof![Just(5_000_u64), Just(30_000), Just(100_000)],
            prop::collection::vec(prop::array::uniform4(amount()), BOOKS),
            prop::collection::vec(amount(), MEMBERS),
            prop::collection::vec(prop_oneof![7 => Just(0), 1 => 1..3_000_u64, 2 => 1..70_000_u64], MEMBERS),
        )
            .prop_map(|(old_epoch, first, lease, books, shares, finished)| Op::Plan { old_epoch, first, lease, books, shares, finished }),
        1 => (prop::bool::weighted(0.1), 0..3_u8, prop::collection::vec(prop::bool::weighted(0.2), BOOKS))
            .prop_map(|(old_epoch, version, removed)| Op::Publish { old_epoch, version, removed }),
        1 => prop_oneof![9 => Just(None), 1 => any::<bool>().prop_map(Some)].prop_map(|old| match old {
            None => Op::Claim,
            Some(old_epoch) => Op::Close { old_epoch },
        }),
        2 => prop_oneof![-5_000..5_000_i64, 25_000..40_000_i64].prop_map(Op::Time),
        3 => prop_oneof![0..1_500_u64, 4_000..30_000_u64, 60_000..70_000_u64, 90_000..200_000_u64].prop_map(Op::Clock),
        1 => prop_oneof![(0..BOOKS + 2).prop_map(Op::Expired), Just(Op::Flush), Just(Op::OtherServer)],
    ]
}

/// One of several policies.
fn policy(number: u8) -> Policy {
    Policy { max_wait_ms: u64::from(number), ..figures::policy("u") }.stamped()
}

fn report(member: usize) -> Report {
    Report { pod: format!("p{member}"), ..figures::report(MemberState::Enforcing) }
}

struct Both {
    uid: String,
    scripts: RedisLedger,
    rules: MemoryLedger,
    redis: MultiplexedConnection,
    replid: String,
    ids: Vec<BookId>,
    epoch: Epoch,
    old: Epoch,
    seqs: [u64; MEMBERS],
}

/// An outcome in words: equal errors are equal.
fn told<T: std::fmt::Debug>(outcome: &Result<T, LedgerError>) -> String {
    format!("{outcome:?}")
}

impl Both {
    async fn start(uid: String, scripts: RedisLedger, redis: MultiplexedConnection, replid: String) -> Self {
        let rules = MemoryLedger::default();
        rules.server().replid.clone_from(&replid);
        let ids = vec![
            BookId::new("one", Unit::Tokens),
            BookId::new("one", Unit::Requests),
            BookId::new("two", Unit::Tokens),
        ];
        let none = Epoch(0);
        let mut both = Self { uid, scripts, rules, redis, replid, ids, epoch: none, old: none, seqs: [0; MEMBERS] };
        both.claim().await;
        both
    }

    async fn observe(&self) -> (Observation, Observation) {
        (
            self.scripts.observe(&self.uid, &self.ids).await.unwrap(),
            self.rules.observe(&self.uid, &self.ids).await.unwrap(),
        )
    }

    /// The rules see the time that the scripts saw.
    fn at(&self, time_ms: u64) {
        self.rules.server().time_ms = time_ms;
    }

    async fn claim(&mut self) {
        let epoch = self.scripts.claim(&self.uid).await.unwrap();
        self.at(epoch.0);
        assert_eq!(self.rules.claim(&self.uid).await.unwrap(), epoch);
        (self.old, self.epoch) = (self.epoch, epoch);
    }

    fn epoch(&self, old: bool) -> Epoch {
        if old { self.old } else { self.epoch }
    }

    async fn step(&mut self, op: &Op) {
        match op {
            Op::Call { member, leave, stale, known, report: reports, books } => {
                self.seqs[*member] += u64::from(!stale);
                let calls: Vec<BookCall> = self
                    .ids
                    .iter()
                    .zip(books)
                    .filter(|(_, (asks, ..))| *asks)
                    .map(|(book, (_, figures, (as_of_ms, leaves)))| BookCall {
                        book: book.clone(),
                        ask: Ask { as_of_ms: *as_of_ms, leaves: *leaves, ..ask(*figures) },
                    })
                    .collect();
                let (id, own, version) = (format!("m{member}"), report(*member), policy(1).version);
                let call = Call {
                    member: &id,
                    seq: self.seqs[*member],
                    leave: *leave,
                    version: if *known { &version } else { "" },
                    report: reports.then_some(&own),
                    books: &calls,
                };
                let answer = self.scripts.call(&self.uid, &call).await.unwrap();
                self.at(answer.time_ms);
                assert_eq!(self.rules.call(&self.uid, &call).await.unwrap(), answer, "{call:?}");
            }
            Op::Plan { old_epoch, first, lease, books, shares, finished } => {
                let finished = |i: usize| Some(finished[i]).filter(|at| *at > 0);
                let members: BTreeMap<String, MemberPlan> = (0..MEMBERS)
                    .map(|i| (format!("m{i}"), MemberPlan { share: shares[i], finished_ms: finished(i) }))
                    .collect();
                let writes: Vec<PlanWrite> = self
                    .ids
                    .iter()
                    .zip(books)
                    .map(|(book, &[budget, aside, level, safe])| PlanWrite {
                        book: book.clone(),
                        budget,
                        aside,
                        level,
                        safe,
                        lease_ms: *lease,
                        first: *first,
                        members: members.clone(),
                    })
                    .collect();
                let outcome = self.scripts.plan(&self.uid, self.epoch(*old_epoch), &writes).await;
                if outcome.is_ok() {
                    self.at(self.scripts.observe(&self.uid, &self.ids).await.unwrap().books[&self.ids[0]].time_ms);
                }
                let mine = self.rules.plan(&self.uid, self.epoch(*old_epoch), &writes).await;
                assert_eq!(told(&mine), told(&outcome));
            }
            Op::Publish { old_epoch, version, removed } => {
                let removed: Vec<BookId> =
                    self.ids.iter().zip(removed).filter(|(_, gone)| **gone).map(|(id, _)| id.clone()).collect();
                let (epoch, policy) = (self.epoch(*old_epoch), policy(*version));
                let outcome = self.scripts.publish(&self.uid, epoch, &policy, &removed).await;
                assert_eq!(told(&self.rules.publish(&self.uid, epoch, &policy, &removed).await), told(&outcome));
            }
            Op::Close { old_epoch } => {
                let epoch = self.epoch(*old_epoch);
                let outcome = self.scripts.close(&self.uid, epoch, &self.ids).await;
                assert_eq!(told(&self.rules.close(&self.uid, epoch, &self.ids).await), told(&outcome));
            }
            Op::Claim => self.claim().await,
            Op::Time(by) => {
                // The server's clock cannot be moved; what the books remember of it can.
                self.shift("time", -by).await;
                self.each_book(|book| book.time_ms = book.time_ms.saturating_add_signed(-by));
            }
            Op::Clock(by) => {
                self.shift("clock", *by as i64).await;
                self.each_book(|book| book.clock_ms += by);
            }
            Op::Expired(place) => {
                let key = self.expire(*place);
                let _: i64 = self.redis.del(key).await.unwrap();
            }
            Op::Flush => {
                let keys = Keys::new(&self.uid);
                let mut all: Vec<String> = self.ids.iter().map(|id| keys.book(id)).collect();
                all.extend([keys.meta(), keys.members()]);
                let _: i64 = self.redis.del(all).await.unwrap();
                self.rules.server().stored.clear();
            }
            Op::OtherServer => {
                for id in &self.ids {
                    let key = Keys::new(&self.uid).book(id);
                    if self.redis.exists(&key).await.unwrap() {
                        let _: () = self.redis.hset(&key, "replid", "other").await.unwrap();
                    }
                }
                self.each_book(|book| book.replid = "other".to_owned());
            }
        }
        let (scripts, rules) = self.observe().await;
        assert_eq!(rules, scripts, "after {op:?}");
        for (id, book) in &scripts.books {
            let sum: u64 = book.members.values().map(|m| m.record).sum();
            assert_eq!(sum, book.lent, "records do not sum up to what is lent in {id}");
        }
        assert_eq!(self.rules.server().replid, self.replid);
    }

    /// Takes a book, the policy or the reports out of the rules' store; answers with the key that holds the same in Redis.
    fn expire(&self, place: usize) -> String {
        let keys = Keys::new(&self.uid);
        let mut server = self.rules.server();
        let stored = server.stored.entry(self.uid.clone()).or_default();
        match place.checked_sub(BOOKS) {
            None => {
                stored.books.remove(&self.ids[place]);
                keys.book(&self.ids[place])
            }
            Some(0) => {
                (stored.epoch, stored.policy) = (None, None);
                keys.meta()
            }
            Some(_) => {
                stored.reports.clear();
                keys.members()
            }
        }
    }

    async fn shift(&mut self, field: &str, by: i64) {
        for id in &self.ids {
            let key = Keys::new(&self.uid).book(id);
            if self.redis.exists(&key).await.unwrap() {
                let _: i64 = self.redis.hincr(&key, field, by).await.unwrap();
            }
        }
    }

    fn each_book(&self, change: impl Fn(&mut tokenbudget::ledger::BookState)) {
        let mut server = self.rules.server();
        server.stored.values_mut().flat_map(|stored| stored.books.values_mut()).for_each(change);
    }
}

#[test]
fn scripts_and_rules_agree() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let sequences = number("TOKENBUDGET_SEQUENCES").unwrap_or(1_000);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("TOKENBUDGET_SEED").unwrap_or(now.as_nanos() as u64);
    println!("{sequences} sequences; TOKENBUDGET_SEED={seed} repeats them");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(RedisServer::start());
    let (scripts, mut redis) = runtime.block_on(async {
        (RedisLedger::connect(&server.url(), Timeouts::default()).unwrap(), server.connection().await)
    });
    let info: String = runtime.block_on(redis::cmd("INFO").arg("replication").query_async(&mut redis)).unwrap();
    let replid = info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap().trim().to_owned();

    let config = ProptestConfig { cases: sequences as u32, failure_persistence: None, ..ProptestConfig::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let run = std::cell::Cell::new(0_u64);
    let outcome = runner.run(&prop::collection::vec(op(), 1..25), |ops| {
        run.set(run.get() + 1);
        let work = async {
            let mut both =
                Both::start(format!("case-{}", run.get()), scripts.clone(), redis.clone(), replid.clone()).await;
            // Mostly there are books.
            both.step(&Op::Plan {
                old_epoch: false,
                first: true,
                lease: 30_000,
                books: vec![[1_000, 0, 300, 100], [1_000_000_000_000, 7, 0, 1_000], [500, 20, 0, 50]],
                shares: vec![100; MEMBERS],
                finished: vec![0; MEMBERS],
            })
            .await;
            for op in &ops {
                both.step(op).await;
            }
        };
        runtime.block_on(work);
        if run.get().is_multiple_of(500) {
            let _: () = runtime.block_on(redis::cmd("FLUSHALL").query_async(&mut redis.clone())).unwrap();
        }
        Ok(())
    });
    if let Err(TestError::Fail(reason, ops)) = outcome {
        panic!("{reason}\nthe smallest sequence that shows it: {ops:#?}\nTOKENBUDGET_SEED={seed}");
    }
}
