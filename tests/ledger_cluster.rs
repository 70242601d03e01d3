//! The ledger in a real Redis Cluster of three nodes: one slot for each TokenBudget, reached by the URL of any node.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::cluster::{Cluster, PASSWORD};
use common::figures::{amounts, plan, policy, report};
use common::until;
use redis::AsyncCommands;
use tokenbudget::ledger::{
    BookAnswer, BookId, BookStanding, Call, Epoch, Keys, Ledger, LedgerError, MemberState, PlanWrite, RedisLedger,
    Timeouts, Unit,
};

fn books() -> [BookId; 2] {
    [Unit::Tokens, Unit::Requests].map(|unit| BookId::new("gpt-4o", unit))
}

fn writes(first: bool) -> Vec<PlanWrite> {
    books().map(|book| PlanWrite { first, ..plan(book) }).into()
}

async fn beat(ledger: &RedisLedger, uid: &str, seq: u64, keep: u64, want: u64) -> Result<Vec<BookAnswer>, LedgerError> {
    let books = books().map(|book| amounts(book, keep, want, 0, 0));
    let report = report(MemberState::Enforcing);
    let call = Call { member: "a", seq, report: Some(&report), books: &books, ..Call::default() };
    ledger.call(uid, &call).await.map(|answer| answer.books)
}

async fn first_plan(ledger: &RedisLedger, uid: &str) -> Epoch {
    let epoch = ledger.claim(uid).await.unwrap();
    ledger.plan(uid, epoch, &writes(true)).await.unwrap();
    epoch
}

#[tokio::test]
async fn each_token_budget_lives_in_one_slot_of_one_node() {
    let cluster = Cluster::start(0).await;
    let ledger = RedisLedger::connect(&cluster.url(0), Timeouts::default()).unwrap();
    let mut used = BTreeSet::new();
    let mut epochs = BTreeMap::new();
    for n in 0..12 {
        let uid = format!("0b5b7a3e-{n}");
        let epoch = first_plan(&ledger, &uid).await;
        ledger.publish(&uid, epoch, &policy(&uid), &[]).await.unwrap();
        for answer in beat(&ledger, &uid, 1, 0, 600).await.unwrap() {
            assert_eq!((answer.state, answer.grant, answer.pool), (BookStanding::Ok, 600, 400));
        }
        epochs.insert(uid, epoch);
    }
    for (uid, epoch) in &epochs {
        let observation = ledger.observe(uid, &books()).await.unwrap();
        assert_eq!(observation.policy_version, Some(policy(uid).version));
        assert_eq!(observation.reports["a"], report(MemberState::Enforcing));
        let keys = Keys::new(uid);
        let all = [keys.meta(), keys.members(), keys.book(&books()[0]), keys.book(&books()[1])];
        let slot = cluster.slot(uid).await;
        for key in &all {
            assert_eq!(cluster.slot(key).await, slot, "{key}");
        }
        used.insert(slot);
        for place in 0..3 {
            let mut redis = cluster.connection(place).await;
            let mut here: Vec<String> = redis.keys(format!("*{{{uid}}}*")).await.unwrap();
            here.sort();
            let mut expected = all.to_vec();
            expected.sort();
            assert_eq!(here, if place == Cluster::place(slot) { expected } else { vec![] });
            if place == Cluster::place(slot) {
                // The server's identity is found inside a script here, too.
                let info: String = redis::cmd("INFO").arg("replication").query_async(&mut redis).await.unwrap();
                for book in observation.books.values() {
                    assert_eq!((book.lent, book.replid.len()), (600, 40));
                    assert!(info.contains(&format!("master_replid:{}", book.replid)), "{info} {book:?}");
                }
            }
        }
        ledger.close(uid, *epoch, &books()).await.unwrap();
        let mut redis = cluster.connection(Cluster::place(slot)).await;
        let left: Vec<String> = redis.keys(format!("*{{{uid}}}*")).await.unwrap();
        assert_eq!(left, [keys.meta()]);
    }
    let places: BTreeSet<usize> = used.iter().map(|slot| Cluster::place(*slot)).collect();
    assert_eq!((used.len(), places.len()), (12, 3), "several TokenBudgets spread");
}

