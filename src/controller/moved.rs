//! The ledger that a TokenBudget had before its Redis became another one. Pods that run keep the former URL until they are replaced, and
//! go on by the former ledger: nothing more is lent there, so that within a window each process comes down to its safe share, which the
//! new ledger sets aside for it.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use tracing::{info, warn};

use super::memory::Memory;
use crate::api::TokenBudget;
use crate::causes::Causes;
use crate::ledger::{BookId, Ledger, LedgerError, MemberPlan, Observation, PlanWrite, RedisLedger};

/// For so long a former ledger that does not answer is asked again: as long as the new one learns, and lends nothing new.
const TRIED: Duration = Duration::from_secs(95);

/// A former ledger that is still to be told.
pub struct Former {
    /// The connection.
    ledger: RedisLedger,
    /// When it became the former one.
    at: Instant,
}

impl Former {
    /// As of now.
    #[must_use]
    pub fn new(ledger: RedisLedger) -> Self {
        Self { ledger, at: Instant::now() }
    }
}

/// Tells the former ledger, if there is one, to lend nothing more, by what was planned for the new one. It stands in nothing's way.
pub async fn withdraw(tb: &TokenBudget, memory: &mut Memory, writes: &[PlanWrite]) {
    let Some(Former { ledger, at }) = memory.ledger.former.take() else { return };
    let told = tell(&tb.uid().unwrap_or_default(), &ledger, writes).await;
    match told {
        Ok(books) => info!(books, "the Redis is another one: the former ledger lends nothing more"),
        Err(error) if at.elapsed() < TRIED => {
            warn!(error = %Causes(&error), "the former ledger could not be told yet to lend nothing more");
            memory.ledger.former = Some(Former { ledger, at });
        }
        Err(error) => {
            warn!(error = %Causes(&error), "given up: processes that reach the former ledger may go on by it")
        }
    }
}

async fn tell(uid: &str, ledger: &impl Ledger, writes: &[PlanWrite]) -> Result<usize, LedgerError> {
    let books: Vec<BookId> = writes.iter().map(|write| write.book.clone()).collect();
    let last = nothing_more(&ledger.observe(uid, &books).await?, writes);
    if !last.is_empty() {
        let epoch = ledger.claim(uid).await?;
        ledger.plan(uid, epoch, &last).await?;
    }
    Ok(last.len())
}

/// The last plan of the books that are there: all is set aside, and nobody is entitled to more than the safe share.
fn nothing_more(seen: &Observation, writes: &[PlanWrite]) -> Vec<PlanWrite> {
    let last = |write: &PlanWrite| {
        let safe = MemberPlan { share: write.safe, finished_ms: None };
        let members = seen.books.get(&write.book)?.members.keys().map(|id| (id.clone(), safe)).collect();
        Some(PlanWrite { first: false, aside: write.budget, level: 0, members, ..write.clone() })
    };
    writes.iter().filter_map(last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(tell(UID, &ledger, &[write()]).await.unwrap(), 1);
        let full = call(2, 50_000, 60_000, 50_000).await;
        assert_eq!(full, (BookStanding::Contended, 50_000, 15_000), "and by that it admits up to its share only");
        assert_eq!(call(3, 20_000, 60_000, 20_000).await.1, 20_000, "what came back stays");
        assert!(ledger.plan(UID, epoch, &[write()]).await.is_err(), "an operator before this one changes nothing more");
    }

    #[tokio::test]
    async fn a_ledger_that_has_no_book_is_left_alone() {
        let ledger = MemoryLedger::default();
        assert_eq!(tell(UID, &ledger, &[write()]).await.unwrap(), 0);
        assert!(ledger.observe(UID, &[write().book]).await.unwrap().books.is_empty());
    }
}
