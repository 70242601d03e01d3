//! The operator's metrics as others read them.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::operator::metrics;
use super::rig::Rig;

/// Gives what the operator serves to the strict parser of Prometheus' own Python client.
///
/// # Errors
/// When the operator serves none, or none that the parser takes.
pub fn run(rig: &Rig) -> Result<()> {
    let mut reader = Command::new(rig.paths.python())
        .arg(rig.paths.root.join("e2e/openmetrics.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    reader.stdin.take().context("no standard input")?.write_all(metrics(rig)?.as_bytes())?;
    let read = reader.wait_with_output()?;
    ensure!(read.status.success(), "the metrics are not read: {}", String::from_utf8_lossy(&read.stderr));
    println!("check: Prometheus' strict parser reads the metrics: {}", String::from_utf8_lossy(&read.stdout).trim());
    Ok(())
}
