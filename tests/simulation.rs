//! The promise under faults, in virtual time: fleet-wide in any 60 s at most the budget, lent only from the pool.
//!
//! `TOKENBUDGET_EVENTS` says how many events (a million), `TOKENBUDGET_SEED` repeats a run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tokenbudget::ledger::rules::{Rule, Rules};
use tokenbudget::simulate::demand::{Demand, Offered};
use tokenbudget::simulate::fault::{Fault, Kind, schedule};
use tokenbudget::simulate::size::{Size, SplitMix64};
use tokenbudget::simulate::{Config, Manners, Run, World};

const ALL: [Kind; 4] = [Kind::Processes, Kind::Ledger, Kind::Operator, Kind::Changes];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// A rough world by its seed: a few processes, one to three books, all kinds of faults at once.
fn rough(seed: u64, kinds: &[Kind], rules: Rules) -> Run {
    let (config, trace) = rough_world(seed, kinds, rules);
    World::new(&config, &trace).run()
}

fn rough_world(seed: u64, kinds: &[Kind], rules: Rules) -> (Config, Vec<Offered>) {
    let mut rng = SplitMix64::new(seed);
    let processes = 2 + rng.below(4);
    let most = processes + rng.below(4);
    let budgets = [vec![60_000], vec![60_000, 200], vec![60_000, 200, 40_000]][rng.below(3)].clone();
    let seconds = 600.0;
    let demand = Demand {
        load: 0.5 + 3.0 * rng.unit(),
        budget: budgets[0],
        size: Size::lognormal(400.0, 1.0),
        over: 1.0 + rng.unit(),
        latency: Size::lognormal(5.0, 2.0),
        burst: 1 + rng.below(8) as u32,
    };
    let trace = demand.trace(seconds, seed);
    let faults = schedule(kinds, 5.0 + 40.0 * rng.unit(), 70.0, seconds - 100.0, most, seed);
    let config = Config {
        budgets,
        processes,
        most: most as u32,
        skew: 1.5 * rng.unit(),
        turn_at: None,
        manners: Manners { lease: 30.0, beat: 0.5, max_wait: 0.25 },
        faults,
        rough: true,
        send_delay: 0.0,
        excess: 0.0,
        seconds,
        seed,
        rules,
    };
    (config, trace)
}

#[test]
fn the_promise_holds_whatever_goes_wrong() {
    let wanted = number("TOKENBUDGET_EVENTS").unwrap_or(1_000_000);
    let first = number("TOKENBUDGET_SEED").unwrap_or(1);
    let (mut events, mut runs, mut worst) = (0, 0, 0.0_f64);
    while events < wanted {
        let seed = first + runs;
        let run = rough(seed, &ALL, Rules::default());
        if let Some(breach) = run.breach {
            let faults = rough_world(seed, &ALL, Rules::default()).0.faults;
            panic!("TOKENBUDGET_SEED={seed}: {breach}\n{faults:#?}");
        }
        events += run.events;
        runs += 1;
        worst = worst.max(run.worst);
    }
    println!("{events} events in {runs} runs; the fullest 60 s were {:.2}% of what was allowed", worst * 100.0);
}

/// A small saturated fleet with even demand: three processes, 60,000 tokens a minute, three times the demand.
fn fleet(faults: &[(f64, Fault)]) -> Config {
    Config {
        budgets: vec![60_000],
        processes: 3,
        most: 4,
        skew: 0.0,
        turn_at: None,
        manners: Manners { lease: 30.0, beat: 0.5, max_wait: 0.25 },
        faults: faults.to_vec(),
        rough: false,
        send_delay: 0.0,
        excess: 0.0,
        seconds: 500.0,
        seed: 1,
        rules: Rules::default(),
    }
}

const DEMAND: Demand = Demand {
    load: 3.0,
    budget: 60_000,
    size: Size { mean: 300.0, cv: 0.5 },
    over: 1.0,
    latency: Size { mean: 1.0, cv: 0.0 },
    burst: 1,
};

