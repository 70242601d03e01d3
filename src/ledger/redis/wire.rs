//! What goes over the wire: the arguments of the plan script, and what the scripts answer.

use redis::{FromRedisValue, Value};

use crate::ledger::error::LedgerError;
use crate::ledger::{Ask, BookAnswer, BookStanding, MemberPlan, PlanWrite, PlannedBook};

/// Members that one run of the plan script handles, so that it never holds the server up for long.
const ROWS_PER_RUN: usize = 500;

pub(super) fn read<T: FromRedisValue>(answers: &mut impl Iterator<Item = Value>, key: &str) -> Result<T, LedgerError> {
    let value = answers.next().ok_or_else(|| LedgerError::malformed(key))?;
    T::from_redis_value(value).map_err(|_| LedgerError::malformed(key))
}

/// One book's part of a run: its place among all books, and some of its members.
pub(super) type Part<'a> = (usize, &'a PlanWrite, Vec<(&'a String, &'a MemberPlan)>);

/// Packs the plan into runs of the script. A book with many members takes several.
pub(super) fn runs(writes: &[PlanWrite]) -> Vec<Vec<Part<'_>>> {
    let (mut runs, mut run, mut room) = (Vec::new(), Vec::new(), ROWS_PER_RUN);
    for (place, write) in writes.iter().enumerate() {
        let mut members = write.members.iter();
        let mut left = members.len();
        loop {
            let part: Vec<_> = members.by_ref().take(room).collect();
            left -= part.len();
            room -= part.len();
            run.push((place, write, part));
            if room == 0 {
                runs.push(std::mem::take(&mut run));
                room = ROWS_PER_RUN;
            }
            if left == 0 {
                break;
            }
        }
    }
    // Also without a book: the keys live on, and the epoch is checked.
    if !run.is_empty() || runs.is_empty() {
        runs.push(run);
    }
    runs
}

pub(super) fn plan_args((place, write, members): &Part<'_>, args: &mut Vec<String>) {
    let PlanWrite { book: _, budget, aside, level, safe, lease_ms, first, members: _ } = write;
    // The keys of the books follow meta and members, and Lua counts from 1.
    args.push((place + 3).to_string());
    args.extend([*budget, *aside, *level, *safe, *lease_ms, u64::from(*first)].map(|number| number.to_string()));
    args.push(members.len().to_string());
    for (id, member) in members {
        args.extend([(*id).clone(), member.share.to_string(), member.finished_ms.unwrap_or(0).to_string()]);
    }
}

pub(super) fn call_args(ask: &Ask, args: &mut Vec<String>) {
    let Ask { keep, want, least, spent, denied, off, as_of_ms: _, leaves: _ } = ask;
    args.extend([keep, want, least, spent, denied, off].map(ToString::to_string));
}

/// The time, and the amounts but for zeros at the end.
pub(super) fn leaves_arg(ask: &Ask) -> String {
    let steps = ask.leaves.0.iter().rposition(|amount| *amount > 0).map_or(0, |last| last + 1);
    [ask.as_of_ms].iter().chain(&ask.leaves.0[..steps]).map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

pub(super) fn planned_book(answer: &[i64]) -> Option<PlannedBook> {
    let [clock, budget, lent, aside, pool, learning, created] = *answer else {
        return None;
    };
    Some(PlannedBook {
        clock_ms: clock.try_into().ok()?,
        budget: budget.try_into().ok()?,
        lent: lent.try_into().ok()?,
        aside: aside.try_into().ok()?,
        pool,
        learning: learning == 1,
        created: created == 1,
    })
}

pub(super) fn book_answer(answer: &[String]) -> Option<BookAnswer> {
    let [state, grant, share, pool, budget, safe] = answer else {
        return None;
    };
    Some(BookAnswer {
        state: match state.as_str() {
            "ok" => BookStanding::Ok,
            "contended" => BookStanding::Contended,
            "learning" => BookStanding::Learning,
            "stale" => BookStanding::Stale,
            "none" => BookStanding::None,
            _ => return None,
        },
        grant: grant.parse().ok()?,
        share: share.parse().ok()?,
        pool: pool.parse().ok()?,
        budget: budget.parse().ok()?,
        safe: safe.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{BookId, Unit};

    #[test]
    fn large_plans_are_run_in_parts() {
        let write = |limit: usize, members: usize| PlanWrite {
            book: BookId::new(limit.to_string(), Unit::Tokens),
            budget: 0,
            aside: 0,
            level: 0,
            safe: 0,
            lease_ms: 0,
            first: false,
            members: (0..members).map(|i| (i.to_string(), MemberPlan::default())).collect(),
        };
        let writes = [write(0, 300), write(1, 900), write(2, 0), write(3, 300), write(4, 1)];
        let parts: Vec<Vec<(usize, usize)>> = runs(&writes)
            .iter()
            .map(|run| run.iter().map(|(place, _, members)| (*place, members.len())).collect())
            .collect();
        assert_eq!(parts, [vec![(0, 300), (1, 200)], vec![(1, 500)], vec![(1, 200), (2, 0), (3, 300)], vec![(4, 1)]]);
        assert_eq!(runs(&[]).len(), 1);
    }
}
