//! The runs of a comparison, in a file each: it takes longer than most machines are left alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::arms::{Arm, Demand};
use super::run::Run;

/// A folder of runs.
pub struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// The runs below this root. Those of an earlier comparison are put aside, unless it is to go on: it may have been
    /// interrupted, and be worth an hour.
    ///
    /// # Errors
    /// When they cannot be put aside, or the folder cannot be made.
    pub fn at(root: &Path, resume: bool) -> Result<Self> {
        let folder = root.join(".local/bench-runs");
        if !resume && folder.exists() {
            let aside = root.join(".local/bench-runs-before");
            if aside.exists() {
                std::fs::remove_dir_all(&aside).with_context(|| aside.display().to_string())?;
            }
            std::fs::rename(&folder, &aside).with_context(|| folder.display().to_string())?;
            println!("the runs of an earlier comparison are in {} now", aside.display());
        }
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder })
    }

    /// The run of this round, if there is one.
    ///
    /// # Errors
    /// When there is one that cannot be read: another version wrote it.
    pub fn get(&self, round: u32, arm: Arm, demand: Demand) -> Result<Option<Run>> {
        let path = self.path(round, arm, demand);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path)?;
        let run = serde_json::from_slice(&text);
        run.map(Some).with_context(|| format!("{}: remove it, or run without --resume", path.display()))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, round: u32, arm: Arm, demand: Demand, run: &Run) -> Result<()> {
        let path = self.path(round, arm, demand);
        std::fs::write(&path, serde_json::to_vec(run)?).with_context(|| path.display().to_string())
    }

    fn path(&self, round: u32, arm: Arm, demand: Demand) -> PathBuf {
        self.folder.join(format!("{round}-{}-{}.json", arm.told().0, demand.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Arrival;
    use crate::load::LoadReport;

    #[test]
    fn an_interrupted_comparison_goes_on_and_a_new_one_begins_anew() {
        let root = tempfile::tempdir().unwrap();
        let admitted = vec![Arrival { at_ms: 5, tokens: 7 }];
        let run = Run::new(&LoadReport::default(), admitted.clone(), 10, Some(3), "abc");
        let (arm, demand) = (Arm::Enforce, Demand::Burst);
        Kept::at(root.path(), false).unwrap().put(2, arm, demand, &run).unwrap();
        let again = Kept::at(root.path(), true).unwrap();
        let found = again.get(2, arm, demand).unwrap().unwrap();
        assert_eq!((found.admitted, found.figures.commands), (admitted, Some(3.0)));
        assert!(again.get(1, arm, demand).unwrap().is_none());
        assert!(Kept::at(root.path(), false).unwrap().get(2, arm, demand).unwrap().is_none());
        assert_eq!(std::fs::read_dir(root.path().join(".local/bench-runs-before")).unwrap().count(), 1);
    }
}
