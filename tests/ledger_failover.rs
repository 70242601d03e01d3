//! Real servers that fail over, restart, lose their data or are replaced: the ledger learns, and lends nothing it must not.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::figures::{amounts, plan};
use common::{RedisServer, Sentinel, signal, until};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{
    BookAnswer, BookId, BookStanding, BookState, Call, Epoch, HOLD_MS, Keys, Ledger, LedgerError, MemberPlan,
    PlanWrite, RedisLedger, Timeouts, Unit,
};

const UID: &str = "0b5b7a3e";
const LEASE: u64 = 30_000;
const BUDGET: u64 = 1_000;
const SAFE: u64 = 50;

fn book() -> BookId {
    BookId::new("gpt-4o", Unit::Tokens)
}

/// An honest process: it never has more charged than its grant.
#[derive(Clone, Debug, Default)]
struct Member {
    grant: u64,
    spent: u64,
    off: u64,
    seq: u64,
    /// Cut off: it calls no more, and may go on.
    lost: bool,
    /// Its grant is the word of the server that is there now.
    answered: bool,
}

/// One TokenBudget, its processes as they are, and whatever server is the ledger now.
struct Fleet {
    ledger: RedisLedger,
    redis: MultiplexedConnection,
    epoch: Epoch,
    write: PlanWrite,
    members: BTreeMap<String, Member>,
    random: u64,
    /// What was lent while the ledger learned.
    lent_in_learning: u64,
}

impl Fleet {
    async fn start(server: &RedisServer, random: u64) -> Self {
        let ledger = RedisLedger::connect(&server.url(), Timeouts::default()).unwrap();
        let epoch = ledger.claim(UID).await.unwrap();
        let write = PlanWrite { budget: BUDGET, safe: SAFE, lease_ms: LEASE, ..plan(book()) };
        let mut fleet = Self {
            ledger,
            redis: server.connection().await,
            epoch,
            write,
            members: BTreeMap::new(),
            random: random + 1,
            lent_in_learning: 0,
        };
        let planned = fleet.ledger.plan(UID, epoch, std::slice::from_ref(&fleet.write)).await.unwrap();
        assert!(!planned.books[&book()].learning, "the first ledger ever");
        fleet.write.first = false;
        fleet
    }

    /// From 0 to `most`.
    fn random(&mut self, most: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % (most + 1)
    }

    /// The processes and the operator find another server, or another state of it.
    async fn moves_to(&mut self, server: &RedisServer) {
        self.ledger = RedisLedger::connect(&server.url(), Timeouts::default()).unwrap();
        self.redis = server.connection().await;
        self.forgets();
    }

    fn forgets(&mut self) {
        self.members.values_mut().for_each(|member| member.answered = false);
    }

    /// Takes the ledger over and plans, as the operator does when it is fenced or the server is another.
    async fn take_over(&mut self) {
        self.epoch = self.ledger.claim(UID).await.unwrap();
        self.plan().await;
    }

    async fn plan(&mut self) {
        // Who is cut off and not in the ledger is a live worker without a record, for the operator.
        let known = self.book().await.map(|book| book.members).unwrap_or_default();
        let unknown = self.members.iter().filter(|(id, member)| member.lost && !known.contains_key(*id)).count();
        self.write.aside = SAFE * unknown as u64;
        let share = BUDGET / (self.members.len() as u64).max(1);
        self.write.members = known.keys().map(|id| (id.clone(), MemberPlan { share, finished_ms: None })).collect();
        self.ledger.plan(UID, self.epoch, std::slice::from_ref(&self.write)).await.unwrap();
        self.check().await;
    }

    async fn book(&self) -> Option<BookState> {
        self.ledger.observe(UID, &[book()]).await.unwrap().books.remove(&book())
    }

    /// The promise: what all processes together may have charged; and every grant of this server stands in its book.
    async fn check(&self) {
        let held: u64 = self.members.values().map(|member| member.grant).sum();
        assert!(held <= BUDGET, "{held} of {BUDGET} may be spent: {:#?}", self.members);
        let Some(book) = self.book().await else { return };
        assert_eq!(book.lent, book.members.values().map(|member| member.record).sum::<u64>());
        for (id, member) in self.members.iter().filter(|(_, member)| member.answered) {
            assert!(book.members[id].record >= member.grant, "{id} holds more than its record: {member:?} {book:#?}");
        }
    }

