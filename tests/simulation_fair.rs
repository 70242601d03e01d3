//! What the protocol is for beside the promise: use, fairness, and that nothing leaks or swings.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tokenbudget::ledger::rules::{Rule, Rules};
use tokenbudget::simulate::demand::{Demand, Offered};
use tokenbudget::simulate::fault::Fault;
use tokenbudget::simulate::judge;
use tokenbudget::simulate::size::Size;
use tokenbudget::simulate::{Config, Manners, Run, World};

const BUDGET: u64 = 60_000;

fn fleet(processes: usize, faults: &[(f64, Fault)], rules: Rules) -> Config {
    Config {
        budgets: vec![BUDGET],
        processes,
        most: processes as u32 + 1,
        skew: 0.0,
        turn_at: None,
        manners: Manners { lease: 30.0, beat: 0.5, max_wait: 0.25 },
        faults: faults.to_vec(),
        rough: false,
        send_delay: 0.0,
        excess: 0.0,
        seconds: 500.0,
        seed: 1,
        rules,
    }
}

fn demand(load: f64) -> Vec<Offered> {
    demand_of(Size { mean: 100.0, cv: 1.0 }, load)
}

fn demand_of(size: Size, load: f64) -> Vec<Offered> {
    Demand { load, budget: BUDGET, size, over: 1.0, latency: Size::fixed(1.0), burst: 1 }.trace(500.0, 1)
}

fn run(config: &Config, trace: &[Offered]) -> Run {
    let run = World::new(config, trace).run();
    assert_eq!(run.breach, None);
    run
}

/// Tokens that a process (or all) got in `from..to`.
fn got(run: &Run, who: Option<usize>, from: f64, to: f64) -> u64 {
    run.admitted.iter().filter(|a| who.is_none_or(|who| a.1 == who) && a.0 >= from && a.0 < to).map(|a| a.2).sum()
}

/// What was admitted after the first two minutes of what one ideal bucket would have.
fn used(run: &Run, trace: &[Offered]) -> f64 {
    let offered: Vec<_> = trace.iter().map(Offered::arrival).collect();
    let ideal = judge::ideal_admitted(&[], &offered, BUDGET, judge::WINDOW_MS).admitted;
    let arrival = |a: &(f64, usize, u64)| judge::Arrival { at_ms: (a.0 * 1000.0) as u64, tokens: a.2 };
    let admitted: Vec<_> = run.admitted.iter().map(arrival).collect();
    judge::used(&admitted, &ideal, 120_000, 500_000)
}

#[test]
fn what_is_not_used_goes_back_at_once() {
    let trace = demand(1.2);
    let skewed = |rules| Config { skew: 1.1, ..fleet(10, &[], rules) };
    let with = used(&run(&skewed(Rules::default()), &trace), &trace);
    let without = used(&run(&skewed(Rules::without(&[Rule::GiveBack])), &trace), &trace);
    println!("use {with:.4}, without give-back {without:.4}");
    assert!(with > 0.98, "{with:.4}");
    assert!(without < 0.97, "nothing shows that give-back is missing: {without:.4}");
}

/// What a process gets of its fair share within 65 s when it joins one that spends everything, at each of many moments. All
/// requests are alike: the other has nothing over that it would give back.
fn late_joiner(rules: Rules) -> Vec<f64> {
    let trace = demand_of(Size::fixed(100.0), 2.4);
    let joins = |at: f64| {
        let run = run(&fleet(1, &[(at, Fault::Scale(2))], rules), &trace);
        got(&run, Some(1), at + 5.0, at + 65.0) as f64 / (BUDGET / 2) as f64
    };
    (0..20).map(|i| joins(200.0 + 5.0 * f64::from(i))).collect()
}

#[test]
fn nobody_starves() {
    let mean = |parts: &[f64]| parts.iter().sum::<f64>() / parts.len() as f64;
    let with = late_joiner(Rules::default());
    let least = with.iter().copied().fold(f64::INFINITY, f64::min);
    let with = mean(&with);
    let without = [Rule::Yield, Rule::Claims].map(|rule| mean(&late_joiner(Rules::without(&[rule]))));
    println!(
        "a late joiner gets {with:.3} of its share within 65 s, {least:.3} at least; without yielding, without claims: {without:.3?}"
    );
    assert!(least >= 0.9, "{least:.3}");
    assert!(without.iter().all(|part| *part < with - 0.05), "nothing shows that one is missing: {without:.3?}");
}

#[test]
fn what_a_silent_process_held_comes_back_but_for_its_offline_amount() {
    let faults = [(200.0, Fault::Vanish(0)), (201.0, Fault::Kill(0))];
    let after = |rules| {
        let config = Config { skew: 3.0, most: 12, ..fleet(2, &faults, rules) };
        got(&run(&config, &demand(3.0)), None, 400.0, 460.0)
    };
    let (with, without) = (after(Rules::default()), after(Rules::without(&[Rule::LowerToOffline])));
    println!("{with} tokens a minute after a process vanished, {without} if its record stayed");
    assert!(with > BUDGET * 85 / 100, "{with}");
    assert!(without < with - BUDGET / 10, "nothing shows that the record is lowered: {without}");
}

#[test]
fn a_fleet_that_starts_has_its_shares_at_once() {
    for processes in [1, 3, 8] {
        let config = Config { most: processes as u32, ..fleet(processes, &[], Rules::default()) };
        let early = run(&config, &[]).grants.into_iter().filter(|(at, _)| (1.0..10.0).contains(at));
        let least = early.map(|(_, sum)| sum).min().unwrap();
        println!("{processes} processes that have just started hold at least {least}");
        assert!(least > BUDGET * 7 / 10, "{processes} processes gave back what nobody else wanted: {least}");
    }
}

#[test]
fn an_idle_fleet_does_not_swing() {
    for processes in [1, 2, 5, 30] {
        let run = run(&fleet(processes, &[], Rules::default()), &[]);
        let late: Vec<u64> = run.grants.iter().filter(|(at, _)| *at > 100.0).map(|(_, sum)| *sum).collect();
        let (least, most) = (late.iter().min().unwrap(), late.iter().max().unwrap());
        println!("{processes} idle processes hold {least} to {most}");
        assert!(most - least <= BUDGET / 15, "{processes} processes: {least} to {most}");
        assert!(*least > BUDGET * 7 / 10, "{processes} processes: their shares are at hand: {least}");
    }
}

#[test]
fn nothing_leaks_when_everything_has_ended() {
    let faults = [(100.0, Fault::Kill(0)), (120.0, Fault::Fork(0)), (200.0, Fault::Scale(5)), (300.0, Fault::Scale(0))];
    let run = run(&fleet(4, &faults, Rules::default()), &demand(2.0));
    assert_eq!(run.left, 0, "still lent");
}
