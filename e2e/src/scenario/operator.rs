//! The operator's pods and processes, as a scenario sees them.

use anyhow::{Context, Result, bail, ensure};

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

/// How often the containers of the operator restarted, all pods together.
///
/// # Errors
/// When kubectl fails.
pub fn restarts(rig: &Rig) -> Result<u64> {
    let counts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let counts = rig.kubectl(&["-n", OPERATOR_NAMESPACE, "get", "pods", "-o", counts])?;
    counts.split_whitespace().map(|count| Ok(count.parse::<u64>()?)).sum()
}

/// Passes by its own metrics.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    /// How many.
    pub count: f64,
    /// How many took at most so long: upper bounds in seconds, `+Inf` last.
    within: Vec<(f64, f64)>,
}

impl Passes {
    /// Of the operator's first pod, since it started.
    ///
    /// # Errors
    /// When it serves no metrics.
    pub fn so_far(rig: &Rig) -> Result<Self> {
        let text = metrics(rig)?;
        let value = |line: &str| line.split_whitespace().nth(1)?.parse::<f64>().ok();
        let counts = text.lines().filter(|line| line.starts_with("tokenbudget_reconcile_total{"));
        let buckets = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("tokenbudget_reconcile_duration_seconds_bucket{le=\"")?;
            Some((rest.split('"').next()?.parse().ok()?, value(line)?))
        });
        Ok(Self { count: counts.filter_map(value).sum(), within: buckets.collect() })
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let within = self.within.iter().zip(&before.within).map(|((le, now), (_, then))| (*le, now - then));
        Self { count: self.count - before.count, within: within.collect() }
    }

    /// The bound in seconds that 99 % of them kept.
    #[must_use]
    pub fn p99_s(&self) -> Option<f64> {
        let all = self.within.last()?.1;
        self.within.iter().find(|(_, count)| *count >= all * 0.99).map(|(le, _)| *le)
    }
}

/// What the operator's first pod serves.
///
/// # Errors
/// When it serves no metrics.
pub fn metrics(rig: &Rig) -> Result<String> {
    let address = "jsonpath={.items[0].status.podIP}";
    let pod = rig.kubectl(&["-n", OPERATOR_NAMESPACE, "get", "pods", "-o", address])?;
    http_get(pod.trim(), 8080, "/metrics")
}

/// A GET without a client: the text after the headers.
fn http_get(host: &str, port: u16, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((host, port))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("{host}:{port}{path} sent no answer") };
    ensure!(head.contains(" 200 "), "{host}:{port}{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// CPU time, in seconds.
    pub cpu_s: f64,
    /// Resident memory, in MB.
    pub rss_mb: f64,
    /// Open files and connections.
    pub files: usize,
}

impl Footprint {
    /// Of the leader.
    ///
    /// # Errors
    /// When there is none, or its process cannot be read.
    pub fn of_leader(rig: &Rig) -> Result<Self> {
        Self::of_process(&process_of(pod_of(&holder(rig)?))?)
    }

    /// Of a process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of_process(process: &str) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name may have spaces in it; after it come the state and 10 fields, then the ticks of user and system.
        let (_, fields) = stat.rsplit_once(')').context("no name in /proc/*/stat")?;
        let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let Some(rss) = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()) else {
            bail!("process {process} has no VmRSS");
        };
        // CLK_TCK is 100 on every Linux that Rust's tier 1 knows.
        let files = std::fs::read_dir(format!("/proc/{process}/fd"))?.count();
        Ok(Self { cpu_s: ticks / 100.0, rss_mb: rss.parse::<f64>()? / 1000.0, files })
    }
}
