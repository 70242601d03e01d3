//! The ledger's scripts on a real Redis server, rule by rule. Random sequences are in `ledger_random.rs`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use common::RedisServer;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{
    BookAnswer, BookCall, BookId, BookStanding, BookState, Call, Epoch, HOLD_MS, Keys, Ledger, LedgerError, MemberPlan,
    MemberState, Mode, OnLedgerLoss, PlanWrite, Planned, Policy, RedisLedger, Report, Reserve, Timeouts, Unit,
};

const UID: &str = "0b5b7a3e";
const LEASE: u64 = 30_000;

/// One TokenBudget with one book of 1,000 and a safe share of 100.
struct Fleet {
    server: RedisServer,
    ledger: RedisLedger,
    redis: MultiplexedConnection,
    epoch: Epoch,
    seqs: HashMap<String, u64>,
    write: PlanWrite,
}

fn book() -> BookId {
    BookId::new("gpt-4o", Unit::Tokens)
}

/// `keep want spent off`, with the rest at rest.
fn amounts(keep: u64, want: u64, spent: u64, off: u64) -> BookCall {
    BookCall { book: book(), keep, want, least: 0, spent, denied: 0, off }
}

fn report(state: MemberState) -> Report {
    Report {
        pod: "litellm-1".into(),
        pod_uid: "p".into(),
        container: "litellm".into(),
        worker: 7,
        started_ms: 1_790_000_000_000,
        agent: "0.1.0".into(),
        policy: String::new(),
        state,
        problems: vec![],
        declared: None,
    }
}

fn policy() -> Policy {
    Policy {
        version: String::new(),
        token_budget: "llm/one".into(),
        uid: UID.into(),
        mode: Mode::Enforce,
        reserve: Reserve::MaxTokens,
        max_wait_ms: 250,
        on_ledger_loss: OnLedgerLoss::SafeShare,
        lease_ms: LEASE,
        beat_ms: 500,
        deriving: false,
        limits: vec![],
    }
    .stamped()
}

impl Fleet {
    async fn start() -> Self {
        let server = RedisServer::start().await;
        let ledger = RedisLedger::connect(&server.url(), Timeouts::default()).unwrap();
        let redis = server.connection().await;
        let epoch = ledger.claim(UID).await.unwrap();
        let write = PlanWrite {
            book: book(),
            budget: 1_000,
            aside: 0,
            safe: 100,
            lease_ms: LEASE,
            first: true,
            members: BTreeMap::new(),
        };
        let mut fleet = Self { server, ledger, redis, epoch, seqs: HashMap::new(), write };
        fleet.plan().await;
        fleet.write.first = false;
        fleet
    }

    async fn plan(&self) -> Planned {
        self.ledger.plan(UID, self.epoch, std::slice::from_ref(&self.write)).await.unwrap()
    }

    fn member(&mut self, id: &str, share: u64, gone: bool) {
        self.write.members.insert(id.into(), MemberPlan { share, gone });
    }

    async fn shares(&mut self, shares: &[(&str, u64)]) {
        for (id, share) in shares {
            self.member(id, *share, false);
        }
        self.plan().await;
    }

    async fn send(&mut self, member: &str, leave: bool, amounts: BookCall) -> BookAnswer {
        let seq = self.seqs.entry(member.into()).or_default();
        *seq += 1;
        let call = Call { member, seq: *seq, leave, books: &[amounts], ..Call::default() };
        self.ledger.call(UID, &call).await.unwrap().books[0]
    }

    async fn beat(&mut self, member: &str, keep: u64, want: u64, spent: u64, off: u64) -> BookAnswer {
        self.send(member, false, amounts(keep, want, spent, off)).await
    }

    /// Makes `ms` of ledger time pass.
    async fn pass(&mut self, ms: u64) {
        let _: i64 = self.redis.hincr(Keys::new(UID).book(&book()), "clock", ms).await.unwrap();
    }

