//! A ledger that becomes another one. The fleet goes by the one that it has until the other has answered once: a Secret may hold a
//! password that Redis does not know yet. Then pods that run keep the former URL until they are replaced, and go on by the former
//! ledger: nothing more is lent there, so that within a window each process comes down to its safe share, which the new ledger
//! sets aside for it.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use tracing::{info, warn};

use super::context::Context;
use super::memory::LedgerMemory;
use super::redis_url::RedisLocation;
use crate::api::TokenBudget;
use crate::causes::Causes;
use crate::ledger::{BookId, Ledger, LedgerError, MemberPlan, Observation, PlanWrite, RedisLedger};

/// For so long a former ledger that does not answer is asked again: as long as the new one learns, and lends nothing new.
const TRIED: Duration = Duration::from_secs(95);

/// A former ledger that is still to be told.
pub struct Former {
    /// Where it is.
    url: String,
    /// The connection.
    ledger: RedisLedger,
    /// What it holds of the TokenBudget, whatever the spec says by now.
    books: Vec<BookId>,
    /// When it became the former one.
    at: Instant,
    /// Whether it was told, or given up.
    done: bool,
}

/// The ledger that a pass goes by.
pub struct Reached {
    /// What it says, or why it does not.
    pub seen: Result<Observation, LedgerError>,
    /// Where it is, and why not where it is said to be: that has not answered yet.
    pub instead: Option<(RedisLocation, LedgerError)>,
}

/// Reads the ledger at this location, or the one before it as long as that alone answers.
pub async fn read(uid: &str, location: &RedisLocation, ctx: &Context, memory: &mut LedgerMemory) -> Reached {
    let books: Vec<BookId> = memory.books.held.iter().cloned().collect();
    let (known, ledger) = match memory.connection.clone() {
        Some(connection) => connection,
        None => match ctx.connect(location) {
            Ok(ledger) => memory.connection.insert((location.clone(), ledger)).clone(),
            Err(error) => return Reached { seen: Err(error), instead: None },
        },
    };
    if known == *location {
        return Reached { seen: ledger.observe(uid, &books).await, instead: None };
    }
    let other = async {
        let other = ctx.connect(location)?;
        let seen = other.observe(uid, &books).await?;
        Ok((other, seen))
    };
    match other.await {
        Ok((other, seen)) => {
            memory.connection = Some((location.clone(), other));
            memory.epoch = None;
            memory.formers.retain(|former| former.url != location.url);
            // Another certificate is no other ledger.
            if known.url != location.url {
                memory.formers.push(Former { url: known.url, ledger, books, at: Instant::now(), done: false });
            }
            Reached { seen: Ok(seen), instead: None }
        }
        Err(error) => match ledger.observe(uid, &books).await {
            Ok(seen) => Reached { seen: Ok(seen), instead: Some((known, error)) },
            Err(_) => Reached { seen: Err(error), instead: None },
        },
    }
}

/// Tells the former ledgers, if there are any, to lend nothing more. They stand in nothing's way.
pub async fn withdraw(tb: &TokenBudget, memory: &mut LedgerMemory) {
    let uid = tb.uid().unwrap_or_default();
    // They go when all were told: a pass may be dropped at any wait.
    for former in memory.formers.iter_mut().filter(|former| !former.done) {
        match tell(&uid, &former.ledger, &former.books).await {
            Ok(books) => {
                info!(books, "the Redis is another one: the former ledger lends nothing more");
                former.done = true;
            }
            Err(error) if former.at.elapsed() < TRIED => {
                warn!(error = %Causes(&error), "the former ledger could not be told yet to lend nothing more");
            }
            Err(error) => {
                warn!(error = %Causes(&error), "given up: processes that reach the former ledger may go on by it");
                former.done = true;
            }
        }
    }
    memory.formers.retain(|former| !former.done);
}

async fn tell(uid: &str, ledger: &impl Ledger, books: &[BookId]) -> Result<usize, LedgerError> {
    let last = nothing_more(&ledger.observe(uid, books).await?);
    if !last.is_empty() {
        let epoch = ledger.claim(uid).await?;
        ledger.plan(uid, epoch, &last).await?;
    }
    Ok(last.len())
}

/// The last plan of these books: all is set aside, and nobody is entitled to more than the safe share.
fn nothing_more(seen: &Observation) -> Vec<PlanWrite> {
    let last = seen.books.iter().map(|(book, state)| {
        let safe = MemberPlan { share: state.safe, finished_ms: None };
        PlanWrite {
            book: book.clone(),
            budget: state.budget,
            aside: state.budget,
            level: 0,
            safe: state.safe,
            lease_ms: state.lease_ms,
            first: false,
            members: state.members.keys().map(|id| (id.clone(), safe)).collect(),
        }
    });
    last.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::test_support::{answering, context};
    use crate::ledger::memory::MemoryLedger;
    use crate::ledger::{Ask, BookCall, BookStanding, Call, Unit};

    const UID: &str = "u";

    fn write() -> PlanWrite {
        PlanWrite {
            book: BookId::new("gpt", Unit::Tokens),
            budget: 60_000,
            aside: 0,
            level: 30_000,
            safe: 15_000,
            lease_ms: 30_000,
            first: true,
            members: [].into(),
        }
    }

    #[tokio::test]
    async fn a_former_ledger_takes_back_and_lends_no_more() {
        let ledger = MemoryLedger::default();
        let epoch = ledger.claim(UID).await.unwrap();
        ledger.plan(UID, epoch, &[write()]).await.unwrap();
        let call = async |seq, keep, want, spent| {
            let ask = Ask { keep, want, spent, off: 15_000, ..Ask::default() };
            let books = [BookCall { book: write().book, ask }];
            let answer = ledger.call(UID, &Call { member: "m", seq, books: &books, ..Call::default() }).await.unwrap();
            (answer.books[0].state, answer.books[0].grant, answer.books[0].share)
        };
        assert_eq!(call(1, 0, 50_000, 0).await.1, 50_000);
        assert_eq!(tell(UID, &ledger, &[write().book]).await.unwrap(), 1);
        let full = call(2, 50_000, 60_000, 50_000).await;
        assert_eq!(full, (BookStanding::Contended, 50_000, 15_000), "and by that it admits up to its share only");
        assert_eq!(call(3, 20_000, 60_000, 20_000).await.1, 20_000, "what came back stays");
        assert!(ledger.plan(UID, epoch, &[write()]).await.is_err(), "an operator before this one changes nothing more");
    }

    #[tokio::test]
    async fn a_ledger_that_has_no_book_is_left_alone() {
        let ledger = MemoryLedger::default();
        assert_eq!(tell(UID, &ledger, &[write().book]).await.unwrap(), 0);
        assert!(ledger.observe(UID, &[write().book]).await.unwrap().books.is_empty());
    }

    #[tokio::test]
    async fn the_one_before_stays_until_another_has_answered() {
        let ctx = context(answering(&[]));
        // Nothing listens on either.
        let at = |port: u16| RedisLocation { url: format!("redis://127.0.0.1:{port}"), ca: None, secret: None };
        let mut memory = LedgerMemory::default();
        for location in [at(1), at(2)] {
            assert!(read(UID, &location, &ctx, &mut memory).await.seen.is_err());
            assert!(memory.connection.as_ref().is_some_and(|(known, _)| *known == at(1)));
        }
        assert!(memory.formers.is_empty());
    }
}
