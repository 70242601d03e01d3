//! `docs/benchmarks.json`: the figures of each run behind the tables, to which later rounds are added.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::arms::{Arm, Demand};
use super::run::{Figures, Run};

/// What is told of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Which round, from 1; it is the seed of the requests, too.
    pub round: u32,
    arm: String,
    demand: String,
    /// The commit of this repository that ran.
    pub commit: String,
    /// What it came to.
    #[serde(flatten)]
    pub figures: Figures,
}

impl Told {
    /// Of one run.
    #[must_use]
    pub fn new(round: u32, arm: Arm, demand: Demand, run: &Run) -> Self {
        let (commit, figures) = (run.commit.clone(), run.figures.clone());
        Self { round, arm: arm.told().0, demand: demand.name(), commit, figures }
    }

    /// The way; `None` when there is none of this name any more.
    #[must_use]
    pub fn arm(&self) -> Option<Arm> {
        Arm::from_str(&self.arm, false).ok()
    }

    /// The demand; `None` when there is none of this name any more.
    #[must_use]
    pub fn demand(&self) -> Option<Demand> {
        Demand::from_str(&self.demand, false).ok()
    }
}

/// Every demand with every way that runs under it.
fn all() -> impl Iterator<Item = (Arm, Demand)> {
    let arms = Arm::value_variants().iter();
    arms.flat_map(|arm| Demand::value_variants().iter().map(|demand| (*arm, *demand)))
        .filter(|(arm, of)| of.is_for(*arm))
}

/// How many rounds there are, if the last of them is whole: one before it may lack ways that came later.
#[must_use]
pub fn whole_rounds(runs: &[Told]) -> Option<u32> {
    let rounds = last_round(runs);
    let is_whole = runs.iter().filter(|run| run.round == rounds).count() == all().count();
    (rounds > 0 && is_whole).then_some(rounds)
}

/// The number of the last round; 0 when there is none.
#[must_use]
pub fn last_round(runs: &[Told]) -> u32 {
    runs.iter().map(|run| run.round).max().unwrap_or(0)
}

/// What the documentation has.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Vec<Told>> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// One run a line.
///
/// # Errors
/// When they cannot be written.
pub fn write(path: &Path, runs: &[Told]) -> Result<()> {
    let lines = runs.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n"))).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::LoadReport;

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("benchmarks.json");
        let run = Run::new(&LoadReport::default(), Vec::new(), 10, Some(3), "abc");
        let told = Told::new(2, Arm::InputOutput, Demand::Burst, &run);
        write(&path, &[told.clone(), told]).unwrap();
        let read = read(&path).unwrap();
        assert_eq!((read.len(), read[1].arm(), read[1].demand()), (2, Some(Arm::InputOutput), Some(Demand::Burst)));
        assert_eq!((last_round(&read), whole_rounds(&read)), (2, None));
    }

    #[test]
    fn a_round_is_whole_with_all_ways_under_all_demands() {
        let run = Run::new(&LoadReport::default(), Vec::new(), 10, None, "abc");
        let mut runs = Vec::new();
        for (arm, demand) in all() {
            assert_eq!(whole_rounds(&runs), None);
            runs.push(Told::new(1, arm, demand, &run));
        }
        assert_eq!(whole_rounds(&runs), Some(1));
        runs.insert(0, runs[0].clone());
        runs[1..].iter_mut().for_each(|run| run.round = 2);
        assert_eq!(whole_rounds(&runs), Some(2), "the first lacks some");
    }
}