/// Three times the demand from the start.
fn busy() -> Vec<Offered> {
    DEMAND.trace(500.0, 1)
}

/// A fleet that is nearly idle until `at`, and busy from then on.
fn idle_until(at: f64) -> Vec<Offered> {
    let light = Demand { load: 0.1, ..DEMAND }.trace(at, 1);
    light.into_iter().chain(busy().into_iter().filter(|offered| offered.at >= at)).collect()
}

/// The promise holds in this world; without these rules it breaks.
fn breaks_without(rules: &[Rule], trace: &[Offered], config: Config) {
    let run = World::new(&config, trace).run();
    assert_eq!(run.breach, None, "with all rules");
    let broken = Config { rules: Rules::without(rules), ..config };
    let run = World::new(&broken, trace).run();
    let breach =
        run.breach.unwrap_or_else(|| panic!("nothing shows that {rules:?} is missing; worst {:.4}", run.worst));
    println!("without {rules:?}: {breach}");
}

/// Some random schedule breaks the promise without this rule.
fn random_faults_find(rule: Rule) {
    for seed in 1..400 {
        if let Some(breach) = rough(seed, &ALL, Rules::without(&[rule])).breach {
            println!("without {rule:?}: seed {seed}: {breach}");
            return;
        }
    }
    panic!("no schedule shows that {rule:?} is missing");
}

#[test]
fn random_faults_find_missing_rules() {
    for rule in [
        Rule::LendFromPool,
        Rule::HoldGone,
        Rule::Learn,
        Rule::LendGivenBack,
        Rule::ShrinkFirst,
        Rule::IgnorePassed,
        Rule::NeverAnswered,
        Rule::HoldUnsent,
        Rule::Guard,
        Rule::ChargeRetries,
        Rule::ForkIsNew,
    ] {
        random_faults_find(rule);
    }
}

#[test]
fn no_record_goes_while_its_lease_may_last() {
    let mut world = fleet(&[(200.0, Fault::CutOff(0, 95.0)), (200.5, Fault::FalseEnd(0)), (236.0, Fault::Kill(0))]);
    world.manners.lease = 100.0;
    breaks_without(&[Rule::KeepWhileLeased], &idle_until(222.0), world);
}

/// A process that spends on without the ledger, and is killed before its lease is over.
const CUT_OFF_AND_KILLED: [(f64, Fault); 2] = [(200.0, Fault::CutOff(0, 95.0)), (226.0, Fault::Kill(0))];

#[test]
fn what_left_before_a_process_was_killed_frees_nothing() {
    breaks_without(&[Rule::LeavesAfterEnd], &busy(), fleet(&CUT_OFF_AND_KILLED));
}

#[test]
fn what_was_not_settled_when_a_killed_process_said_so_frees_nothing() {
    // All of the budget is reserved for requests that cost a quarter of it, which they say after the process's last call.
    let rush = Demand { load: 30.0, ..DEMAND };
    let mut trace = Demand { over: 4.0, latency: Size::fixed(46.0), ..rush }.trace(159.0, 1);
    trace.retain(|offered| offered.at >= 155.0);
    trace.extend(rush.trace(300.0, 1).into_iter().filter(|offered| offered.at >= 200.0));
    let faults = [(200.0, Fault::CutOff(0, 95.0)), (208.0, Fault::Kill(0))];
    breaks_without(&[Rule::LeavesSettled], &trace, fleet(&faults));
}

#[test]
fn steps_of_the_servers_clock_end_nothing_early() {
    let steps = [1.0, 2.0, 3.0].map(|after| (200.0 + after, Fault::SetServer(25.0)));
    let faults: Vec<_> = [(200.0, Fault::Kill(0))].into_iter().chain(steps).collect();
    breaks_without(&[Rule::ClampClock], &busy(), fleet(&faults));
}

#[test]
fn an_old_operator_cannot_write() {
    let faults = [(190.0, Fault::TwoOperators(300.0)), (200.0, Fault::Budget(40))];
    breaks_without(&[Rule::Fence], &busy(), fleet(&faults));
}

