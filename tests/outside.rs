//! Traffic outside, on a real Redis: counters written as LiteLLM writes them, against what members reported.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::figures::report;
use common::fleet::{Fleet, UID, amounts};
use common::{RedisServer, until};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{
    Call, Ledger, LedgerError, LimitUsage, MemberState, Minute, RedisLedger, Report, Timeouts, seen_by,
};
use tokenbudget::litellm::counters::{deployments, keys, sums};
use tokenbudget::plan::{Amounts, Outside};

/// 2026-09-21T14:13Z.
const MINUTE: u64 = 1_790_000_000 / 60;

/// One call that ended well, as `_pipeline_increment_helper` of LiteLLM 1.106.2 counts it.
async fn count(redis: &mut MultiplexedConnection, deployment: &str, clock: &str, tokens: u64) {
    let mut pipe = redis::pipe();
    for (unit, amount) in [("tpm", tokens as f64), ("rpm", 1.0)] {
        let key = format!("global_router:{deployment}:{unit}:{clock}");
        pipe.cmd("INCRBYFLOAT").arg(&key).arg(amount).ignore();
        pipe.expire(&key, 60).ignore();
    }
    let () = pipe.query_async(redis).await.unwrap();
}

fn member(at: u64, tokens: u64, requests: u64) -> Report {
    let usage = LimitUsage {
        name: "gpt-4o".into(),
        deployments: vec!["id-1:openai/gpt-4o".into(), "id-2:azure/gpt-4o".into()],
        reserved: None,
        minute: Some(Minute { at, tokens, requests, waited: 0 }),
    };
    Report { limits: Some(vec![usage]), ..report(MemberState::Enforcing) }
}

async fn says(fleet: &mut Fleet, id: &str, report: &Report) {
    let seq = fleet.seqs.entry(id.into()).or_default();
    *seq += 1;
    let books = [amounts(0, 100, 0, 0)];
    let call = Call { member: id, seq: *seq, report: Some(report), books: &books, ..Call::default() };
    fleet.ledger.call(UID, &call).await.unwrap();
}

/// What the operator does in a minute: reads the counters of the minute before, and compares when every member has told.
async fn audit(fleet: &Fleet, outside: &mut Outside, minute: u64) -> Option<Amounts> {
    let seen = fleet.ledger.observe(UID, &[]).await.unwrap();
    outside.members(minute + 1, seen.reports.keys().map(String::as_str));
    let named = deployments(seen.reports.values());
    let texts = fleet.ledger.texts(&keys(&named, minute)).await.unwrap();
    outside.counted(minute, Some(sums(&named, &texts)));
    outside.compare(|limit, minute| {
        let sum = seen_by(seen.reports.values(), limit, minute)?;
        Some(Amounts { tokens: sum.tokens, requests: sum.requests })
    });
    outside.of("gpt-4o")
}

#[tokio::test]
async fn what_nobody_reported_is_said_after_two_minutes_and_taken_back_after_two() {
    let mut fleet = Fleet::start().await;
    let mut outside = Outside::default();
    outside.members(MINUTE - 1, ["a", "b"]);
    // Two members share each minute's calls; a third process of somebody else's spends for two minutes, too.
    let others = [0, 7_000, 7_000, 0, 0];
    let mut said = Vec::new();
    for (minute, others) in (MINUTE..).zip(others) {
        let clock = format!("14-{}", 13 + minute - MINUTE);
        for (id, deployment) in [("a", "id-1:openai/gpt-4o"), ("b", "id-2:azure/gpt-4o")] {
            count(&mut fleet.redis, deployment, &clock, 1_200).await;
            count(&mut fleet.redis, deployment, &clock, 300).await;
            says(&mut fleet, id, &member(minute, 1_500, 2)).await;
        }
        if others > 0 {
            count(&mut fleet.redis, "id-2:azure/gpt-4o", &clock, others).await;
        }
        said.push(audit(&fleet, &mut outside, minute).await);
    }
    let amounts = Some(Amounts { tokens: 7_000, requests: 1 });
    assert_eq!(said, [None, None, amounts, amounts, None]);
}

#[tokio::test]
async fn nothing_is_said_while_one_member_has_not_told_or_counters_have_expired() {
    let mut fleet = Fleet::start().await;
    let mut outside = Outside::default();
    outside.members(MINUTE - 1, ["a", "b"]);
    for (minute, clock) in (MINUTE..).zip(["14-13", "14-14"]) {
        count(&mut fleet.redis, "id-1:openai/gpt-4o", clock, 50_000).await;
        says(&mut fleet, "a", &member(minute, 1_000, 1)).await;
        says(&mut fleet, "b", &member(minute - 1, 49_000, 1)).await;
        assert_eq!(audit(&fleet, &mut outside, minute).await, None);
    }
    // 40,000 tokens of the members themselves, whose counters are gone: that hides others, and accuses nobody.
    for (minute, clock) in (MINUTE + 2..).zip(["14-15", "14-16"]) {
        count(&mut fleet.redis, "id-1:openai/gpt-4o", clock, 40_000).await;
        let key = format!("global_router:id-1:openai/gpt-4o:tpm:{clock}");
        let ttl: i64 = fleet.redis.ttl(&key).await.unwrap();
        assert!((1..=60).contains(&ttl), "{ttl}");
        let _: bool = fleet.redis.pexpire(&key, 1).await.unwrap();
        let mut redis = fleet.redis.clone();
        until("the counter has expired", async || !redis.exists::<_, bool>(&key).await.unwrap()).await;
        count(&mut fleet.redis, "id-2:azure/gpt-4o", clock, 9_000).await;
        for id in ["a", "b"] {
            says(&mut fleet, id, &member(minute, 20_000, 1)).await;
        }
        assert_eq!(audit(&fleet, &mut outside, minute).await, None);
    }
}

#[tokio::test]
async fn texts_are_read_in_order_and_what_is_no_text_is_none() {
    let fleet = Fleet::start().await;
    let mut redis = fleet.redis.clone();
    let keys: Vec<String> = (0..1_203).map(|i| format!("k{i}")).collect();
    let () = redis.set("k0", "5").await.unwrap();
    let () = redis.set("k500", b"\xff".as_slice()).await.unwrap();
    let () = redis.lpush("k501", "1").await.unwrap();
    let () = redis.set("k1202", "7.5").await.unwrap();
    let texts = fleet.ledger.texts(&keys).await.unwrap();
    let found: Vec<_> = texts.iter().enumerate().filter_map(|(i, t)| Some((i, t.as_deref()?))).collect();
    assert_eq!((texts.len(), found), (1_203, vec![(0, "5"), (1_202, "7.5")]));
}

#[tokio::test]
async fn a_user_who_may_not_read_them_and_a_server_that_hangs_are_errors_in_time() {
    let server = RedisServer::start_with(&["--user", "agent", "on", ">secret", "~tokenbudget:*", "+@all"]).await;
    let url = server.url().replace("//", "//agent:secret@");
    let ledger = RedisLedger::connect(&url, Timeouts::default()).unwrap();
    let error = ledger.texts(&["global_router:a:b:tpm:00-00".to_owned()]).await.unwrap_err();
    assert!(matches!(&error, LedgerError::Script { message } if message.contains("permissions")), "{error:?}");
    assert!(ledger.claim(UID).await.is_ok(), "the ledger is none the worse for it");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let ms = Duration::from_millis;
    let ledger = RedisLedger::connect(&url, Timeouts { connect: ms(200), response: ms(200), call: ms(300) }).unwrap();
    let error = ledger.texts(&["k".to_owned()]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Timeout { .. }), "{error:?}");
}