    async fn book(&self) -> BookState {
        self.ledger.observe(UID, &[book()]).await.unwrap().books.remove(&book()).unwrap()
    }

    async fn record(&self, member: &str) -> Option<u64> {
        self.book().await.members.get(member).map(|m| m.record)
    }

    async fn dump(&mut self) -> BTreeMap<String, BTreeMap<String, String>> {
        let keys: Vec<String> = self.redis.keys("*").await.unwrap();
        let mut all = BTreeMap::new();
        for key in keys {
            let fields = self.redis.hgetall(&key).await.unwrap();
            all.insert(key, fields);
        }
        all
    }
}

#[tokio::test]
async fn a_call_lends_from_the_pool_and_no_more() {
    let mut fleet = Fleet::start().await;
    fleet.write.aside = 50;
    fleet.shares(&[]).await;
    let answer = fleet.beat("a", 0, 700, 0, 0).await;
    assert_eq!((answer.state, answer.grant, answer.share, answer.pool), (BookStanding::Ok, 700, 100, 250));
    assert_eq!((answer.budget, answer.safe), (1_000, 100));
    assert_eq!(fleet.beat("b", 0, 700, 0, 0).await.grant, 250);
    assert_eq!(fleet.beat("a", 300, 300, 120, 0).await.pool, 400);
    let book = fleet.book().await;
    assert_eq!((book.lent, book.pool(), book.members["a"].spent), (550, 400, 120));
}

#[tokio::test]
async fn amounts_up_to_a_million_millions_are_exact() {
    let mut fleet = Fleet::start().await;
    fleet.write.budget = 1_000_000_000_000;
    fleet.write.safe = 333_333_333_333;
    fleet.plan().await;
    assert_eq!(fleet.beat("a", 0, 999_999_999_999, 0, 0).await.grant, 999_999_999_999);
    let answer = fleet.beat("b", 0, 7, 0, 0).await;
    assert_eq!((answer.grant, answer.pool, answer.share), (1, 0, 333_333_333_333));
    assert_eq!(fleet.book().await.lent, 1_000_000_000_000);
    // So are the numbers of calls, as far as Lua counts.
    fleet.seqs.insert("a".into(), (1 << 53) - 2);
    fleet.beat("a", 1, 1, 1, 0).await;
    assert_eq!(fleet.book().await.members["a"].seq, (1 << 53) - 1);
}

#[tokio::test]
async fn sums_of_the_largest_amounts_are_exact() {
    let mut fleet = Fleet::start().await;
    fleet.write.budget = 1_000_000_000_000;
    fleet.plan().await;
    let spent = 999_999_999_989;
    for n in 1..=105_i64 {
        // Each has charged nearly all of the budget: a debt, and beyond the 14 digits of Lua's own texts.
        let answer = fleet.beat(&format!("m{n}"), spent, 0, spent, 0).await;
        let pool = 1_000_000_000_000 - n * 999_999_999_989;
        assert_eq!((answer.grant, answer.pool), (spent, pool));
    }
    assert_eq!(fleet.book().await.lent, 105 * spent);
    assert_eq!(fleet.plan().await.books[&book()].pool, 1_000_000_000_000 - 105 * 999_999_999_989);
}

#[tokio::test]
async fn a_call_runs_the_same_commands_however_many_members_there_are() {
    let mut fleet = Fleet::start().await;
    let mut seen = Vec::new();
    // Beyond 512 fields a hash is stored in another way.
    for members in [10, 700] {
        for n in 0..members {
            fleet.beat(&format!("m{n}"), 0, 1, 0, 0).await;
        }
        let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut fleet.redis).await.unwrap();
        fleet.beat("m3", 1, 2, 0, 0).await;
        let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut fleet.redis).await.unwrap();
        let mut commands: Vec<String> = stats
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split(",usec").next())
            .filter(|command| !command.starts_with("config"))
            .map(str::to_owned)
            .collect();
        commands.sort();
        seen.push(commands);
    }
    assert_eq!(seen[0], seen[1]);
    // None of these looks at more fields than it names.
    let names: Vec<&str> = seen[0].iter().map(|command| command.split(':').next().unwrap()).collect();
    assert_eq!(names, ["evalsha", "expire", "hget", "hmget", "hset", "info", "time"]);
}