#[tokio::test]
async fn a_slot_that_moves_takes_its_ledger_along_which_learns() {
    let cluster = Cluster::start(0).await;
    let ledger = RedisLedger::connect(&cluster.url(0), Timeouts::default()).unwrap();
    let uid = cluster.uid(1).await;
    let slot = cluster.slot(&uid).await;
    let epoch = first_plan(&ledger, &uid).await;
    beat(&ledger, &uid, 1, 0, 600).await.unwrap();

    cluster.set_slot(2, slot, "IMPORTING", 1).await;
    cluster.set_slot(1, slot, "MIGRATING", 2).await;
    let keys = Keys::new(&uid);
    let parts = [vec![keys.book(&books()[0])], vec![keys.meta(), keys.members(), keys.book(&books()[1])]];
    for (part, seq) in parts.iter().zip(2..) {
        cluster.migrate(1, 2, part).await;
        // In between (TRYAGAIN, then ASK) nothing is done, and nothing is lent.
        let error = beat(&ledger, &uid, seq, 600, 900).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unreachable { .. }), "{error:?}");
        assert!(!format!("{error:?} {ledger:?}").contains(PASSWORD));
        assert!(ledger.plan(&uid, epoch, &writes(false)).await.is_err());
    }
    for place in [2, 1, 0] {
        cluster.set_slot(place, slot, "NODE", 2).await;
    }
    for answer in beat(&ledger, &uid, 4, 600, 900).await.unwrap() {
        assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 600), "another server wrote last");
    }
    ledger.plan(&uid, epoch, &writes(false)).await.unwrap();
}

#[tokio::test]
async fn the_ledger_is_found_again_when_nodes_end() {
    let mut cluster = Cluster::start(1).await;
    let ledger = RedisLedger::connect(&cluster.url(0), Timeouts::default()).unwrap();
    let (moved, other) = (cluster.uid(1).await, cluster.uid(2).await);
    first_plan(&ledger, &moved).await;
    beat(&ledger, &moved, 1, 0, 600).await.unwrap();
    let mut replica = cluster.connection(3).await;
    let _: () = redis::cmd("READONLY").query_async(&mut replica).await.unwrap();
    let key = Keys::new(&moved).book(&books()[1]);
    until("the replica has followed", async || replica.hget(&key, "lent").await == Ok(600_u64)).await;

    cluster.nodes[1].stop();
    let error = beat(&ledger, &moved, 2, 600, 900).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable { .. } | LedgerError::Timeout { .. }), "{error:?}");
    let mut seq = 2;
    until("the replica serves", async || {
        seq += 1;
        match beat(&ledger, &moved, seq, 600, 900).await {
            Ok(answers) => {
                for answer in answers {
                    assert_eq!((answer.state, answer.grant), (BookStanding::Learning, 600));
                }
                true
            }
            Err(LedgerError::Unreachable { .. } | LedgerError::Timeout { .. }) => false,
            Err(error) => panic!("{error:?}"),
        }
    })
    .await;

    // Without the node that the URL names, what was found goes on, and the rest is found through the others.
    cluster.nodes[0].stop();
    assert!(beat(&ledger, &moved, seq + 1, 600, 600).await.is_ok());
    until("another node tells", async || ledger.claim(&other).await.is_ok()).await;
}

#[tokio::test]
async fn a_wrong_password_is_not_quoted() {
    let cluster = Cluster::start(0).await;
    let url = cluster.url(0).replace(PASSWORD, "swordfish");
    let ledger = RedisLedger::connect(&url, Timeouts::default()).unwrap();
    let error = ledger.claim(&cluster.uid(1).await).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unreachable { .. }), "{error:?}");
    assert!(!format!("{error:?} {error} {ledger:?}").contains("swordfish"));
}

#[tokio::test]
async fn counters_of_litellm_are_found_all_over_the_cluster() {
    let cluster = Cluster::start(0).await;
    let ledger = RedisLedger::connect(&cluster.url(0), Timeouts::default()).unwrap();
    first_plan(&ledger, "0b5b7a3e").await;
    let keys: Vec<String> = (0..40).map(|i| format!("global_router:id-{i}:openai/gpt-4o:tpm:13-33")).collect();
    let mut places = BTreeSet::new();
    for (i, key) in keys.iter().enumerate().filter(|(i, _)| i % 2 == 0) {
        let place = Cluster::place(cluster.slot(key).await);
        let () = cluster.connection(place).await.set(key, i).await.unwrap();
        places.insert(place);
    }
    assert_eq!(places.len(), 3);
    let expected: Vec<_> = (0..40).map(|i| (i % 2 == 0).then(|| i.to_string())).collect();
    assert_eq!(ledger.texts(&keys).await.unwrap(), expected);
    // One key alone is in one slot: a server sends on to it, and not the TokenBudget with it.
    for (key, text) in keys.iter().zip(expected) {
        assert_eq!(ledger.texts(std::slice::from_ref(key)).await.unwrap(), [text]);
    }
    assert!(ledger.observe("0b5b7a3e", &books()).await.is_ok());
}
