//! Processes of the rig, stopped, continued and killed by a signal.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A process by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(u32);

/// What is done to it.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// It ends without a word.
    Kill,
    /// It stands still; its connections stay open.
    Stop,
    /// It goes on.
    Continue,
}

impl Process {
    /// The process of a container, from `containerID` of its status.
    ///
    /// # Errors
    /// When the container has none.
    pub fn of_container(id: &str) -> Result<Self> {
        let id = id.strip_prefix("process://").with_context(|| format!("container {id:?} is no process"))?;
        Ok(Self(id.parse().with_context(|| format!("process {id:?}"))?))
    }

    /// The only process in whose command line these are, one of which is a path of this rig: nobody else's is found.
    ///
    /// # Errors
    /// When there is none or there are several.
    pub fn with_arguments(program: &str, directory: &Path) -> Result<Self> {
        let directory = directory.to_string_lossy();
        let fits = |id: &u32| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            // The program is the file, or the first argument of a file that is several programs.
            line.split('\0').take(2).any(|argument| argument.rsplit('/').next() == Some(program))
                && line.contains(&*directory)
        };
        let entries = std::fs::read_dir("/proc")?.flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let found: Vec<u32> = ids.filter(fits).collect();
        ensure!(found.len() == 1, "processes of {program} in {directory}: {found:?}");
        Ok(Self(found[0]))
    }

    /// Those that it started.
    ///
    /// # Errors
    /// When it is gone.
    pub fn children(self) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.0))? {
            let text = std::fs::read_to_string(thread?.path().join("children"))?;
            all.extend(text.split_whitespace().filter_map(|id| id.parse().ok()).map(Self));
        }
        Ok(all)
    }

    /// Its id.
    pub const fn id(self) -> u32 {
        self.0
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(self, signal: Signal) -> Result<()> {
        let name = match signal {
            Signal::Kill => "-KILL",
            Signal::Stop => "-STOP",
            Signal::Continue => "-CONT",
        };
        let status = Command::new("kill").args([name, &self.0.to_string()]).status()?;
        ensure!(status.success(), "process {} got no {name}", self.0);
        Ok(())
    }
}

#[cfg(test)]
impl Process {
    pub(super) fn myself() -> Self {
        Self(std::process::id())
    }
}