    /// A beat or draw. The process lowers its grant first, and takes over what it is answered.
    async fn beat(&mut self, id: &str, keep: u64, want: u64) -> BookAnswer {
        let before = self.book().await.and_then(|book| book.members.get(id).cloned()).unwrap_or_default();
        let member = self.members.entry(id.to_owned()).or_default();
        let keep = keep.clamp(member.spent, member.grant);
        (member.grant, member.off, member.seq) = (keep, SAFE.min(keep), member.seq + 1);
        let (seq, spent, off) = (member.seq, member.spent, member.off);
        let books = [amounts(book(), keep, want.max(keep), spent, off)];
        let call = Call { member: id, seq, books: &books, ..Call::default() };
        let answer = self.ledger.call(UID, &call).await.unwrap().books[0];
        assert_ne!(answer.state, BookStanding::Stale);
        if answer.state != BookStanding::None {
            let member = self.members.get_mut(id).unwrap();
            (member.grant, member.answered) = (answer.grant, true);
            let lent = answer.grant - keep.min(before.record.max(spent).max(off));
            let book = self.book().await.unwrap();
            assert!(lent == 0 || book.lent + book.aside <= book.budget, "{lent} lent out of nothing: {book:#?}");
            if book.learning() {
                self.lent_in_learning += lent;
            }
        }
        self.check().await;
        answer
    }

    fn spend(&mut self, id: &str, spent: u64) {
        let member = self.members.get_mut(id).unwrap();
        assert!((member.spent..=member.grant).contains(&spent), "{spent}: {member:?}");
        member.spent = spent;
    }

    /// Random calls of everyone who is not cut off.
    async fn churn(&mut self, calls: u64) {
        for n in 0..calls {
            if n % 10 == 9 {
                let id = format!("new-{}", self.members.len());
                let want = self.random(400);
                self.beat(&id, 0, want).await;
            }
            let ids: Vec<String> =
                self.members.iter().filter(|(_, member)| !member.lost).map(|(id, _)| id.clone()).collect();
            let id = &ids[self.random(ids.len() as u64 - 1) as usize];
            let member = self.members[id].clone();
            let free = member.grant - member.spent;
            let spent = if self.random(2) == 0 { member.spent + self.random(free / 3) } else { member.spent };
            self.spend(id, spent);
            let (keep, want) = (spent + self.random(member.grant - spent), self.random(500));
            self.beat(id, keep, want).await;
            if n % 7 == 6 {
                self.plan().await;
            }
        }
    }

    /// Some use what they have, one is cut off.
    async fn has_worked(&mut self) {
        for (id, want) in [("a", 300), ("b", 250), ("c", 200), ("lost", 250)] {
            assert_eq!(self.beat(id, 0, want).await.grant, want);
        }
        self.plan().await;
        self.churn(20).await;
        self.members.get_mut("lost").unwrap().lost = true;
    }

    /// `ms` of ledger time pass. A lease that is over leaves the offline amount.
    async fn pass(&mut self, ms: u64) {
        let _: i64 = self.redis.hincr(Keys::new(UID).book(&book()), "clock", ms).await.unwrap();
    }

