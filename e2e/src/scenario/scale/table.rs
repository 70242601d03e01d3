//! What a fleet costs the operator, the API server and Redis, as a table.

use std::fmt::Write as _;

use anyhow::Result;
use jiff::Timestamp;

use super::members::Seen;
use super::shifted::Shifted;
use crate::scenario::audit;
use crate::scenario::operator::{Footprint, Passes};
use crate::scenario::redis::{command, figure};
use crate::scenario::rig::Rig;

/// What was used until a moment.
#[derive(Clone, Debug)]
pub struct Costs {
    at_ms: i64,
    operator: Footprint,
    passes: Passes,
    redis_cpu_s: f64,
    redis_commands: f64,
    redis_mb: f64,
    writes: usize,
}

/// What was used between two moments.
#[derive(Clone, Debug)]
pub struct Spent {
    operator_cores: f64,
    operator_mb: f64,
    passes: f64,
    pass_p99_s: Option<f64>,
    redis_cores: f64,
    redis_commands: f64,
    redis_mb: f64,
    writes: f64,
}

/// A fleet and what it costs.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which fleet.
    pub what: String,
    /// Members that live.
    pub members: usize,
    /// In a minute.
    pub costs: Spent,
    /// By the members, in the same minute.
    pub seen: Seen,
    /// After the demand went over to the other half of them.
    pub shifted: Shifted,
}

impl Costs {
    /// Until now.
    ///
    /// # Errors
    /// When something cannot be read.
    pub async fn so_far(rig: &Rig) -> Result<Self> {
        let info: String = command(rig, "INFO").await?;
        let figure = |name| figure(&info, name);
        Ok(Self {
            at_ms: Timestamp::now().as_millisecond(),
            operator: Footprint::of_leader(rig)?,
            passes: Passes::so_far(rig)?,
            redis_cpu_s: figure("used_cpu_user")? + figure("used_cpu_sys")?,
            redis_commands: figure("total_commands_processed")?,
            redis_mb: figure("used_memory")? / 1e6,
            writes: audit::requests(rig)?.iter().filter(|request| request.right.is_write()).count(),
        })
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Spent {
        let seconds = (self.at_ms - before.at_ms) as f64 / 1e3;
        let passes = self.passes.since(&before.passes);
        Spent {
            operator_cores: (self.operator.cpu_s - before.operator.cpu_s) / seconds,
            operator_mb: self.operator.rss_mb,
            passes: passes.count / seconds,
            pass_p99_s: passes.p99_s(),
            redis_cores: (self.redis_cpu_s - before.redis_cpu_s) / seconds,
            redis_commands: (self.redis_commands - before.redis_commands) / seconds,
            redis_mb: self.redis_mb,
            writes: (self.writes.saturating_sub(before.writes)) as f64 / seconds,
        }
    }
}

impl Row {
    /// As a line.
    #[must_use]
    pub fn told(&self) -> String {
        let Spent { operator_cores, operator_mb, passes, redis_cores, redis_commands, redis_mb, writes, .. } =
            &self.costs;
        format!(
            "| {} | {} | {:.0} % | {operator_mb:.0} MB | {passes:.0}/s | {} | {writes:.1}/s | {:.0}/s | {} | {} | {:.0} % | {redis_commands:.0}/s | {redis_mb:.0} MB | {} | {} |",
            self.what,
            self.members,
            operator_cores * 100.0,
            ms(self.costs.pass_p99_s.map(|s| s * 1e3)),
            self.seen.calls as f64 / super::WINDOW.as_secs_f64(),
            self.seen.failed,
            ms(self.seen.p99_ms),
            redis_cores * 100.0,
            self.shifted.served_s(0.99).map_or_else(|| "-".to_owned(), |s| format!("{s:.1} s")),
            self.shifted.admitted_part().map_or_else(|| "-".to_owned(), |part| format!("{:.1} %", part * 100.0)),
        )
    }
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"))
}

/// All rows, in Markdown.
#[must_use]
pub fn text(rows: &[Row]) -> String {
    let heads = [
        "Fleet",
        "Members",
        "Operator CPU",
        "Operator RSS",
        "Passes",
        "99 % of passes within",
        "Kubernetes writes",
        "Members' calls",
        "Failed",
        "99 % of calls within",
        "Redis CPU",
        "Redis commands",
        "Redis memory",
        "99 % of those that become busy served within",
        "Of their requests in 30 s",
    ];
    let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for row in rows {
        let _ = writeln!(text, "{}", row.told());
    }
    text
}
