//! A ledger on a server of its own, with one TokenBudget, one book, and members that say what a test wants.

use std::collections::{BTreeMap, HashMap};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{
    BookAnswer, BookCall, BookId, BookState, Call, Epoch, Keys, Ledger, MemberPlan, PlanWrite, Planned, RedisLedger,
    Timeouts, Unit,
};

use super::RedisServer;
use super::figures::{self, plan};

pub const UID: &str = "0b5b7a3e";

/// One TokenBudget with one book of 1,000 and a safe share of 100.
pub struct Fleet {
    pub server: RedisServer,
    pub ledger: RedisLedger,
    pub redis: MultiplexedConnection,
    pub epoch: Epoch,
    pub seqs: HashMap<String, u64>,
    pub write: PlanWrite,
}

pub fn book() -> BookId {
    BookId::new("gpt-4o", Unit::Tokens)
}

/// `keep want spent off`, with the rest at rest.
pub fn amounts(keep: u64, want: u64, spent: u64, off: u64) -> BookCall {
    figures::amounts(book(), keep, want, spent, off)
}

impl Fleet {
    pub async fn start() -> Self {
        let server = RedisServer::start().await;
        let ledger = RedisLedger::connect(&server.url(), Timeouts::default()).unwrap();
        let redis = server.connection().await;
        let epoch = ledger.claim(UID).await.unwrap();
        let write = plan(book());
        let mut fleet = Self { server, ledger, redis, epoch, seqs: HashMap::new(), write };
        fleet.plan().await;
        fleet.write.first = false;
        fleet
    }

    pub async fn plan(&self) -> Planned {
        self.ledger.plan(UID, self.epoch, std::slice::from_ref(&self.write)).await.unwrap()
    }

    pub fn member(&mut self, id: &str, share: u64, gone: bool) {
        self.write.members.insert(id.into(), MemberPlan { share, finished_ms: gone.then_some(1) });
    }

    pub async fn shares(&mut self, shares: &[(&str, u64)]) {
        for (id, share) in shares {
            self.member(id, *share, false);
        }
        self.plan().await;
    }

    pub async fn send(&mut self, member: &str, leave: bool, amounts: BookCall) -> BookAnswer {
        let seq = self.seqs.entry(member.into()).or_default();
        *seq += 1;
        let call = Call { member, seq: *seq, leave, books: &[amounts], ..Call::default() };
        self.ledger.call(UID, &call).await.unwrap().books[0]
    }

    pub async fn beat(&mut self, member: &str, keep: u64, want: u64, spent: u64, off: u64) -> BookAnswer {
        self.send(member, false, amounts(keep, want, spent, off)).await
    }

    /// Makes `ms` of ledger time pass.
    pub async fn pass(&mut self, ms: u64) {
        let _: i64 = self.redis.hincr(Keys::new(UID).book(&book()), "clock", ms).await.unwrap();
    }

    pub async fn book(&self) -> BookState {
        self.ledger.observe(UID, &[book()]).await.unwrap().books.remove(&book()).unwrap()
    }

    pub async fn record(&self, member: &str) -> Option<u64> {
        self.book().await.members.get(member).map(|m| m.record)
    }

    pub async fn dump(&mut self) -> BTreeMap<String, BTreeMap<String, String>> {
        let keys: Vec<String> = self.redis.keys("*").await.unwrap();
        let mut all = BTreeMap::new();
        for key in keys {
            let fields = self.redis.hgetall(&key).await.unwrap();
            all.insert(key, fields);
        }
        all
    }
}