#[tokio::test]
async fn debt_makes_the_pool_negative_and_the_answer_contended() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 1_000, 0, 0).await;
    let answer = fleet.beat("b", 300, 300, 250, 0).await;
    assert_eq!((answer.state, answer.grant, answer.pool), (BookStanding::Contended, 250, -250));
    fleet.write.budget = 600;
    fleet.plan().await;
    let answer = fleet.beat("a", 900, 900, 900, 0).await;
    assert_eq!((answer.state, answer.grant, answer.pool), (BookStanding::Contended, 900, -550));
}

#[tokio::test]
async fn a_cut_bites_while_learning() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 1_000, 0, 0).await;
    let _: () = fleet.redis.hset(Keys::new(UID).book(&book()), "replid", "other").await.unwrap();
    fleet.write.budget = 400;
    fleet.plan().await;
    assert_eq!(fleet.beat("a", 900, 900, 900, 0).await.state, BookStanding::Contended);
}

#[tokio::test]
async fn a_stale_call_changes_nothing() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 200, 0, 0).await;
    fleet.beat("a", 200, 300, 10, 0).await;
    let before = fleet.dump().await;
    let late = report(MemberState::Starting);
    for seq in [1, 2] {
        let books = [amounts(0, 900, 0, 0)];
        let call = Call { member: "a", seq, report: Some(&late), books: &books, ..Call::default() };
        let answer = fleet.ledger.call(UID, &call).await.unwrap().books[0];
        assert_eq!((answer.state, answer.grant), (BookStanding::Stale, 300));
    }
    assert_eq!(fleet.dump().await, before);
}

#[tokio::test]
async fn no_book_is_no_answer() {
    let fleet = Fleet::start().await;
    let call = Call {
        member: "a",
        seq: 1,
        books: &[BookCall { book: BookId::new("other", Unit::Requests), ..amounts(0, 9, 0, 0) }],
        ..Call::default()
    };
    assert_eq!(fleet.ledger.call(UID, &call).await.unwrap().books[0].state, BookStanding::None);
}

#[tokio::test]
async fn what_a_member_below_its_share_was_refused_waits_for_it_for_a_second() {
    let mut fleet = Fleet::start().await;
    fleet.beat("big", 0, 900, 0, 0).await;
    fleet.beat("small", 0, 100, 0, 0).await;
    fleet.shares(&[("big", 500), ("small", 400)]).await;
    // The pool is empty: 300 stay wanted, at or under the share.
    assert_eq!(fleet.beat("small", 100, 450, 90, 0).await.grant, 100);
    assert_eq!(fleet.book().await.claimed(), 300);
    // What big gives back it cannot take again, nor can a third that is above its share.
    assert_eq!(fleet.beat("big", 700, 900, 600, 0).await.grant, 700);
    fleet.pass(900).await;
    assert_eq!(fleet.beat("third", 0, 150, 0, 0).await.grant, 100);
    assert_eq!(fleet.beat("small", 100, 450, 90, 0).await.grant, 200);
    fleet.pass(1_300).await;
    let answer = fleet.beat("big", 600, 900, 600, 0).await;
    assert_eq!((answer.grant, answer.pool), (700, 0), "a claim ends after a second");
}

#[tokio::test]
async fn a_share_is_no_limit_while_nobody_claims() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 1, 0, 0).await;
    fleet.shares(&[("a", 0)]).await;
    let answer = fleet.beat("a", 1, 800, 0, 0).await;
    assert_eq!((answer.grant, answer.share), (800, 0));
}

