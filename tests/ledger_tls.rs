//! The ledger on real servers that speak TLS, with certificates of a CA of one's own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::RedisServer;
use common::figures::{amounts, plan};
use common::tls::{self, Authority, TlsServer};
use tokenbudget::ledger::{BookId, Call, Ledger, LedgerError, RedisLedger, Timeouts, Unit};

const UID: &str = "0b5b7a3e";
const HERE: &str = "DNS:redis.example,IP:127.0.0.1";

fn ledger(url: &str, ca: Option<&Authority>) -> RedisLedger {
    RedisLedger::connect_trusting(url, ca.map(Authority::pem).as_deref(), Timeouts::default()).unwrap()
}

/// Everything that is done there.
async fn works(ledger: &RedisLedger) {
    let book = BookId::new("gpt-4o", Unit::Tokens);
    let epoch = ledger.claim(UID).await.unwrap();
    ledger.plan(UID, epoch, &[plan(book.clone())]).await.unwrap();
    let books = [amounts(book.clone(), 0, 300, 0, 0)];
    let call = Call { member: "a", seq: 1, books: &books, ..Call::default() };
    assert_eq!(ledger.call(UID, &call).await.unwrap().books[0].grant, 300);
    assert_eq!(ledger.observe(UID, &[book]).await.unwrap().books.len(), 1);
    assert_eq!(ledger.texts(&["global_router:x".to_owned()]).await.unwrap(), [None]);
}

/// What is said, in time.
async fn refused(ledger: &RedisLedger) -> String {
    let started = Instant::now();
    let error = ledger.claim(UID).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(3_000), "{:?}", started.elapsed());
    assert!(matches!(error, LedgerError::Unreachable { .. } | LedgerError::Timeout { .. }), "{error:?}");
    let text = format!("{error:?} {ledger:?}");
    assert!(!text.contains("hunter2"), "{text}");
    text
}

#[tokio::test]
async fn a_server_that_our_ca_has_signed_is_trusted_with_it_alone() {
    if !tls::there() {
        return;
    }
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = TlsServer::start(&ours, HERE, &["--requirepass", "hunter2"]);
    let url = format!("rediss://:hunter2@127.0.0.1:{}", server.port());
    works(&ledger(&url, Some(&ours))).await;
    for other in [None, Some(&theirs)] {
        let text = refused(&ledger(&url, other)).await;
        assert!(text.contains("ca.crt of the Secret that spec.redis.urlSecretRef names"), "{text}");
    }
    // A bundle, as when the CA is replaced.
    let both = theirs.pem() + &ours.pem();
    works(&RedisLedger::connect_trusting(&url, Some(&both), Timeouts::default()).unwrap()).await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_none() {
    if !tls::there() {
        return;
    }
    let ours = Authority::new();
    let server = TlsServer::start(&ours, "DNS:redis.example", &[]);
    let text = refused(&ledger(&format!("rediss://:hunter2@127.0.0.1:{}", server.port()), Some(&ours))).await;
    assert!(text.contains("not valid for name") && text.contains("redis.example"), "{text}");
}

#[tokio::test]
async fn a_certificate_of_a_ca_is_none_of_a_server() {
    if !tls::there() {
        return;
    }
    let ours = Authority::new();
    let server = TlsServer::start(&ours, "IP:127.0.0.1\nbasicConstraints=CA:TRUE", &[]);
    let text = refused(&ledger(&format!("rediss://127.0.0.1:{}", server.port()), Some(&ours))).await;
    assert!(text.contains("CaUsedAsEndEntity"), "{text}");
}

#[tokio::test]
async fn tls_on_one_side_alone_is_said_in_time() {
    if !tls::there() {
        return;
    }
    let (ours, plain) = (Authority::new(), RedisServer::start().await);
    let server = TlsServer::start(&ours, HERE, &[]);
    for url in
        [format!("redis://:hunter2@127.0.0.1:{}", server.port()), format!("rediss://:hunter2@{}", &plain.url()[8..])]
    {
        refused(&ledger(&url, Some(&ours))).await;
    }
}

#[tokio::test]
async fn sentinels_and_their_servers_speak_it_both() {
    if !tls::there() {
        return;
    }
    let ours = Authority::new();
    let server = TlsServer::start(&ours, HERE, &[]);
    let sentinel = TlsServer::watch(&ours, &server);
    let url = format!("rediss+sentinel://127.0.0.1:{}/ledger", sentinel.port());
    works(&ledger(&url, Some(&ours))).await;
    let text = refused(&ledger(&url, None)).await;
    assert!(text.contains("ca.crt"), "{text}");
}