    /// From the beginning of learning to its end: whoever is there goes on calling.
    async fn learns_and_lends_again(&mut self) {
        assert!(self.book().await.unwrap().learning());
        let mut passed = 0;
        while passed < LEASE + HOLD_MS {
            assert!(self.book().await.unwrap().learning(), "{passed} ms");
            self.churn(10).await;
            // Less than a lease, and a little less than all of it at the end.
            let step = 20_000.min(LEASE + HOLD_MS - passed);
            self.pass(step).await;
            passed += step;
            if passed > LEASE {
                for member in self.members.values_mut().filter(|member| member.lost) {
                    member.grant = member.grant.min(member.off);
                    member.spent = member.spent.min(member.grant);
                }
            }
        }
        assert!(!self.beat("a", 0, 0).await.state.eq(&BookStanding::Learning));
        for id in ["a", "b", "c"] {
            // More than a minute has passed since the first of it.
            let member = self.members.get_mut(id).unwrap();
            member.spent = 0;
            self.beat(id, 0, 0).await;
        }
        self.plan().await;
        let pool = self.book().await.unwrap().pool();
        assert!(pool > 0, "{:#?}", self.book().await);
        let answer = self.beat("late", 0, BUDGET).await;
        assert_eq!((answer.state, answer.grant as i64), (BookStanding::Ok, pool), "all that is left is lent again");
        self.churn(20).await;
    }
}

#[tokio::test]
async fn a_lagging_replica_that_sentinel_promotes_lends_nothing_twice() {
    let mut primary = RedisServer::start().await;
    let options = ["--replicaof", "127.0.0.1", &primary.port().to_string(), "--repl-diskless-load", "disabled"];
    let replica = RedisServer::start_with(&options).await;
    let mut copy = replica.connection().await;
    // A primary changes its `master_replid` when its first replica comes: the ledger would learn.
    until("the replica follows", async || {
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut copy).await.unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    let mut fleet = Fleet::start(&primary, 0).await;
    let key = Keys::new(UID).book(&book());
    assert_eq!(fleet.beat("a", 0, 300).await.grant, 300);
    assert_eq!(fleet.beat("b", 0, 200).await.grant, 200);
    fleet.plan().await;
    until("the replica has followed", async || copy.hget(&key, "lent").await == Ok(500_u64)).await;
    let sentinel = Sentinel::watch(&primary).await;
    until("the Sentinel knows the replica", async || sentinel.replicas().await == 1).await;

    // What the primary does from here on reaches nobody.
    let process = replica.process().await;
    signal(process, "STOP");
    let cut = ["KILL", "TYPE", "replica"];
    let cut: u64 = redis::cmd("CLIENT").arg(&cut).query_async(&mut fleet.redis).await.unwrap();
    assert_eq!(cut, 1);
    assert_eq!(fleet.beat("a", 50, 50).await.grant, 50);
    assert_eq!(fleet.beat("b", 200, 300).await.grant, 300);
    assert_eq!(fleet.beat("c", 0, 400).await.grant, 400);
    assert_eq!(fleet.beat("lost", 0, 250).await.grant, 250);
    fleet.members.get_mut("lost").unwrap().lost = true;
    fleet.spend("b", 90);
    fleet.spend("c", 350);
    primary.stop();
    signal(process, "CONT");
    until("the Sentinel has promoted the replica", async || sentinel.primary().await == replica.port()).await;
    fleet.moves_to(&replica).await;

    // It believes that 500 are free. They are not.
    assert_eq!(fleet.book().await.unwrap().pool(), 500);
    fleet.plan().await;
    assert_eq!(fleet.write.aside, SAFE, "for the one that it does not know");
    assert!(fleet.book().await.unwrap().learning());
    let answer = fleet.beat("d", 0, 100).await;
    assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 0));
    // c is believed what it holds, and b is known with less.
    assert_eq!(fleet.beat("c", 400, 400).await.grant, 400);
    assert_eq!(fleet.beat("b", 300, 300).await.grant, 200);
    // What a gave back before is nothing that comes back now: the old primary had lent it.
    assert_eq!(fleet.beat("a", 50, 300).await.grant, 50);
    assert_eq!(fleet.beat("d", 0, 100).await.grant, 0);
    // Its first call might have been one that was on its way to the old primary; this one is not.
    assert_eq!(fleet.beat("b", 300, 300).await.grant, 200);
    // What b gives back now is there for others: a share for d, and the rest for a, which is below its own.
    assert_eq!(fleet.beat("b", 120, 120).await.grant, 120);
    assert_eq!(fleet.beat("d", 0, 300).await.grant, SAFE);
    assert_eq!(fleet.beat("a", 50, 300).await.grant, 80);
    assert_eq!(fleet.book().await.unwrap().spare, 0);
    fleet.learns_and_lends_again().await;
}

