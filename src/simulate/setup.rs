//! What is simulated: demand, fleet and events, with the figures that everything else is named against.

use super::choice::follow_parts;
use super::demand::{Demand, Offered};
use super::fault::Fault;
use super::process::Manners;
use super::size::Size;
use super::world::Config;
use crate::ledger::rules::Rules;
use crate::plan::FleetSize;

/// How the demand falls on the members.
#[derive(Clone, Debug, PartialEq)]
pub enum Skew {
    /// By place, `place^-exponent`; 0 is even.
    Zipf(f64),
    /// Parts as they were measured, one for each member, of any sum.
    Parts(Vec<f64>),
}

/// Something to simulate.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// Members at the start.
    pub members: usize,
    /// The most members that are declared (maxReplicas); at least `members`, and what it is scaled to.
    pub most: u32,
    /// Tokens per minute.
    pub budget: u64,
    /// Tokens offered, as a multiple of the budget.
    pub load: f64,
    /// How the demand falls on the members.
    pub skew: Skew,
    /// Sizes of requests, in tokens.
    pub size: Size,
    /// What is reserved, as a multiple of what a request costs.
    pub over: f64,
    /// Until the end of the answer, in seconds.
    pub latency: Size,
    /// Requests that come at once.
    pub burst: u32,
    /// How long a request may wait, in seconds.
    pub max_wait: f64,
    /// How long a grant lasts, in seconds.
    pub lease: f64,
    /// The demand turns over to other members at this moment, in seconds.
    pub turn_at: Option<f64>,
    /// What happens, in the order of time (seconds).
    pub faults: Vec<(f64, Fault)>,
    /// Messages get lost, late and doubled, and clocks differ.
    pub rough: bool,
    /// How long it lasts, in seconds.
    pub seconds: f64,
    /// The stretch that is judged, in seconds: from, to.
    pub judged: (f64, f64),
    /// Same seed, same demand, same run.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            members: 20,
            most: 20,
            budget: 600_000,
            load: 1.2,
            skew: Skew::Zipf(1.1),
            size: Size::lognormal(500.0, 2.0),
            over: 1.0,
            latency: Size::lognormal(5.0, 1.0),
            burst: 1,
            max_wait: 0.25,
            lease: 30.0,
            turn_at: None,
            faults: Vec::new(),
            rough: false,
            seconds: 600.0,
            judged: (120.0, 600.0),
            seed: 1,
        }
    }
}

impl Setup {
    /// The synthetic demand.
    #[must_use]
    pub fn trace(&self) -> Vec<Offered> {
        let demand = Demand {
            load: self.load,
            budget: self.budget,
            size: self.size,
            over: self.over,
            latency: self.latency,
            burst: self.burst,
        };
        self.skewed(demand.trace(self.seconds, self.seed))
    }

    /// A trace with the measured parts in it.
    #[must_use]
    pub fn skewed(&self, mut trace: Vec<Offered>) -> Vec<Offered> {
        if let Skew::Parts(parts) = &self.skew {
            follow_parts(&mut trace, parts);
        }
        trace
    }

    /// Zipf exponent of the choice of members.
    #[must_use]
    pub const fn exponent(&self) -> f64 {
        match self.skew {
            Skew::Zipf(exponent) => exponent,
            Skew::Parts(_) => 0.0,
        }
    }

    /// The budget from each moment on (seconds).
    #[must_use]
    pub fn budgets(&self) -> Vec<(f64, u64)> {
        let cuts = self.faults.iter().filter_map(|&(at, fault)| match fault {
            Fault::Budget(percent) => Some((at, self.budget * percent / 100)),
            _ => None,
        });
        std::iter::once((0.0, self.budget)).chain(cuts).collect()
    }

    /// For the simulation.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            budgets: vec![self.budget],
            processes: self.members,
            most: self.most,
            skew: self.exponent(),
            turn_at: self.turn_at,
            manners: Manners {
                lease: self.lease,
                beat: FleetSize { most_processes: self.most }.beat_ms(0) as f64 / 1000.0,
                max_wait: self.max_wait,
            },
            faults: self.faults.clone(),
            rough: self.rough,
            send_delay: 0.0,
            excess: 0.0,
            seconds: self.seconds,
            seed: self.seed,
            rules: Rules::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_follow_the_cuts() {
        let setup = Setup { faults: vec![(10.0, Fault::Budget(40)), (20.0, Fault::Budget(100))], ..Setup::default() };
        assert_eq!(setup.budgets(), [(0.0, 600_000), (10.0, 240_000), (20.0, 600_000)]);
    }
}