#[tokio::test]
async fn old_epochs_change_nothing() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 200, 0, 0).await;
    let old = fleet.epoch;
    let new = fleet.ledger.claim(UID).await.unwrap();
    assert!(new.0 > old.0);
    let before = fleet.dump().await;
    fleet.write.budget = 5;
    let writes = [fleet.write.clone()];
    let plan = fleet.ledger.plan(UID, old, &writes).await;
    let publish = fleet.ledger.publish(UID, old, &policy(), &[book()]).await;
    let close = fleet.ledger.close(UID, old, &[book()]).await;
    assert!(matches!(plan, Err(LedgerError::Fenced)), "{plan:?}");
    assert!(matches!(publish, Err(LedgerError::Fenced)), "{publish:?}");
    assert!(matches!(close, Err(LedgerError::Fenced)), "{close:?}");
    assert_eq!(fleet.dump().await, before);
    assert_eq!(fleet.ledger.plan(UID, new, &writes).await.unwrap().books[&book()].budget, 5);
}

#[tokio::test]
async fn an_epoch_never_comes_back_even_after_a_flush() {
    let mut fleet = Fleet::start().await;
    let old = fleet.epoch;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut fleet.redis).await.unwrap();
    let plan = fleet.ledger.plan(UID, old, &[]).await;
    assert!(matches!(plan, Err(LedgerError::Fenced)), "{plan:?}");
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(fleet.ledger.claim(UID).await.unwrap().0 > old.0);
    let plan = fleet.ledger.plan(UID, old, &[]).await;
    assert!(matches!(plan, Err(LedgerError::Fenced)), "{plan:?}");
}

#[tokio::test]
async fn after_a_flush_nothing_is_lent_until_every_lease_is_over() {
    let mut fleet = Fleet::start().await;
    assert_eq!(fleet.beat("a", 0, 600, 0, 0).await.grant, 600);
    let _: () = redis::cmd("FLUSHALL").query_async(&mut fleet.redis).await.unwrap();
    assert_eq!(fleet.beat("a", 600, 700, 80, 60).await.state, BookStanding::None);
    fleet.epoch = fleet.ledger.claim(UID).await.unwrap();
    let planned = fleet.plan().await.books[&book()];
    assert!(planned.created && planned.learning);
    // It is registered with what it has spent, and gets no more.
    let answer = fleet.beat("a", 600, 700, 80, 60).await;
    assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 80));
    fleet.pass(LEASE + HOLD_MS - 2_000).await;
    assert_eq!(fleet.beat("b", 0, 10, 0, 0).await.state, BookStanding::Learning);
    assert!(fleet.plan().await.books[&book()].learning);
    fleet.pass(2_001).await;
    let answer = fleet.beat("b", 0, 10, 0, 0).await;
    assert_eq!((answer.state, answer.grant), (BookStanding::Ok, 10));
}

#[tokio::test]
async fn another_server_learns() {
    for by_plan in [false, true] {
        let mut fleet = Fleet::start().await;
        fleet.beat("a", 0, 100, 0, 0).await;
        let key = Keys::new(UID).book(&book());
        let _: () = fleet.redis.hset(&key, "replid", "of-the-lost-primary").await.unwrap();
        if by_plan {
            assert!(fleet.plan().await.books[&book()].learning);
        }
        let answer = fleet.beat("a", 100, 200, 0, 0).await;
        assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 100));
        let book = fleet.book().await;
        assert!(book.learn_until_ms >= book.clock_ms + LEASE + HOLD_MS - 5_000, "{book:?}");
        assert_ne!(book.replid, "of-the-lost-primary");
        fleet.pass(LEASE + HOLD_MS).await;
        assert_eq!(fleet.beat("a", 100, 200, 0, 0).await.grant, 200);
    }
}

