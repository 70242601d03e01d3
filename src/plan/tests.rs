use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| (0..64).map(|i| format!("m{i:02}")).collect());

type Book = BookDemand<'static>;

/// A share that no plan lets stay.
const NONE: u64 = u64::MAX;

fn member(name: usize, spent: u64, denied: u64, record: u64, lost: bool) -> MemberDemand<'static> {
    MemberDemand { member: &NAMES[name], spent, denied, record, share: NONE, lost, offline: record / 2 }
}

/// Books of at most so many members with amounts around `scale`, with shares that no plan lets stay.
fn books(scale: u64, most: usize) -> impl Strategy<Value = Book> {
    let spent = prop_oneof![Just(0), 0..scale / 8, 0..scale];
    let lost = prop::bool::weighted(0.2);
    let members = prop::collection::vec((spent, prop_oneof![Just(0), 0..2 * scale], 0..scale / 8, lost), 0..most);
    (0..scale, 0..50_u32, 0..6_u32, members).prop_map(|(budget, most_processes, unrecorded, members)| {
        let members = members.into_iter().enumerate().map(|(i, (s, d, r, lost))| member(i, s, d, r, lost)).collect();
        BookDemand { budget, most_processes, unrecorded, owed: 0, members }
    })
}

/// Books whose members have shares near those of the exact plan: on both sides of the dead band, or written by a plan.
fn settled_books() -> impl Strategy<Value = Book> {
    (books(1_000_000, 40), prop::collection::vec(-1.2..1.2_f64, 40), 0..3).prop_map(|(mut book, jitter, width)| {
        let exact = plan_book(&book);
        write(&mut book, &exact);
        let band = band_of(&book);
        for (m, jitter) in book.members.iter_mut().zip(jitter).filter(|(m, _)| !m.lost) {
            let by = (jitter * band as f64 * f64::from(width) / 2.0) as i64;
            m.share = m.share.saturating_add_signed(by);
        }
        book
    })
}

fn present(book: &Book) -> impl Iterator<Item = (usize, &MemberDemand<'static>)> {
    book.members.iter().enumerate().filter(|(_, m)| !m.lost)
}

fn band_of(book: &Book) -> u64 {
    stay::band(book.budget, present(book).count() as u64)
}

/// What the members present may share.
fn room(book: &Book) -> u64 {
    let held: u64 = book.members.iter().filter(|m| m.lost).map(|m| m.record).sum();
    (book.budget - plan_book(book).aside).saturating_sub(held)
}

/// What the ledger holds once the plan is written.
fn write(book: &mut Book, plan: &BookPlan) {
    book.members.iter_mut().zip(&plan.shares).for_each(|(m, share)| m.share = *share);
}

/// The plan without the dead band.
fn exact(book: &Book) -> BookPlan {
    let mut book = book.clone();
    book.members.iter_mut().for_each(|m| m.share = NONE);
    plan_book(&book)
}

/// The same without arithmetic: unit by unit, in the order of the ids.
fn oracle(book: &Book) -> Vec<u64> {
    let mut left = room(book);
    let mut order: Vec<usize> = present(book).map(|(i, _)| i).collect();
    order.sort_by_key(|&i| book.members[i].member);
    let mut shares = vec![0; book.members.len()];
    let n = order.len();

    // Each in turn, until 2 % are given and everybody has one.
    let mut given = 0;
    while left > 0 && n > 0 && (given * 50 < book.budget || given < n as u64) {
        shares[order[given as usize % n]] += 1;
        (given, left) = (given + 1, left - 1);
    }
    // The poorest that wants more.
    let wants = |i: usize, share: u64| share < demand(&book.members[i], book.budget);
    while let Some(&i) = order.iter().filter(|&&i| left > 0 && wants(i, shares[i])).min_by_key(|&&i| shares[i]) {
        (shares[i], left) = (shares[i] + 1, left - 1);
    }
    // One to everybody, as long as a tenth stays.
    while n > 0 && left >= book.budget / 10 + n as u64 {
        order.iter().for_each(|&i| shares[i] += 1);
        left -= n as u64;
    }
    shares
}

