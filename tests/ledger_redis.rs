//! What the call script lends, on a real Redis server, rule by rule. Random sequences are in `ledger_differential.rs`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::figures::report;
use common::fleet::{Fleet, UID, amounts, book};
use redis::AsyncCommands;
use tokenbudget::ledger::{BookCall, BookId, BookStanding, Call, Keys, Ledger, MemberState, Unit};

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
async fn up_to_the_level_nobody_comes_before_another() {
    let mut fleet = Fleet::start().await;
    fleet.write.level = 400;
    fleet.shares(&[("low", 100), ("high", 500)]).await;
    fleet.beat("high", 0, 1_000, 0, 0).await;
    // Its share is 100 and it was refused 300 above that: up to the level it is entitled to them.
    fleet.beat("low", 0, 400, 0, 0).await;
    assert_eq!(fleet.book().await.claimed(), 400);
    assert_eq!(fleet.beat("high", 700, 1_000, 700, 0).await.grant, 700, "what is claimed is not lent above the level");
    assert_eq!(fleet.beat("low", 0, 400, 0, 0).await.grant, 300);
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
