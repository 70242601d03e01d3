//! How records end, and how a ledger learns what it may not know, on a real Redis server.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::RedisServer;
use common::figures::{policy, report};
use common::fleet::{Fleet, UID, amounts, book};
use redis::AsyncCommands;
use tokenbudget::ledger::{
    BookCall, BookId, BookStanding, Call, HOLD_MS, Keys, Ledger, LedgerError, MemberPlan, MemberState, PlanWrite,
    RedisLedger, Timeouts, Unit,
};

const LEASE: u64 = 30_000;

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
    let publish = fleet.ledger.publish(UID, old, &policy(UID), &[book()]).await;
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
    // It is believed what it holds, and gets no more.
    let answer = fleet.beat("a", 600, 700, 80, 60).await;
    assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 600));
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

/// The record of `a`, the only member, after so many more ms each.
async fn falls(fleet: &mut Fleet, steps: &[(u64, u64)]) {
    for &(after_ms, record) in steps {
        fleet.pass(after_ms).await;
        fleet.plan().await;
        assert_eq!((fleet.record("a").await, fleet.book().await.lent), (Some(record), record), "{after_ms} ms later");
    }
}

#[tokio::test]
async fn what_a_leaver_spent_comes_back_as_it_leaves_the_window() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 400, 300, 0).await;
    let mut last = amounts(300, 0, 300, 0);
    last.ask.leaves.0[..3].copy_from_slice(&[100, 0, 150]);
    fleet.send("a", true, last).await;
    fleet.member("a", 100, false);
    // A step of 1 s has to be over, and 1 s more; the operator passes then.
    let book = fleet.book().await;
    let (at, ended) = (book.members["a"].next_leave_ms(book.clock_ms), book.members["a"].ended_ms);
    assert_eq!(at, ended.map(|ended| ended + 2_000));
    falls(&mut fleet, &[(1_900, 300), (200, 200), (1_000, 200), (1_000, 50), (60_000, 50)]).await;
    fleet.pass(1_000).await;
    fleet.plan().await;
    assert_eq!((fleet.record("a").await, fleet.book().await.lent), (None, 0));
}

#[tokio::test]
async fn what_a_killed_member_spent_comes_back_as_it_leaves_the_window_after_its_end() {
    let mut fleet = Fleet::start().await;
    fleet.write.lease_ms = 5_000;
    fleet.plan().await;
    let mut last = amounts(0, 400, 300, 0);
    last.ask.as_of_ms = 1_000_000;
    last.ask.leaves.0[..11].copy_from_slice(&[60, 40, 5, 5, 3, 2, 4, 1, 20, 0, 150]);
    fleet.send("a", false, last).await;
    // It ended 6 s later, at most: 8 s with the slack. What had left in these eight steps it may have spent again.
    fleet.write.members.insert("a".into(), MemberPlan { share: 100, finished_ms: Some(1_006_000) });
    falls(&mut fleet, &[(0, 400), (9_900, 400), (200, 380), (1_000, 380), (1_000, 230), (49_000, 230)]).await;
    fleet.pass(5_100).await;
    fleet.plan().await;
    assert_eq!((fleet.record("a").await, fleet.book().await.lent), (None, 0));
}

#[tokio::test]
async fn what_leaves_is_not_counted_while_the_lease_is_ahead() {
    let mut fleet = Fleet::start().await;
    let mut last = amounts(0, 400, 300, 0);
    last.ask.leaves.0[9] = 300;
    fleet.send("a", false, last).await;
    fleet.member("a", 100, true);
    fleet.plan().await;
    falls(&mut fleet, &[(29_900, 400), (200, 100)]).await;
}

#[tokio::test]
async fn a_leaver_gives_back_no_more_than_it_held() {
    let mut fleet = Fleet::start().await;
    fleet.beat("b", 0, 500, 0, 0).await;
    let mut last = amounts(30, 0, 30, 0);
    last.ask.leaves.0[0] = 1_000_000_000_000;
    fleet.send("a", true, last).await;
    fleet.shares(&[("a", 0), ("b", 500)]).await;
    fleet.pass(11_000).await;
    fleet.plan().await;
    assert_eq!((fleet.record("a").await, fleet.book().await.lent), (Some(0), 500));
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

    // After a flush its first call is believed, and covers more than that.
    let _: () = redis::cmd("FLUSHALL").query_async(&mut fleet.redis).await.unwrap();
    fleet.epoch = fleet.ledger.claim(UID).await.unwrap();
    fleet.plan().await;
    fleet.beat("a", 400, 400, 10, 100).await;
    assert_eq!(fleet.record("a").await, Some(400));
}

#[tokio::test]
async fn a_step_of_the_clock_counts_for_a_second_at_most() {
    let mut fleet = Fleet::start().await;
    fleet.beat("a", 0, 100, 0, 0).await;
    let key = Keys::new(UID).book(&book());
    for (shift, least, most) in [(-500_i64, 500, 999), (-3_600_000, 1_000, 1_000), (3_600_000, 0, 0)] {
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
        write.members.insert("a".into(), MemberPlan { share: 1, finished_ms: Some(1) });
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