proptest! {
    #[test]
    fn agrees_with_handing_out_one_by_one(book in books(600, 12)) {
        prop_assert_eq!(plan_book(&book).shares, oracle(&book));
    }

    #[test]
    fn shares_fit_into_what_is_neither_aside_nor_held(book in prop_oneof![books(1_000_000, 40), settled_books()]) {
        let plan = plan_book(&book);
        prop_assert!(plan.aside <= book.budget);
        prop_assert!(plan.aside >= plan.safe.saturating_mul(book.unrecorded.into()).min(book.budget));
        prop_assert!(plan.shares.iter().sum::<u64>() <= room(&book), "{plan:?}");
        prop_assert!(book.members.iter().zip(&plan.shares).all(|(m, &share)| !m.lost || share == 0));
    }

    /// Who wants no more than the level is not cut short for anybody, and nobody is left with less than the level who wants more.
    #[test]
    fn the_level_parts_those_that_are_cut_short_from_the_others(book in books(1_000_000, 40)) {
        let plan = plan_book(&book);
        prop_assert!(plan.level <= room(&book));
        for (i, m) in present(&book) {
            prop_assert!(plan.shares[i] >= demand(m, book.budget).min(plan.level), "{plan:?}");
        }
        let demands: u64 = present(&book).map(|(_, m)| demand(m, book.budget)).sum();
        let most = present(&book).map(|(i, _)| plan.shares[i]).max().unwrap_or(0);
        prop_assert!(plan.level >= most.saturating_sub(1) || demands < room(&book), "{plan:?}");
    }

    #[test]
    fn the_order_of_the_members_does_not_matter(
        (book, shuffled) in prop_oneof![books(1_000_000, 40), settled_books()].prop_flat_map(|book| {
            let members = Just(book.members.clone()).prop_shuffle();
            let shuffled = members.prop_map({ let book = book.clone(); move |members| Book { members, ..book.clone() } });
            (Just(book), shuffled)
        })
    ) {
        let by_id = |book: &Book| {
            let mut shares: Vec<_> = book.members.iter().map(|m| m.member).zip(plan_book(book).shares).collect();
            shares.sort_unstable();
            shares
        };
        prop_assert_eq!(by_id(&book), by_id(&shuffled));
    }

    #[test]
    fn nobody_is_below_its_floor(book in prop_oneof![books(1_000_000, 40), settled_books()]) {
        let (plan, room, n) = (plan_book(&book), room(&book), present(&book).count() as u64);
        for (i, _) in present(&book) {
            prop_assert!(plan.shares[i] >= (room / n).min(book.budget / (50 * n)).max(u64::from(room >= n)), "{plan:?}");
        }
    }

    #[test]
    fn more_budget_takes_from_nobody(book in books(1_000_000, 40), more in prop_oneof![1..300_u64, 1..1_000_000_u64]) {
        let larger = Book { budget: book.budget + more, ..book.clone() };
        let rounding = u64::from(book.unrecorded > 0);
        let (before, after) = (plan_book(&book), plan_book(&larger));
        prop_assert!(before.shares.iter().zip(&after.shares).all(|(a, b)| *a <= b + rounding), "{before:?} {after:?}");
    }

    #[test]
    fn with_the_dead_band_more_budget_takes_less_than_a_band(book in settled_books(), more in 1..5_000_u64) {
        let larger = Book { budget: book.budget + more, ..book.clone() };
        let less_than = band_of(&larger) + u64::from(book.unrecorded > 0);
        let (before, after) = (plan_book(&book), plan_book(&larger));
        prop_assert!(before.shares.iter().zip(&after.shares).all(|(a, b)| *a < b + less_than), "{before:?} {after:?}");
    }

    #[test]
    fn planning_twice_moves_nothing(mut book in prop_oneof![books(1_000_000, 40), settled_books()]) {
        let plan = plan_book(&book);
        write(&mut book, &plan);
        prop_assert_eq!(plan_book(&book), plan);
    }

    #[test]
    fn a_small_change_of_demand_moves_nothing(mut book in books(1_000_000, 40), changes in prop::collection::vec(-1.0..1.0_f64, 40)) {
        let plan = plan_book(&book);
        write(&mut book, &plan);
        let mut left = band_of(&book).saturating_sub(2);
        let budget = book.budget;
        for (m, change) in book.members.iter_mut().zip(changes) {
            let before = demand(m, budget);
            let changed = MemberDemand { spent: m.spent.saturating_add_signed((left as f64 * change) as i64), ..m.clone() };
            let by = demand(&changed, budget).abs_diff(before);
            if by <= left {
                (*m, left) = (changed, left - by);
            }
        }
        prop_assert_eq!(plan_book(&book).shares, plan.shares);
    }

    /// What stays is within the band of the exact plan, for everybody; else everything is exact.
    #[test]
    fn all_stay_or_all_move(book in settled_books()) {
        let (plan, exact) = (plan_book(&book), exact(&book));
        let stays = book.members.iter().zip(&plan.shares).all(|(m, share)| m.lost || m.share == *share);
        prop_assert!(stays || plan == exact);
        prop_assert_eq!(plan.level, exact.level, "the band is about shares");
        let near = |(a, b): (&u64, &u64)| a.abs_diff(*b) < band_of(&book);
        prop_assert!(plan.shares.iter().zip(&exact.shares).all(near), "{plan:?} {exact:?}");
    }

    /// A fleet through many ticks, of which each hears what the one before wrote.
    #[test]
    fn the_rules_hold_from_tick_to_tick(
        mut book in books(200_000, 12),
        ticks in prop::collection::vec((0..12_usize, -3_000..3_000_i64, 0..20_u32, -2_000..2_000_i64), 1..60),
    ) {
        for (who, demand, event, budget) in ticks {
            if let Some(m) = book.members.get_mut(who) {
                m.spent = m.spent.saturating_add_signed(demand);
                m.lost ^= event == 0;
                // A new process under the same id: the ledger gives it the safe share.
                m.share = if event == 1 { book.budget / u64::from(book.most_processes.max(1)) } else { m.share };
            }
            if event == 2 {
                book.budget = book.budget.saturating_add_signed(budget);
            }
            let plan = plan_book(&book);
            prop_assert!(plan.shares.iter().sum::<u64>() <= room(&book));
            for (i, _) in present(&book) {
                prop_assert!(plan.shares[i] > 0 || room(&book) < present(&book).count() as u64);
                prop_assert!(plan.shares[i].abs_diff(exact(&book).shares[i]) < band_of(&book));
            }
            write(&mut book, &plan);
        }
    }
}