#[tokio::test]
async fn a_first_replica_makes_the_primary_learn() {
    let primary = RedisServer::start().await;
    let mut fleet = Fleet::start(&primary, 10).await;
    fleet.has_worked().await;
    let _replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]).await;
    // Nothing is lost, but its new `master_replid` is all that a script can see.
    until("it learns", async || fleet.beat("a", 0, 0).await.state == BookStanding::Learning).await;
    fleet.learns_and_lends_again().await;
}

#[tokio::test]
async fn a_restart_with_all_its_data_learns() {
    let aof = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::start_with(&aof).await;
    let mut fleet = Fleet::start(&server, 1).await;
    fleet.has_worked().await;
    let before = fleet.book().await.unwrap();
    server.restart_with(&aof).await;
    fleet.moves_to(&server).await;
    let after = fleet.book().await.unwrap();
    assert_eq!(after, before, "the server did not keep its data");
    // The epoch lives on with the data.
    fleet.plan().await;
    let after = fleet.book().await.unwrap();
    assert_ne!(after.replid, before.replid);
    fleet.learns_and_lends_again().await;
    assert!(fleet.lent_in_learning > 0, "what was given back was not lent");
}

#[tokio::test]
async fn a_restart_without_data_learns() {
    let mut server = RedisServer::start().await;
    let mut fleet = Fleet::start(&server, 2).await;
    fleet.has_worked().await;
    server.restart().await;
    fleet.moves_to(&server).await;
    the_books_are_gone(&mut fleet).await;
    fleet.learns_and_lends_again().await;
    assert!(fleet.lent_in_learning > 0, "what was given back was not lent");
}

#[tokio::test]
async fn a_flush_learns() {
    for random in 3..8 {
        let server = RedisServer::start().await;
        let mut fleet = Fleet::start(&server, random).await;
        fleet.has_worked().await;
        let _: () = redis::cmd("FLUSHALL").query_async(&mut fleet.redis).await.unwrap();
        fleet.forgets();
        the_books_are_gone(&mut fleet).await;
        // A second one, while it learns.
        fleet.churn(10).await;
        let _: () = redis::cmd("FLUSHALL").query_async(&mut fleet.redis).await.unwrap();
        fleet.forgets();
        the_books_are_gone(&mut fleet).await;
        fleet.learns_and_lends_again().await;
    }
}

/// Nobody is answered, and the old epoch writes nothing, until the operator has claimed and planned.
async fn the_books_are_gone(fleet: &mut Fleet) {
    let held = fleet.members["a"].grant;
    assert_eq!(fleet.beat("a", held, 500).await.state, BookStanding::None);
    let plan = fleet.ledger.plan(UID, fleet.epoch, std::slice::from_ref(&fleet.write)).await;
    assert!(matches!(plan, Err(LedgerError::Fenced)), "{plan:?}");
    assert_eq!(fleet.book().await, None);
    fleet.take_over().await;
    let answer = fleet.beat("a", held, 500).await;
    assert_eq!(answer.state, BookStanding::Learning);
    assert!(answer.grant <= held);
}

#[tokio::test]
async fn another_url_learns() {
    let (old, new) = (RedisServer::start().await, RedisServer::start().await);
    let mut fleet = Fleet::start(&old, 9).await;
    fleet.has_worked().await;
    // Whoever still goes by the old one is answered nothing there.
    fleet.ledger.close(UID, fleet.epoch, &[book()]).await.unwrap();
    assert_eq!(fleet.beat("b", 1_000, 1_000).await.state, BookStanding::None);
    fleet.moves_to(&new).await;
    assert_eq!(fleet.book().await, None);
    fleet.take_over().await;
    fleet.learns_and_lends_again().await;
    assert!(fleet.lent_in_learning > 0, "what was given back was not lent");
    let keys: Vec<String> = old.connection().await.keys("*").await.unwrap();
    assert_eq!(keys, [Keys::new(UID).meta()], "the old server keeps the word to detach, for two minutes");
}
