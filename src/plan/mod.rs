//! Who may spend how much: a pure function of what was observed. No clock, no IO.
//!
//! For each book (one limit in one unit) it answers with the members' shares, the safe share and what is set aside. The
//! ledger's scripts decide what is *lent*; a share only says what a member is entitled to (design section 7).

mod fair;
mod fleet;

pub use fair::max_min;
pub use fleet::{FleetSize, Target};

/// A part of the budget that stays in the pool while demand is below the budget, so that a draw finds something: one
/// tenth (checked by simulation, `ledger_sim.py`: reserve 0.1).
const POOL_PART: u64 = 10;

/// Half a second of a member's rate, as a part of what it spent in 60 s.
const HALF_SECOND: u64 = 120;

/// What is known of one member in one book. Amounts in tokens or requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDemand {
    /// The member's id.
    pub member: String,
    /// Charged in the last 60 s.
    pub spent: u64,
    /// Refused in the last 60 s.
    pub denied: u64,
    /// Its grant as the ledger has it.
    pub record: u64,
    /// It ended, or its lease is over: it holds its record, and takes no part in the sharing.
    pub lost: bool,
}

/// What is known of one book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookDemand {
    /// Tokens or requests that the fleet may spend in any 60 s.
    pub budget: u64,
    /// The most processes that may run at once.
    pub most_processes: u32,
    /// Live processes that have no record and may spend a safe share nevertheless.
    pub unrecorded: u32,
    /// Every member that has a record.
    pub members: Vec<MemberDemand>,
}

/// What the book should say. Amounts in tokens or requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BookPlan {
    /// The most that a process may spend when it has lost the ledger.
    pub safe: u64,
    /// Lent to nobody.
    pub aside: u64,
    /// Share of each member that takes part, by member id.
    pub shares: Vec<(String, u64)>,
}

/// Plans one book: exact max-min shares of demand, of what is neither set aside nor held by lost members; what is left
/// over is spread evenly, but for the part that stays in the pool. `sum(shares) <= budget - aside - held by the lost`.
#[must_use]
pub fn plan_book(book: &BookDemand) -> BookPlan {
    let budget = book.budget;
    let safe = budget / u64::from(book.most_processes.max(1));
    let aside = safe.saturating_mul(u64::from(book.unrecorded)).min(budget);

    let mut present: Vec<&MemberDemand> = book.members.iter().filter(|m| !m.lost).collect();
    present.sort_by(|a, b| a.member.cmp(&b.member));
    let held: u64 = book.members.iter().filter(|m| m.lost).map(|m| m.record).fold(0, u64::saturating_add);
    let room = (budget - aside).saturating_sub(held);

    let demands: Vec<u64> = present.iter().map(|m| demand(m, budget)).collect();
    let mut shares = max_min(room, &demands);
    let rest = room - shares.iter().sum::<u64>();
    let spread = rest.saturating_sub(budget / POOL_PART);
    let each = spread / u64::try_from(shares.len().max(1)).unwrap_or(u64::MAX);
    shares.iter_mut().for_each(|share| *share += each);
    let shares = present.into_iter().zip(shares).map(|(m, share)| (m.member.clone(), share)).collect();
    BookPlan { safe, aside, shares }
}

/// What a member would spend if it could: what it spent and what it refused in the last minute, and half a second more.
fn demand(member: &MemberDemand, budget: u64) -> u64 {
    let wanted = member.spent.saturating_add(member.denied.min(budget));
    wanted.saturating_add(wanted / HALF_SECOND)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(name: usize, spent: u64, denied: u64, record: u64, lost: bool) -> MemberDemand {
        MemberDemand { member: format!("m{name:04}"), spent, denied, record, lost }
    }

    fn books() -> impl Strategy<Value = BookDemand> {
        let members = prop::collection::vec(
            (0..2_000_000_u64, 0..2_000_000_u64, 0..500_000_u64, prop::bool::weighted(0.2)),
            0..40,
        );
        (0..1_000_000_u64, 0..50_u32, 0..6_u32, members).prop_map(|(budget, most_processes, unrecorded, members)| {
            BookDemand {
                budget,
                most_processes,
                unrecorded,
                members: members.into_iter().enumerate().map(|(i, (s, d, r, lost))| member(i, s, d, r, lost)).collect(),
            }
        })
    }

    proptest! {
        #[test]
        fn shares_fit_into_what_is_neither_aside_nor_held(book in books()) {
            let plan = plan_book(&book);
            let held: u64 = book.members.iter().filter(|m| m.lost).map(|m| m.record).sum();
            let sum: u64 = plan.shares.iter().map(|(_, share)| share).sum();
            prop_assert!(plan.aside <= book.budget);
            prop_assert!(sum <= (book.budget - plan.aside).saturating_sub(held), "sum {sum}, held {held}, plan {plan:?}");
        }

        #[test]
        fn the_order_of_the_members_does_not_matter(book in books(), seed in any::<u64>()) {
            let mut shuffled = book.clone();
            let n = shuffled.members.len();
            for i in 0..n {
                shuffled.members.swap(i, (seed as usize).wrapping_mul(31 + i) % n.max(1));
            }
            prop_assert_eq!(plan_book(&book), plan_book(&shuffled));
        }

        #[test]
        fn no_member_gets_more_than_it_demands_while_another_lacks(book in books()) {
            let plan = plan_book(&book);
            let present: Vec<_> = book.members.iter().filter(|m| !m.lost).collect();
            let got = |m: &MemberDemand| plan.shares.iter().find(|(id, _)| *id == m.member).map_or(0, |(_, s)| *s);
            for poor in present.iter().filter(|m| got(m) < demand(m, book.budget)) {
                for rich in &present {
                    prop_assert!(got(rich) <= got(poor) + 1, "{rich:?} has {}, {poor:?} has {}", got(rich), got(poor));
                }
            }
        }
    }

    #[test]
    fn idle_members_share_evenly_and_leave_a_tenth_in_the_pool() {
        let members = (0..3).map(|i| member(i, 0, 0, 0, false)).collect();
        let plan = plan_book(&BookDemand { budget: 60_000, most_processes: 4, unrecorded: 0, members });
        assert_eq!(plan.safe, 15_000);
        assert_eq!(plan.shares.iter().map(|(_, s)| *s).collect::<Vec<_>>(), [18_000, 18_000, 18_000]);
    }

    #[test]
    fn one_hot_member_may_have_nearly_everything() {
        let members = vec![member(0, 30_000, 300_000, 0, false), member(1, 0, 0, 0, false)];
        let plan = plan_book(&BookDemand { budget: 60_000, most_processes: 2, unrecorded: 0, members });
        assert_eq!(plan.shares, [("m0000".to_owned(), 60_000), ("m0001".to_owned(), 0)]);
    }

    #[test]
    fn what_lost_members_hold_is_not_shared() {
        let members = vec![member(0, 60_000, 60_000, 0, false), member(1, 0, 0, 15_000, true)];
        let plan = plan_book(&BookDemand { budget: 60_000, most_processes: 2, unrecorded: 0, members });
        assert_eq!(plan.shares, [("m0000".to_owned(), 45_000)]);
    }
}
