//! The Redis user of `docs/operations.md` may do all that the operator and the agents do, and nothing else.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::RedisServer;
use common::figures::{plan, policy, report};
use common::fleet::{UID, amounts, book};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{Call, Ledger, LedgerError, MemberState, RedisLedger, Timeouts};

/// A server with that user, and its URL.
async fn server() -> (RedisServer, String, MultiplexedConnection) {
    let server = RedisServer::start().await;
    let page = include_str!("../docs/operations.md");
    let line = page.lines().find(|line| line.starts_with("ACL SETUSER tokenbudget ")).expect("the page has the ACL");
    let words: Vec<String> = line.replace("PASSWORD", "secret").split_whitespace().map(str::to_owned).collect();
    let mut admin = server.connection().await;
    let () = redis::cmd(&words[0]).arg(&words[1..]).query_async(&mut admin).await.unwrap();
    let url = format!("redis://tokenbudget:secret@127.0.0.1:{}", server.port());
    (server, url, admin)
}

#[tokio::test]
async fn it_is_enough() {
    let (_server, url, mut admin) = server().await;
    let () = admin.set("global_router:id:m:tpm:14-13", "500").await.unwrap();
    let ledger = RedisLedger::connect(&url, Timeouts::default()).unwrap();
    let epoch = ledger.claim(UID).await.unwrap();
    let write = plan(book());
    ledger.plan(UID, epoch, std::slice::from_ref(&write)).await.unwrap();
    ledger.publish(UID, epoch, &policy(UID), &[]).await.unwrap();
    let report = report(MemberState::Enforcing);
    let books = [amounts(0, 100, 0, 0)];
    for (seq, leave) in [(1, false), (2, true)] {
        let call = Call { member: "a", seq, leave, report: Some(&report), books: &books, ..Call::default() };
        ledger.call(UID, &call).await.unwrap();
    }
    assert_eq!(ledger.observe(UID, &[book()]).await.unwrap().books.len(), 1);
    let counters = ["global_router:id:m:tpm:14-13", "global_router:id:m:rpm:14-13"].map(str::to_owned);
    assert_eq!(ledger.texts(&counters).await.unwrap(), [Some("500".to_owned()), None]);
    // After a restart the scripts have to be loaded again.
    let () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut admin).await.unwrap();
    ledger.plan(UID, epoch, std::slice::from_ref(&write)).await.unwrap();
    ledger.close(UID, epoch, &[book()]).await.unwrap();
}

#[tokio::test]
async fn it_is_no_more() {
    let (server, url, mut admin) = server().await;
    let () = admin.set("cache:answer", "private").await.unwrap();
    let ledger = RedisLedger::connect(&url, Timeouts::default()).unwrap();
    let refused = ledger.texts(&["cache:answer".to_owned()]).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Script { .. }), "{refused:?}");
    let client = redis::Client::open(url).unwrap();
    let mut user = client.get_multiplexed_async_connection().await.unwrap();
    for command in ["KEYS *", "FLUSHALL", "CONFIG GET *", "ACL LIST", "SET global_router:x 1", "SHUTDOWN"] {
        let words: Vec<&str> = command.split(' ').collect();
        let answer: redis::RedisResult<redis::Value> =
            redis::cmd(words[0]).arg(&words[1..]).query_async(&mut user).await;
        let error = answer.expect_err(command);
        assert_eq!(error.code(), Some("NOPERM"), "{command}: {error}");
    }
    drop(server);
}