#[tokio::test]
async fn a_replica_that_takes_over_learns() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 100, 0, 0).await;
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &fleet.server.port().to_string()]).await;
    let mut redis = replica.connection().await;
    let give_up = Instant::now() + Duration::from_secs(20);
    while !redis.exists::<_, bool>(Keys::new(UID).book(&book())).await.unwrap_or(false) {
        assert!(Instant::now() < give_up, "the replica did not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fleet.ledger = RedisLedger::connect(&replica.url(), Timeouts::default()).unwrap();
    let refused = fleet.ledger.claim(UID).await;
    assert!(matches!(refused, Err(LedgerError::Unreachable { .. })), "a replica is read-only: {refused:?}");
    let _: () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut redis).await.unwrap();
    let answer = fleet.beat("a", 100, 200, 0, 0).await;
    assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 100));
}

#[tokio::test]
async fn a_gone_member_keeps_its_record_for_65_seconds() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 400, 0, 90).await;
    let books = [amounts(0, 400, 0, 90)];
    let report = report(MemberState::Enforcing);
    let call = Call { member: "a", seq: 2, report: Some(&report), books: &books, ..Call::default() };
    fleet.ledger.call(UID, &call).await.unwrap();
    fleet.member("a", 400, true);
    assert_eq!(fleet.plan().await.dropped, Vec::<String>::new());
    fleet.pass(HOLD_MS - 1_000).await;
    fleet.plan().await;
    assert_eq!(fleet.record("a").await, Some(400), "not even lowered to its off");
    fleet.pass(1_000).await;
    let planned = fleet.plan().await;
    assert_eq!((planned.dropped, planned.books[&book()].lent), (vec!["a".to_owned()], 0));
    assert_eq!(fleet.record("a").await, None);
    assert!(fleet.ledger.observe(UID, &[]).await.unwrap().reports.is_empty());
}

#[tokio::test]
async fn a_drop_is_refused_while_the_lease_is_ahead() {
    let mut fleet = Fleet::start().await;
    fleet.write.lease_ms = 200_000;
    fleet.plan().await;
    fleet.beat("a", 0, 400, 0, 90).await;
    fleet.member("a", 400, true);
    fleet.plan().await;
    fleet.pass(190_000).await;
    fleet.plan().await;
    assert_eq!(fleet.record("a").await, Some(400));
    fleet.pass(11_000).await;
    fleet.plan().await;
    assert_eq!(fleet.record("a").await, None);
}

#[tokio::test]
async fn wrong_evidence_is_undone_by_a_call() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 400, 0, 0).await;
    fleet.member("a", 400, true);
    fleet.plan().await;
    assert!(fleet.book().await.members["a"].ended_ms.is_some());
    fleet.beat("a", 400, 400, 0, 0).await;
    assert!(fleet.book().await.members["a"].ended_ms.is_none());
}

#[tokio::test]
async fn a_leaver_keeps_what_it_spent_for_65_seconds() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 400, 0, 90).await;
    let answer = fleet.send("a", true, amounts(70, 0, 70, 70)).await;
    assert_eq!((answer.grant, answer.pool), (70, 930));
    fleet.member("a", 400, false);
    fleet.pass(HOLD_MS - 1_000).await;
    fleet.plan().await;
    assert_eq!(fleet.record("a").await, Some(70));
    fleet.pass(1_000).await;
    fleet.plan().await;
    assert_eq!(fleet.record("a").await, None);
}

#[tokio::test]
async fn nothing_is_lent_to_a_leaver() {
    let mut fleet = Fleet::start().await;
    assert_eq!(fleet.send("a", true, amounts(5, 800, 5, 5)).await.grant, 5);
    assert_eq!(fleet.book().await.claimed(), 0);
}

#[tokio::test]
async fn a_silent_member_falls_to_its_off_after_its_lease_and_65_seconds() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 400, 0, 0).await;
    fleet.beat("a", 400, 400, 10, 90).await;
    fleet.member("a", 400, false);
    fleet.pass(LEASE + HOLD_MS - 1_000).await;
    fleet.plan().await;
    assert_eq!(fleet.record("a").await, Some(400));
    fleet.pass(1_000).await;
    assert_eq!(fleet.plan().await.books[&book()].lent, 90);
    // However long it stays away, and without evidence, that much is its own.
    fleet.pass(86_400_000).await;
    assert_eq!(fleet.plan().await.books[&book()].lent, 90);
}

