//! Watches the promise at the provider: in any 60 s no more than the budget. What is allowed follows the budget, and what
//! is declared that no rule can absorb: what processes that have lost the ledger may still spend after a cut.

use std::collections::VecDeque;

/// The provider's minute, in seconds.
const WINDOW: f64 = 60.0;

/// A cut is in force after this, in seconds.
const SETTLES: f64 = 66.0;

#[derive(Clone, Debug, Default)]
struct Book {
    inside: VecDeque<(f64, f64)>,
    sum: f64,
    /// What is allowed from each moment on.
    allowed: VecDeque<(f64, u64)>,
}

/// Every book at the provider.
#[derive(Clone, Debug)]
pub struct Watch {
    books: Vec<Book>,
    excess: f64,
    /// The fullest 60 s, as a part of what was allowed then.
    pub worst: f64,
    /// The first time that the promise was broken.
    pub breach: Option<String>,
}

impl Watch {
    /// Books with these budgets, and what is allowed beyond them as a part of them.
    #[must_use]
    pub fn new(budgets: &[u64], excess: f64) -> Self {
        let book = |budget: &u64| Book { allowed: [(0.0, *budget)].into(), ..Book::default() };
        Self { books: budgets.iter().map(book).collect(), excess, worst: 0.0, breach: None }
    }

    /// What is allowed from now on: the budgets in force, and what processes may spend that have not heard of a cut.
    pub fn allow(&mut self, now: f64, budgets: &[u64], exposed: &[u64]) {
        for ((book, budget), exposed) in self.books.iter_mut().zip(budgets).zip(exposed) {
            let allowed = budget + exposed;
            if book.allowed.back().is_none_or(|(_, last)| *last != allowed) {
                book.allowed.push_back((now, allowed));
            }
        }
    }

    /// A request arrived.
    pub fn arrived(&mut self, place: usize, now: f64, amount: f64) {
        let book = &mut self.books[place];
        while let Some(&(at, old)) = book.inside.front() {
            if at + WINDOW > now {
                break;
            }
            book.sum -= old;
            book.inside.pop_front();
        }
        book.inside.push_back((now, amount));
        book.sum += amount;
        // The newest entry older than this holds, too.
        while book.allowed.len() > 1 && book.allowed[1].0 <= now - SETTLES {
            book.allowed.pop_front();
        }
        let allowed = book.allowed.iter().map(|(_, allowed)| *allowed).max().unwrap_or(0);
        let allowed = (allowed as f64 * (1.0 + self.excess)).floor() as u64;
        self.worst = self.worst.max(book.sum / allowed.max(1) as f64);
        if book.sum > allowed as f64 + 0.5 && self.breach.is_none() {
            self.breach =
                Some(format!("at {now:.1} s: {} in 60 s of book {place}, {allowed} are allowed", book.sum.round()));
        }
    }
}
