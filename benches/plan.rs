//! How long a plan takes on one core: `cargo bench --bench plan`. What it must not exceed is in each doc comment.

use divan::Bencher;
use tokenbudget::plan::{BookDemand, MemberDemand, plan_book};

fn main() {
    divan::main();
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Ids as the agent makes them: pod UID, worker, boot nonce. In their order, as the ledger has them.
fn ids(n: usize, numbers: &mut Numbers) -> Vec<String> {
    let mut id = || {
        let (a, b, c) = (numbers.below(1 << 31), numbers.below(1 << 31), numbers.below(1 << 31));
        format!("{a:08x}-{:04x}-4{:03x}-a000-{b:08x}{:04x}.1.{c:08x}", b >> 15, c >> 19, a >> 15)
    };
    let mut ids: Vec<String> = (0..n).map(|_| id()).collect();
    ids.sort();
    ids
}

/// A busy fleet: one in ten is hot, some are lost, and the shares that they have are not those that they will get.
fn book<'a>(ids: &'a [String], numbers: &mut Numbers) -> BookDemand<'a> {
    let members = ids.iter().map(|id| {
        let hot = if numbers.below(10) == 0 { 20 } else { 1 };
        MemberDemand {
            member: id,
            spent: numbers.below(1_000) * hot,
            denied: numbers.below(100) * hot,
            record: numbers.below(1_000),
            share: numbers.below(1_000),
            lost: numbers.below(50) == 0,
            offline: 500,
        }
    });
    let n = ids.len() as u32;
    BookDemand {
        budget: 1_500 * u64::from(n),
        most_processes: 2 * n,
        unrecorded: 3,
        owed: 0,
        members: members.collect(),
    }
}

/// The same fleet when nothing moves: every share is what the plan says already.
fn settled<'a>(ids: &'a [String], numbers: &mut Numbers) -> BookDemand<'a> {
    let mut book = book(ids, numbers);
    let plan = plan_book(&book);
    book.members.iter_mut().zip(plan.shares).for_each(|(m, share)| m.share = share);
    book
}

/// 10,000 members, in the ledger's order: under 1 ms.
#[divan::bench]
fn members_10_000(bencher: Bencher<'_, '_>) {
    let numbers = &mut Numbers(1);
    let ids = ids(10_000, numbers);
    let book = book(&ids, numbers);
    bencher.bench(|| plan_book(divan::black_box(&book)));
}

/// 10,000 members that keep their shares: under 1 ms.
#[divan::bench]
fn members_10_000_settled(bencher: Bencher<'_, '_>) {
    let numbers = &mut Numbers(1);
    let ids = ids(10_000, numbers);
    let book = settled(&ids, numbers);
    bencher.bench(|| plan_book(divan::black_box(&book)));
}

/// 10,000 members in no order, as no caller has them: what the sorting costs.
#[divan::bench]
fn members_10_000_shuffled(bencher: Bencher<'_, '_>) {
    let numbers = &mut Numbers(1);
    let ids = ids(10_000, numbers);
    let mut book = book(&ids, numbers);
    for i in (1..book.members.len()).rev() {
        book.members.swap(i, numbers.below(i as u64 + 1) as usize);
    }
    bencher.bench(|| plan_book(divan::black_box(&book)));
}

/// 1,000 budgets of 20 members: under 50 ms.
#[divan::bench]
fn budgets_1_000_of_20(bencher: Bencher<'_, '_>) {
    let numbers = &mut Numbers(1);
    let ids: Vec<Vec<String>> = (0..1_000).map(|_| ids(20, numbers)).collect();
    let books: Vec<_> = ids.iter().map(|ids| book(ids, numbers)).collect();
    bencher.bench(|| divan::black_box(&books).iter().map(plan_book).collect::<Vec<_>>());
}
