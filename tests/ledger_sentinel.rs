//! The ledger behind real Sentinels: found by their name for it, and found again after every fail-over.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::figures::{amounts, plan};
use common::{RedisServer, Sentinel, signal, until};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{
    BookAnswer, BookId, BookStanding, Call, Keys, Ledger, LedgerError, RedisLedger, Timeouts, Unit,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const UID: &str = "0b5b7a3e";
/// No call takes longer: the deadline of one, and some for a busy machine.
const CALL: Duration = Duration::from_millis(3_000);
/// A Sentinel takes half a second to see a loss, and up to two to promote.
const FOUND: Duration = Duration::from_secs(8);

fn book() -> BookId {
    BookId::new("gpt-4o", Unit::Tokens)
}

/// A primary with one replica, and a Sentinel.
struct Three {
    servers: [RedisServer; 2],
    login: String,
    sentinel: Sentinel,
}

impl Three {
    async fn start() -> Self {
        Self::start_with(&[], "", "", "").await
    }

    async fn start_with(options: &[&str], login: &str, lines: &str, sentinel_login: &str) -> Self {
        let primary = RedisServer::start_with(options).await;
        let port = primary.port().to_string();
        let replica = RedisServer::start_with(&[options, &["--replicaof", "127.0.0.1", &port]].concat()).await;
        let sentinel = Sentinel::watch_with(&primary, lines, sentinel_login).await;
        until("the Sentinel knows the replica", async || sentinel.replicas().await == 1).await;
        let three = Self { servers: [primary, replica], login: login.to_owned(), sentinel };
        let mut copy = three.connection(1).await;
        until("the replica follows", async || {
            let info: String = redis::cmd("INFO").arg("replication").query_async(&mut copy).await.unwrap();
            info.contains("master_link_status:up")
        })
        .await;
        three
    }

    async fn connection(&self, place: usize) -> MultiplexedConnection {
        let url = format!("redis://{}127.0.0.1:{}", self.login, self.servers[place].port());
        redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
    }

    /// The first Sentinel of the URL is not there.
    fn ledger(&self, options: &str) -> RedisLedger {
        let (login, port) = (&self.login, self.sentinel.port());
        let url = format!("redis+sentinel://{login}127.0.0.1:1,127.0.0.1:{port}/ledger{options}");
        RedisLedger::connect(&url, Timeouts::default()).unwrap()
    }

    /// A first plan, and 300 for the member a, which the replica has, too.
    async fn lends(&self, ledger: &RedisLedger) {
        let epoch = ledger.claim(UID).await.unwrap();
        ledger.plan(UID, epoch, &[plan(book())]).await.unwrap();
        assert_eq!(beat(ledger, 1, 0, 300).await.unwrap().grant, 300);
        let (key, mut copy) = (Keys::new(UID).book(&book()), self.connection(1).await);
        until("the replica has followed", async || copy.hget(&key, "lent").await == Ok(300_u64)).await;
    }
}

async fn beat(ledger: &RedisLedger, seq: u64, keep: u64, want: u64) -> Result<BookAnswer, LedgerError> {
    let books = [amounts(book(), keep, want, 0, 0)];
    let started = Instant::now();
    let answer = ledger.call(UID, &Call { member: "a", seq, books: &books, ..Call::default() }).await;
    assert!(started.elapsed() < CALL, "{:?}: {answer:?}", started.elapsed());
    answer.map(|answer| answer.books[0])
}

/// Calls until the ledger answers. It is another server then: nothing is lent but what comes back.
async fn finds_again(ledger: &RedisLedger) -> Duration {
    let started = Instant::now();
    for seq in 10.. {
        match beat(ledger, seq, 300, 900).await {
            Ok(answer) => {
                assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 300));
                break;
            }
            Err(LedgerError::Unreachable { .. } | LedgerError::Timeout { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(started.elapsed() < FOUND, "it was not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn the_new_primary_is_found_when_the_old_one_dies() {
    let mut three = Three::start().await;
    let ledger = three.ledger("");
    three.lends(&ledger).await;
    three.servers[0].stop();
    let error = beat(&ledger, 2, 300, 900).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable { .. }), "{error:?}");
    println!("found after {:?}", finds_again(&ledger).await);
}

#[tokio::test]
async fn the_new_primary_is_found_when_the_old_one_hangs() {
    let three = Three::start().await;
    let ledger = three.ledger("");
    three.lends(&ledger).await;
    let process = three.servers[0].process().await;
    signal(process, "STOP");
    let error = beat(&ledger, 2, 300, 900).await.unwrap_err();
    assert!(matches!(error, LedgerError::Timeout { .. }), "{error:?}");
    println!("found after {:?}", finds_again(&ledger).await);
    // What it finds in its socket when it goes on, it answers to nobody; and nobody goes back to it.
    signal(process, "CONT");
    until("it answers again", async || beat(&ledger, 1_000, 300, 300).await.is_ok()).await;
    assert_eq!(three.sentinel.primary().await, three.servers[1].port());
}

#[tokio::test]
async fn a_primary_that_became_a_replica_is_left() {
    let three = Three::start().await;
    let ledger = three.ledger("");
    three.lends(&ledger).await;
    let mut sentinel = three.sentinel.connection().await;
    until("it begins", async || {
        let begun: Result<(), _> =
            redis::cmd("SENTINEL").arg("FAILOVER").arg("ledger").query_async(&mut sentinel).await;
        begun.is_ok()
    })
    .await;
    until("another is promoted", async || three.sentinel.primary().await == three.servers[1].port()).await;
    // The Sentinel does this in some seconds, and cuts its connections. Here they stay open: what it answers says it.
    let mut old = three.connection(0).await;
    let new = ["127.0.0.1".to_owned(), three.servers[1].port().to_string()];
    let () = redis::cmd("REPLICAOF").arg(&new).query_async(&mut old).await.unwrap();
    let error = beat(&ledger, 2, 300, 300).await.unwrap_err();
    assert!(
        matches!(&error, LedgerError::Unreachable { source } if source.to_string().contains("READONLY")),
        "{error:?}"
    );
    println!("found after {:?}", finds_again(&ledger).await);
}

#[tokio::test]
async fn a_primary_that_is_cut_off_from_its_replicas_is_asked_for_again() {
    let server = RedisServer::start_with(&["--min-replicas-to-write", "1"]).await;
    let ledger = RedisLedger::connect(&server.url(), Timeouts::default()).unwrap();
    let error = ledger.claim(UID).await.unwrap_err();
    assert!(
        matches!(&error, LedgerError::Unreachable { source } if source.to_string().contains("NOREPLICAS")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_sentinel_that_comes_later_and_a_service_that_it_does_not_know() {
    let primary = RedisServer::start().await;
    let ledger = RedisLedger::connect("redis+sentinel://127.0.0.1:1/ledger", Timeouts::default()).unwrap();
    let error = ledger.claim(UID).await.unwrap_err();
    assert!(
        matches!(&error, LedgerError::Unreachable { source } if source.to_string().contains("127.0.0.1:1")),
        "{error:?}"
    );
    let sentinel = Sentinel::watch(&primary).await;
    let at = |service: &str| {
        let url = format!("redis+sentinel://127.0.0.1:{}/{service}", sentinel.port());
        RedisLedger::connect(&url, Timeouts::default()).unwrap()
    };
    let error = at("other").claim(UID).await.unwrap_err();
    assert!(matches!(&error, LedgerError::Unreachable { source } if source.to_string().contains("other")), "{error:?}");
    assert!(at("ledger").claim(UID).await.is_ok());
}

#[tokio::test]
async fn both_log_in_and_no_password_is_shown() {
    // All that a user of docs/operations.md may do at the Sentinels.
    let lines = "requirepass watchword\nsentinel auth-pass ledger hunter2\n\
                 user asker on >question -@all +sentinel|get-master-addr-by-name";
    let options = ["--requirepass", "hunter2", "--masterauth", "hunter2"];
    let three = Three::start_with(&options, ":hunter2@", lines, ":watchword@").await;
    three.lends(&three.ledger("?sentinel_username=asker&sentinel_password=question")).await;
    assert!(three.ledger("?sentinel_password=watchword").claim(UID).await.is_ok());
    let mut wrong = three.ledger("?sentinel_password=swordfish");
    let error = wrong.claim(UID).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable { .. }), "{error:?}");
    for secret in ["swordfish", "hunter2"] {
        assert!(!format!("{error:?} {error} {wrong:?}").contains(secret), "{error:?} {wrong:?}");
    }
    let url =
        format!("redis+sentinel://:swordfish@127.0.0.1:{}/ledger?sentinel_password=watchword", three.sentinel.port());
    wrong = RedisLedger::connect(&url, Timeouts::default()).unwrap();
    let error = wrong.claim(UID).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable { .. }), "{error:?}");
    for secret in ["swordfish", "watchword"] {
        assert!(!format!("{error:?} {error} {wrong:?}").contains(secret), "{error:?} {wrong:?}");
    }
}

/// A server that lets everybody in, and says back all that it was ever sent.
async fn parrot() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut all, mut heard) = (String::new(), [0; 4096]);
                while let Ok(read @ 1..) = caller.read(&mut heard).await {
                    let words = String::from_utf8_lossy(&heard[..read]).replace("\r\n", " ");
                    all += &words;
                    let answer = if words.contains("AUTH") { "+OK".to_owned() } else { format!("-ERR {all}") };
                    for _ in words.matches('*') {
                        let _ = caller.write_all(format!("{answer}\r\n").as_bytes()).await;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn what_a_server_says_back_is_shown_without_passwords() {
    let port = parrot().await;
    for url in [
        format!("redis+sentinel://:hunter2@127.0.0.1:{port}/ledger?sentinel_password=swordfish"),
        format!("redis://:hunter2@127.0.0.1:{port}"),
    ] {
        let ledger = RedisLedger::connect(&url, Timeouts::default()).unwrap();
        let text = format!("{:?} {ledger:?}", ledger.claim(UID).await.unwrap_err());
        assert!(text.contains("AUTH") && text.contains("***"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("swordfish"), "{text}");
    }
}