#[tokio::test]
async fn what_a_member_may_admit_offline_is_covered_when_the_answer_is_lost() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 400, 0, 0).await;
    // The safe share falls; the member sends by the old one, and never hears again.
    fleet.write.safe = 40;
    fleet.member("a", 400, false);
    fleet.plan().await;
    fleet.beat("a", 400, 400, 10, 100).await;
    fleet.pass(LEASE + HOLD_MS).await;
    fleet.plan().await;
    assert_eq!(fleet.record("a").await, Some(100));

    // The same after a flush, where the member has spent less than its off.
    let _: () = redis::cmd("FLUSHALL").query_async(&mut fleet.redis).await.unwrap();
    fleet.epoch = fleet.ledger.claim(UID).await.unwrap();
    fleet.plan().await;
    fleet.beat("a", 400, 400, 10, 100).await;
    assert_eq!(fleet.record("a").await, Some(100));
}

#[tokio::test]
async fn a_step_of_the_clock_counts_for_three_seconds_at_most() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 100, 0, 0).await;
    let key = Keys::new(UID).book(&book());
    for (shift, least, most) in [(-2_000_i64, 2_000, 2_900), (-3_600_000, 3_000, 3_000), (3_600_000, 0, 0)] {
        for by_plan in [false, true] {
            let before = fleet.book().await.clock_ms;
            let _: i64 = fleet.redis.hincr(&key, "time", shift).await.unwrap();
            if by_plan {
                fleet.plan().await;
            } else {
                fleet.beat("a", 100, 100, 0, 0).await;
            }
            let step = fleet.book().await.clock_ms - before;
            assert!((least..=most).contains(&step), "shift {shift}, plan {by_plan}: {step}");
        }
    }
}

#[tokio::test]
async fn bad_arguments_change_nothing() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 100, 0, 0).await;
    let before = fleet.dump().await;
    let keys = Keys::new(UID);
    let call = redis::Script::new(tokenbudget::ledger::call_script());
    for bad in ["-5", "1.5", "nan", "", "1e3", "1000000000001"] {
        // The first book is fine, the second is not.
        let result: redis::RedisResult<redis::Value> = call
            .key(keys.meta())
            .key(keys.members())
            .key(keys.book(&book()))
            .key(keys.book(&book()))
            .arg(&["a", "9", "0", "", "", "100", "200", "0", "0", "0", "100", bad, "0", "0", "0"])
            .invoke_async(&mut fleet.redis)
            .await;
        assert!(result.is_err(), "{bad:?}");
    }
    assert_eq!(fleet.dump().await, before);
}

#[tokio::test]
async fn the_policy_reaches_members_once() {
    let mut fleet = Fleet::start().await;
    let policy = policy();
    fleet.ledger.publish(UID, fleet.epoch, &policy, &[]).await.unwrap();
    let call = Call { member: "a", seq: 1, ..Call::default() };
    let answer = fleet.ledger.call(UID, &call).await.unwrap();
    assert_eq!(answer.version, policy.version);
    assert_eq!(serde_json::from_str::<Policy>(&answer.policy.unwrap()).unwrap(), policy);
    let call = Call { member: "a", seq: 2, version: &policy.version, ..Call::default() };
    assert_eq!(fleet.ledger.call(UID, &call).await.unwrap().policy, None);

    fleet.ledger.publish(UID, fleet.epoch, &policy, &[book()]).await.unwrap();
    let observation = fleet.ledger.observe(UID, &[book()]).await.unwrap();
    assert_eq!(observation.policy_version.as_deref(), Some(policy.version.as_str()));
    assert!(observation.books.is_empty(), "the policy does not name it any more");
    fleet.write.first = false;
    assert!(fleet.plan().await.books[&book()].learning, "a book that comes back learns");
    assert_eq!(fleet.beat("a", 0, 5, 0, 0).await.grant, 0);
}

