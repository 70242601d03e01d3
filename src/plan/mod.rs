//! Who may spend how much: a pure function of what was observed. No clock, no IO.
//!
//! For each book (one limit in one unit) it answers with the members' shares, the safe share and what is set aside. The
//! ledger's scripts decide what is *lent*; a share only says what a member is entitled to (design section 7). [`Outside`]
//! finds out what others spend of the same quota.

mod booted;
mod departed;
mod fair;
mod fleet;
mod outside;
mod slack;
mod stay;
#[cfg(test)]
mod tests;
mod worst;

pub use booted::Booted;
pub use departed::{Departed, HOLD_MS};
use fair::Level;
pub use fair::max_min;
pub use fleet::{FleetSize, Target};
pub use outside::{Amounts, Compared, Outside};
pub use slack::{FULL, pressure_percent, slack};
use stay::Move;
pub use worst::Worst;

/// A part of the budget that stays in the pool while demand is below the budget, so that a draw finds something: one
/// tenth (checked by simulation, `ledger_sim.py`: reserve 0.1).
const POOL_PART: u64 = 10;

/// A part of the budget that is shared evenly whatever is demanded, so that a newcomer to a saturated fleet has a share
/// at once: 2 % (checked by simulation, `ledger_sim.py`: fl 0.02).
const FLOOR_PART: u64 = 50;

/// Half a second of a member's rate, as a part of what it spent in 60 s.
const HALF_SECOND: u64 = 120;

/// What is known of one member in one book. Amounts in tokens or requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDemand<'a> {
    /// The member's id.
    pub member: &'a str,
    /// Charged in the last 60 s.
    pub spent: u64,
    /// Refused in the last 60 s. A request that still waits comes to be in here or in `spent` within `maxWait`.
    pub denied: u64,
    /// Its grant as the ledger has it.
    pub record: u64,
    /// Its share as the ledger has it: what the last plan said, or the safe share if no plan has seen the member.
    pub share: u64,
    /// It ended, or its lease is over: it holds its record, and takes no part in the sharing.
    pub lost: bool,
    /// What it may come to without the ledger, when it is lost and has not ended.
    pub offline: u64,
}

/// What is known of one book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookDemand<'a> {
    /// Tokens or requests that the fleet may spend in any 60 s.
    pub budget: u64,
    /// The most processes that may run at once.
    pub most_processes: u32,
    /// Live processes that have no record and may spend a safe share nevertheless.
    pub unrecorded: u32,
    /// What those may come to together, by the safe shares that they booted with.
    pub owed: u64,
    /// Every member that has a record, in any order; by id it is quickest.
    pub members: Vec<MemberDemand<'a>>,
}

/// What the book should say. Amounts in tokens or requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BookPlan {
    /// The most that a process may spend when it has lost the ledger.
    pub safe: u64,
    /// Lent to nobody.
    pub aside: u64,
    /// Nobody who demands no more than this is cut short: the max-min level. The whole room while demand is below it.
    pub level: u64,
    /// Each member's share, in the order of `BookDemand::members`; 0 for one that takes no part.
    pub shares: Vec<u64>,
}

/// Plans one book. `sum(shares) <= budget - aside - held by the lost`, always. The shares are
/// 1. exact max-min of demand and floor, of what is neither set aside nor held by lost members;
/// 2. an even part of what is left over, but for what stays in the pool;
/// 3. those that the members have already, if none would move by a dead band (`stay.rs`).
///
/// By the first two alone, a larger budget takes nothing from anybody (but for 1 unit of rounding while something is set aside
/// for unrecorded processes). With the third it takes less than one band from anybody.
#[must_use]
pub fn plan_book(book: &BookDemand<'_>) -> BookPlan {
    let budget = book.budget;
    let most = u64::from(book.most_processes.max(1));
    let lost = || book.members.iter().filter(|m| m.lost);
    // A process that the ledger has heard but that never heard the ledger will come to more than its record.
    let beyond = lost().map(|m| m.offline.saturating_sub(m.record)).fold(0, u64::saturating_add);
    let aside = part(budget, book.unrecorded, most).max(book.owed).saturating_add(beyond).min(budget);
    let held = lost().map(|m| m.record).fold(0, u64::saturating_add);
    let room = (budget - aside).saturating_sub(held);

    let mut present: Vec<usize> = (0..book.members.len()).filter(|&i| !book.members[i].lost).collect();
    // The odd units go by this order. The ledger's members come in it: then this is one look at each.
    present.sort_by_cached_key(|&i| book.members[i].member);
    let mut shares = vec![0; book.members.len()];
    let (level, given) = share_out(book, room, &present);
    for (&i, share) in present.iter().zip(given) {
        shares[i] = share;
    }
    BookPlan { safe: safe_share(budget, book.most_processes), aside, level, shares }
}

/// The level, and the shares of those that are present, in their order.
fn share_out(book: &BookDemand<'_>, room: u64, present: &[usize]) -> (u64, Vec<u64>) {
    let budget = book.budget;
    let n = present.len() as u64;
    let members = || present.iter().map(|&i| &book.members[i]);
    // At least a unit for each. In total it grows by no more than the budget, unit by unit: an even floor in whole
    // numbers would jump by n units at once and take them from those that are above it.
    let floor = budget.div_ceil(FLOOR_PART).max(n).min(room);

    let demands: Vec<u64> =
        members().zip(fair::even(floor, n)).map(|(m, floor)| demand(m, budget).max(floor)).collect();
    let level = Level::of(room, &demands);
    let mut shares = level.shares(&demands);
    let rest = room - shares.iter().sum::<u64>();
    let each = rest.saturating_sub(budget / POOL_PART).checked_div(n).unwrap_or(0);
    shares.iter_mut().for_each(|share| *share += each);

    // A plan takes the share of a member that is lost: one that has a share was present in the plan before this one.
    let same_members = !book.members.iter().any(|m| m.lost && m.share > 0);
    let moves = members().zip(&shares).zip(fair::even(floor, n));
    let moves = moves.map(|((m, &new), floor)| Move { old: m.share, new, floor });
    if same_members && stay::may_stay(room, stay::band(budget, n), moves) {
        shares = members().map(|m| m.share).collect();
    }
    (level.full.min(room), shares)
}

/// What each of so many processes may spend without the ledger, in tokens or requests.
#[must_use]
pub fn safe_share(budget: u64, most_processes: u32) -> u64 {
    budget / u64::from(most_processes.max(1))
}

/// So many parts of `most` of the budget, rounded down once and not for each: then it takes no more of a larger budget
/// than was added, and is never less than so many safe shares.
fn part(budget: u64, parts: u32, most: u64) -> u64 {
    u64::try_from(u128::from(budget) * u128::from(parts) / u128::from(most)).unwrap_or(u64::MAX)
}

/// What a member would spend if it could: what it spent and what it refused in the last minute, and half a second more.
fn demand(member: &MemberDemand<'_>, budget: u64) -> u64 {
    let wanted = member.spent.saturating_add(member.denied.min(budget));
    wanted.saturating_add(wanted / HALF_SECOND)
}