#[test]
fn the_wall_clock_ends_a_lease_on_a_machine_whose_boot_clock_stood_still() {
    let faults = [(200.0, Fault::CutOff(0, 300.0)), (200.1, Fault::Suspend(0, 110.0))];
    breaks_without(&[Rule::LeaseByWall], &idle_until(305.0), Config { most: 10, ..fleet(&faults) });
}

#[test]
fn the_boot_clock_ends_a_lease_when_the_wall_clock_is_set_back() {
    let faults = [(200.0, Fault::CutOff(0, 300.0)), (200.1, Fault::SetWall(0, -300.0))];
    breaks_without(&[Rule::LeaseByBoot], &busy(), Config { skew: 2.0, ..fleet(&faults) });
}

#[test]
fn without_a_lease_a_process_keeps_to_its_offline_amount() {
    let world = Config { skew: 2.0, ..fleet(&[(200.0, Fault::CutOff(0, 300.0))]) };
    breaks_without(&[Rule::OfflineAmount, Rule::GrantEnds], &busy(), world);
}

#[test]
fn a_grant_whose_lease_ended_does_not_come_back() {
    let faults = [(199.0, Fault::OperatorAway(300.0)), (200.0, Fault::LedgerDown(145.0)), (201.0, Fault::Scale(4))];
    breaks_without(&[Rule::GrantEnds], &idle_until(300.0), fleet(&faults));
}

#[test]
fn a_safe_share_is_set_aside_for_a_process_that_the_ledger_does_not_know() {
    breaks_without(&[Rule::SetAside], &busy(), fleet(&[(200.0, Fault::Orphan(290.0))]));
}

#[test]
fn what_is_set_aside_is_the_safe_share_that_a_process_booted_with() {
    // With the second fault before and after the time from which the process is counted.
    for at in [210.0, 260.0] {
        let faults = [(200.0, Fault::Orphan(290.0)), (at, Fault::Most(24))];
        breaks_without(&[Rule::RememberBooted], &busy(), fleet(&faults));
    }
}

#[test]
fn a_pod_that_vanished_is_no_evidence() {
    let faults = [(200.0, Fault::CutOff(0, 300.0)), (200.5, Fault::Vanish(0))];
    breaks_without(&[Rule::Evidence], &busy(), fleet(&faults));
}

#[test]
fn a_member_that_the_ledger_lost_and_whose_pod_vanished_is_counted() {
    let faults = [(200.0, Fault::CutOff(0, 250.0)), (210.0, Fault::Vanish(0)), (240.0, Fault::Flush)];
    breaks_without(&[Rule::RememberLost], &busy(), fleet(&faults));
}

#[test]
fn what_a_process_without_a_record_admitted_counts_after_its_end() {
    let faults = [(200.0, Fault::CutOff(0, 250.0)), (240.0, Fault::Flush), (380.0, Fault::Kill(0))];
    breaks_without(&[Rule::CountDeparted], &busy(), fleet(&faults));
}

#[test]
fn what_was_admitted_before_a_freeze_is_admitted_again() {
    let world = Config { most: 200, send_delay: 0.95, ..fleet(&[(5.0, Fault::Freeze(0, 110.0))]) };
    breaks_without(&[Rule::AdmitAgain], &busy(), world);
}

#[test]
fn a_late_refund_opens_no_other_minute() {
    let mut trace = Demand { over: 4.0, latency: Size::fixed(75.0), ..DEMAND }.trace(60.0, 1);
    trace.extend(busy().into_iter().filter(|offered| offered.at >= 60.0));
    breaks_without(&[Rule::SettleInSlot], &trace, fleet(&[]));
}

#[test]
fn use_above_the_estimate_is_charged_and_paid_back() {
    let demand = Demand { over: 0.5, latency: Size::fixed(0.3), ..DEMAND };
    breaks_without(&[Rule::ChargeDebt], &demand.trace(500.0, 1), Config { excess: 0.1, ..fleet(&[]) });
}
