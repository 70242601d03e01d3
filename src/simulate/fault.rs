//! What goes wrong, and what people do, in a simulated fleet.

use super::size::SplitMix64;

/// One thing that happens. Processes are named by their place among the live ones, times are seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL; the kubelet reports the end, and starts the container again.
    Kill(usize),
    /// SIGSTOP, or a suspended machine, for so long.
    Freeze(usize, f64),
    /// A suspended machine whose boot-time clock stands still, for so long.
    Suspend(usize, f64),
    /// A new process that cannot reach the ledger for so long.
    Orphan(f64),
    /// Kubernetes is told that the container of a live process has ended.
    FalseEnd(usize),
    /// A worker process forks.
    Fork(usize),
    /// The wall clock of a process is set by so much.
    SetWall(usize, f64),
    /// A process cannot reach the ledger for so long.
    CutOff(usize, f64),
    /// The pod's object goes from Kubernetes while its process runs on (a node that is partitioned).
    Vanish(usize),
    /// The autoscaler wants so many processes.
    Scale(usize),
    /// The ledger refuses connections for so long.
    LedgerDown(f64),
    /// The ledger is not heard for so long.
    LedgerSilent(f64),
    /// A replica takes over, that lacks the writes of the last seconds.
    Failover(f64),
    /// The ledger starts again, with its data or without.
    Restart(bool),
    /// Everything in the ledger is deleted.
    Flush,
    /// The server's clock is set by so much.
    SetServer(f64),
    /// The operator is away for so long.
    OperatorAway(f64),
    /// A second operator takes over while the first goes on for so long.
    TwoOperators(f64),
    /// The operator sees Kubernetes so much later, from now on.
    KubernetesLate(f64),
    /// So many processes are expected at most: the safe share becomes another.
    Most(u32),
    /// The budgets become so many percent of what they were at first.
    Budget(u64),
    /// The lease becomes so long.
    Lease(f64),
    /// Retries: the next requests of a process fail after they were sent, and are tried again, for so long.
    Failing(usize, f64),
}

/// The kinds of faults that [`schedule`] draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processes die, freeze, fork.
    Processes,
    /// The ledger fails, restarts, is flushed.
    Ledger,
    /// The operator is away, doubled, late.
    Operator,
    /// People scale and change budgets.
    Changes,
}

/// A random schedule: about one fault in `every` seconds, in `from..to`.
#[must_use]
pub fn schedule(kinds: &[Kind], every: f64, from: f64, to: f64, most: usize, seed: u64) -> Vec<(f64, Fault)> {
    let mut rng = SplitMix64::new(seed ^ 0x0fa1_7a11);
    let mut at = from;
    let mut faults = Vec::new();
    loop {
        at += rng.exponential() * every;
        if at >= to || kinds.is_empty() {
            return faults;
        }
        let kind = kinds[rng.below(kinds.len())];
        faults.push((at, draw(kind, most, &mut rng)));
    }
}

fn draw(kind: Kind, most: usize, rng: &mut SplitMix64) -> Fault {
    let who = rng.below(most.max(1));
    // Short, about a lease, or long.
    let lasts = [2.0, 31.0, 110.0][rng.below(3)] * (0.5 + rng.unit());
    let step = if rng.unit() < 0.5 { lasts } else { -lasts };
    match kind {
        Kind::Processes => match rng.below(7) {
            0 => Fault::Kill(who),
            1 | 2 => Fault::Freeze(who, lasts),
            3 => Fault::Fork(who),
            4 => Fault::SetWall(who, step),
            5 => Fault::Failing(who, lasts),
            _ => Fault::CutOff(who, lasts),
        },
        Kind::Ledger => match rng.below(7) {
            0 => Fault::LedgerDown(lasts),
            1 => Fault::LedgerSilent(lasts),
            2 | 3 => Fault::Failover(5.0 * rng.unit()),
            4 => Fault::Restart(rng.unit() < 0.5),
            5 => Fault::Flush,
            _ => Fault::SetServer(step),
        },
        Kind::Operator => match rng.below(4) {
            0 => Fault::OperatorAway(lasts),
            1 => Fault::TwoOperators(lasts),
            2 => Fault::KubernetesLate(5.0 * rng.unit()),
            _ => Fault::Vanish(who),
        },
        Kind::Changes => match rng.below(5) {
            0 | 1 => Fault::Scale(1 + rng.below(most.max(1))),
            2 => Fault::Budget([40, 70, 100][rng.below(3)]),
            3 => Fault::Most(u32::try_from(most * [1, 2, 6][rng.below(3)]).unwrap_or(u32::MAX)),
            _ => Fault::Lease([10.0, 30.0, 60.0][rng.below(3)]),
        },
    }
}