fn book(budget: u64, members: Vec<MemberDemand<'static>>) -> Book {
    BookDemand { budget, most_processes: 4, unrecorded: 0, owed: 0, members }
}

#[test]
fn idle_members_share_evenly_and_leave_a_tenth_in_the_pool() {
    let plan = plan_book(&book(60_000, (0..3).map(|i| member(i, 0, 0, 0, false)).collect()));
    assert_eq!((plan.safe, plan.shares), (15_000, vec![18_000; 3]));
}

#[test]
fn one_hot_member_may_have_nearly_everything() {
    let plan = plan_book(&book(60_000, vec![member(0, 30_000, 300_000, 0, false), member(1, 0, 0, 0, false)]));
    assert_eq!(plan.shares, [59_400, 600]);
}

#[test]
fn a_newcomer_to_a_saturated_fleet_has_a_share_at_once() {
    let mut members: Vec<_> = (0..19).map(|i| member(i, 100, 1_000, 0, false)).collect();
    members.push(member(19, 0, 0, 0, false));
    assert_eq!(plan_book(&book(10_000, members.clone())).shares[19], 10);
    assert_eq!(plan_book(&book(60, members)).shares[19], 1, "2 % of the budget are less than a unit for each");
}

#[test]
fn what_lost_members_hold_is_not_shared() {
    let members = vec![member(0, 60_000, 60_000, 0, false), member(1, 0, 0, 15_000, true)];
    assert_eq!(plan_book(&book(60_000, members)).shares, [45_000, 0]);
}

