//! What is kept beside the books, and servers that are missing, hang, or ask for a password or TLS.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::RedisServer;
use common::figures::{policy, report};
use common::fleet::{Fleet, UID, amounts, book};
use redis::AsyncCommands;
use tokenbudget::ledger::{BookStanding, Call, Keys, Ledger, LedgerError, MemberState, Policy, RedisLedger, Timeouts};

#[tokio::test]
async fn the_policy_reaches_members_once() {
    let mut fleet = Fleet::start().await;
    let policy = policy(UID);
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
    fleet.ledger.publish(UID, fleet.epoch, &policy(UID), &[]).await.unwrap();
    fleet.beat("a", 0, 100, 0, 0).await;
    let closes = fleet.ledger.claim(UID).await.unwrap();
    fleet.ledger.close(UID, closes, &[book()]).await.unwrap();
    let report = report(MemberState::Enforcing);
    let books = [amounts(100, 100, 0, 0)];
    let call = Call { member: "a", seq: 9, version: "x", report: Some(&report), books: &books, ..Call::default() };
    let answer = fleet.ledger.call(UID, &call).await.unwrap();
    assert_eq!(answer.books[0].state, BookStanding::None);
    let told: serde_json::Value = serde_json::from_str(&answer.policy.unwrap()).unwrap();
    assert_eq!(told["mode"], "Detached");
    let late = fleet.ledger.plan(UID, fleet.epoch, std::slice::from_ref(&fleet.write)).await;
    assert!(matches!(late, Err(LedgerError::Fenced)), "{late:?}");
    let keys: Vec<String> = fleet.redis.keys("*").await.unwrap();
    assert_eq!(keys, [Keys::new(UID).meta()]);
    let ttl: i64 = fleet.redis.ttl(&keys[0]).await.unwrap();
    assert!((1..=120).contains(&ttl), "{ttl}");
    fleet.ledger.close(UID, closes, &[book()]).await.unwrap();
    // Nor does an operator that takes over now keep it for longer.
    let again = fleet.ledger.claim(UID).await.unwrap();
    let ttl: i64 = fleet.redis.ttl(&keys[0]).await.unwrap();
    assert!((1..=120).contains(&ttl), "{ttl}");
    // One that is installed again serves it at once.
    fleet.ledger.plan(UID, again, std::slice::from_ref(&fleet.write)).await.unwrap();
    fleet.ledger.publish(UID, again, &policy(UID), &[]).await.unwrap();
    let answer = fleet.ledger.call(UID, &Call { seq: 10, ..call }).await.unwrap();
    assert_ne!(answer.books[0].state, BookStanding::None);
    let told: serde_json::Value = serde_json::from_str(&answer.policy.unwrap()).unwrap();
    assert_eq!(told["mode"], "Enforce");
}

#[tokio::test]
async fn every_key_has_a_ttl_that_calls_renew() {
    let mut fleet = Fleet::start().await;
    fleet.ledger.publish(UID, fleet.epoch, &policy(UID), &[]).await.unwrap();
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