#[tokio::test]
async fn one_unreadable_report_hides_no_other() {
    let mut fleet = Fleet::start().await;
    let report = report(MemberState::Enforcing);
    let call = Call { member: "a", seq: 1, report: Some(&report), ..Call::default() };
    fleet.ledger.call(UID, &call).await.unwrap();
    let _: () = fleet.redis.hset(Keys::new(UID).members(), "b", "{").await.unwrap();
    let observation = fleet.ledger.observe(UID, &[]).await.unwrap();
    assert_eq!(observation.reports["a"], report);
    assert_eq!(observation.unreadable, ["b"]);
    let key = Keys::new(UID).book(&book());
    let _: () = fleet.redis.hset(&key, "m:b", "1 2 3").await.unwrap();
    let error = fleet.ledger.observe(UID, &[book()]).await.unwrap_err();
    assert!(matches!(&error, LedgerError::Malformed { key: named } if *named == key), "{error:?}");
}

#[tokio::test]
async fn after_a_close_members_hear_it_and_nothing_stays() {
    let mut fleet = Fleet::start().await;
    fleet.ledger.publish(UID, fleet.epoch, &policy(), &[]).await.unwrap();
    fleet.beat("a", 0, 100, 0, 0).await;
    fleet.ledger.close(UID, fleet.epoch, &[book()]).await.unwrap();
    let report = report(MemberState::Enforcing);
    let books = [amounts(100, 100, 0, 0)];
    let call = Call { member: "a", seq: 9, version: "x", report: Some(&report), books: &books, ..Call::default() };
    let answer = fleet.ledger.call(UID, &call).await.unwrap();
    assert_eq!(answer.books[0].state, BookStanding::None);
    let policy: serde_json::Value = serde_json::from_str(&answer.policy.unwrap()).unwrap();
    assert_eq!(policy["mode"], "Detached");
    let late = fleet.ledger.plan(UID, fleet.epoch, std::slice::from_ref(&fleet.write)).await;
    assert!(matches!(late, Err(LedgerError::Fenced)), "{late:?}");
    let keys: Vec<String> = fleet.redis.keys("*").await.unwrap();
    assert_eq!(keys, [Keys::new(UID).meta()]);
    let ttl: i64 = fleet.redis.ttl(&keys[0]).await.unwrap();
    assert!((1..=120).contains(&ttl), "{ttl}");
    fleet.ledger.close(UID, fleet.epoch, &[book()]).await.unwrap();
    // Nor does an operator that takes over now keep it for longer.
    fleet.ledger.claim(UID).await.unwrap();
    let ttl: i64 = fleet.redis.ttl(&keys[0]).await.unwrap();
    assert!((1..=120).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn every_key_has_a_ttl_that_calls_renew() {
    let mut fleet = Fleet::start().await;
    fleet.ledger.publish(UID, fleet.epoch, &policy(), &[]).await.unwrap();
    let report = report(MemberState::Enforcing);
    let books = [amounts(0, 1, 0, 0)];
    for by_plan in [true, false] {
        let call =
            Call { member: "a", seq: 1 + u64::from(by_plan), report: Some(&report), books: &books, ..Call::default() };
        fleet.ledger.call(UID, &call).await.unwrap();
        let keys: Vec<String> = fleet.redis.keys("*").await.unwrap();
        assert_eq!(keys.len(), 3);
        for key in &keys {
            let _: bool = fleet.redis.expire(key, 50).await.unwrap();
        }
        if by_plan {
            fleet.plan().await;
        } else {
            fleet.ledger.call(UID, &Call { seq: 9, ..call }).await.unwrap();
        }
        for key in &keys {
            let ttl: i64 = fleet.redis.ttl(key).await.unwrap();
            assert!(ttl > 86_000, "{key}: {ttl}");
        }
    }
}

#[tokio::test]
async fn a_member_is_forgotten_when_the_last_book_lets_it_go() {
    let fleet = Fleet::start().await;
    let two = BookId::new("gpt-4o", Unit::Requests);
    let mut writes =
        [fleet.write.clone(), PlanWrite { book: two.clone(), first: true, lease_ms: 100_000, ..fleet.write.clone() }];
    fleet.ledger.plan(UID, fleet.epoch, &writes).await.unwrap();
    let report = report(MemberState::Enforcing);
    let books = [amounts(0, 10, 0, 0), BookCall { book: two.clone(), ..amounts(0, 10, 0, 0) }];
    let call = Call { member: "a", seq: 1, report: Some(&report), books: &books, ..Call::default() };
    fleet.ledger.call(UID, &call).await.unwrap();
    for write in &mut writes {
        // Many more members than one run of the script takes.
        write.members = (0..1_500).map(|i| (format!("x{i}"), MemberPlan::default())).collect();
        write.members.insert("a".into(), MemberPlan { share: 1, gone: true });
    }
    fleet.ledger.plan(UID, fleet.epoch, &writes).await.unwrap();
    let mut redis = fleet.redis.clone();
    for (ms, dropped) in [(66_000_u64, false), (40_000, true)] {
        for id in [&book(), &two] {
            let _: i64 = redis.hincr(Keys::new(UID).book(id), "clock", ms).await.unwrap();
        }
        let planned = fleet.ledger.plan(UID, fleet.epoch, &writes).await.unwrap();
        assert_eq!(planned.dropped.contains(&"a".to_owned()), dropped);
        assert_eq!(planned.books[&book()].lent, 0);
        assert_eq!(fleet.ledger.observe(UID, &[]).await.unwrap().reports.is_empty(), dropped);
    }
}

#[tokio::test]
async fn a_missing_server_is_said_at_once_and_found_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    fleet.server.stop();
    let _ = fleet.ledger.claim(UID).await;
    let start = Instant::now();
    let error = fleet.ledger.claim(UID).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
    fleet.server.restart().await;
    assert!(fleet.ledger.claim(UID).await.is_ok());
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://:hunter2@{}", listener.local_addr().unwrap());
    let ms = Duration::from_millis;
    let ledger = RedisLedger::connect(&url, Timeouts { connect: ms(200), response: ms(200), call: ms(300) }).unwrap();
    let start = Instant::now();
    let error = ledger.claim(UID).await.unwrap_err();
    assert!(matches!(error, LedgerError::Timeout { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_wrong_password_is_named_without_it_and_mended_without_a_restart() {
    let server = RedisServer::start_with(&["--requirepass", "right"]).await;
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port());
    let ledger = RedisLedger::connect(&url, Timeouts::default()).unwrap();
    let error = ledger.claim(UID).await.unwrap_err();
    let LedgerError::Unreachable { source } = &error else { panic!("{error:?}") };
    assert!(!source.to_string().is_empty());
    assert!(!format!("{error:?} {error} {source} {ledger:?}").contains("hunter2"));

    let right = RedisLedger::connect(&server.url().replace("//", "//:right@"), Timeouts::default()).unwrap();
    assert!(right.claim(UID).await.is_ok());
    let client = redis::Client::open(server.url().replace("//", "//:right@")).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let set = ["SET", "requirepass", "hunter2"];
    let _: () = redis::cmd("CONFIG").arg(&set).query_async(&mut admin).await.unwrap();
    assert!(ledger.claim(UID).await.is_ok());
}

#[tokio::test]
async fn tls_is_spoken_and_a_server_without_it_is_unreachable() {
    let server = RedisServer::start().await;
    let ledger = RedisLedger::connect(&server.url().replace("redis:", "rediss:"), Timeouts::default()).unwrap();
    let error = ledger.claim(UID).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable { .. } | LedgerError::Timeout { .. }), "{error:?}");
}