#[test]
fn what_a_lost_member_may_come_to_is_set_aside() {
    let mut members = vec![member(0, 60_000, 60_000, 0, false), member(1, 0, 0, 5_000, true)];
    members[1].offline = 15_000;
    let plan = plan_book(&book(60_000, members));
    assert_eq!((plan.aside, plan.shares), (10_000, vec![45_000, 0]));
}

/// Shares that the dead band lets stay unless something else speaks against it.
fn settled() -> Book {
    let share = |mut m: MemberDemand<'static>, share| {
        m.share = share;
        m
    };
    let hot = |i| member(i, 30_000, 30_000, 0, false);
    book(60_000, vec![share(hot(0), 30_100), share(hot(1), 29_900)])
}

#[test]
fn shares_within_the_band_stay() {
    assert_eq!(plan_book(&settled()).shares, [30_100, 29_900]);
}

#[test]
fn shares_move_when_a_member_goes_or_comes() {
    let mut gone = settled();
    gone.members.push(MemberDemand { share: 1, ..member(2, 0, 0, 0, true) });
    assert_eq!(plan_book(&gone).shares, [30_000, 30_000, 0]);

    let mut come = settled();
    come.members.push(MemberDemand { share: 0, ..member(2, 0, 0, 0, false) });
    assert_eq!(plan_book(&come).shares, [29_800, 29_800, 400]);
}

#[test]
fn shares_move_when_they_do_not_fit() {
    let mut book = settled();
    book.members[1].share = 29_901;
    assert_eq!(plan_book(&book).shares, [30_000, 30_000]);
}

#[test]
fn the_example_in_the_concepts_is_what_the_plan_gives() {
    let page = include_str!("../../docs/concepts.md");
    let grouped = |n: u64| if n < 1_000 { n.to_string() } else { format!("{},{:03}", n / 1_000, n % 1_000) };
    let target = Target { replicas: 3, most_replicas: Some(5), surge: 2, workers: 1 };
    let most_processes = FleetSize::of(&[target]).most_processes;
    let (plenty, much) = ([(12_000, 0), (2_000, 0), (20_000, 0)], [(12_000, 0), (2_000, 0), (30_000, 20_000)]);
    for (unrecorded, of, shares, level, aside) in [
        (0, much, [12_100, 2_016, 45_884], 45_884, 0),
        (0, plenty, [18_672, 8_588, 26_738], 60_000, 0),
        (1, much, [12_100, 2_016, 37_313], 37_313, 8_571),
    ] {
        let members = of.iter().enumerate().map(|(i, &(spent, denied))| member(i, spent, denied, 0, false)).collect();
        let book = Book { budget: 60_000, most_processes, unrecorded, owed: 0, members };
        let plan = plan_book(&book);
        assert_eq!((plan.safe, plan.aside, plan.level, &*plan.shares), (8_571, aside, level, &shares[..]));
        assert!(page.contains(&format!("(level {})", grouped(level))), "{level}");
        for ((name, m), share) in ["a", "b", "c"].iter().zip(&book.members).zip(plan.shares) {
            let wants = grouped(demand(m, book.budget));
            let (spent, denied, share) = (grouped(m.spent), grouped(m.denied), grouped(share));
            let row = format!("| {name} | {spent} + {denied} | {wants} | {share} |");
            assert!(page.contains(&row), "{row}");
        }
    }
}
