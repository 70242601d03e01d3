//! The operator's pods and processes, as a scenario sees them.

use anyhow::{Context, Result, bail};

use super::rig::{OPERATOR_NAMESPACE, Rig};

/// The identity that holds the election's Lease.
///
/// # Errors
/// When kubectl fails.
pub fn holder(rig: &Rig) -> Result<String> {
    let path = "jsonpath={.spec.holderIdentity}";
    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "get", "lease", "tokenbudget", "-o", path])
}

/// The pod's name in an identity, which also tells its processes apart.
pub fn pod_of(identity: &str) -> &str {
    identity.rsplit_once('_').map_or(identity, |(pod, _)| pod)
}

/// The operator's process in this pod, by its environment.
///
/// # Errors
/// When there is none.
pub fn process_of(pod: &str) -> Result<String> {
    let wanted = format!("POD_NAME={pod}");
    let has = |process: &std::fs::DirEntry| {
        let environ = std::fs::read(process.path().join("environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    let process = std::fs::read_dir("/proc")?.flatten().find(has).with_context(|| format!("{pod} has no process"))?;
    Ok(process.file_name().to_string_lossy().into_owned())
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// CPU time, in seconds.
    pub cpu_s: f64,
    /// Resident memory, in MB.
    pub rss_mb: f64,
}

impl Footprint {
    /// Of the leader.
    ///
    /// # Errors
    /// When there is none, or its process cannot be read.
    pub fn of_leader(rig: &Rig) -> Result<Self> {
        let process = process_of(pod_of(&holder(rig)?))?;
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name may have spaces in it; after it come the state and 10 fields, then the ticks of user and system.
        let (_, fields) = stat.rsplit_once(')').context("no name in /proc/*/stat")?;
        let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let Some(rss) = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()) else {
            bail!("process {process} has no VmRSS");
        };
        // CLK_TCK is 100 on every Linux that Rust's tier 1 knows.
        Ok(Self { cpu_s: ticks / 100.0, rss_mb: rss.parse::<f64>()? / 1000.0 })
    }
}
