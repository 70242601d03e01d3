//! Results for people (text, Markdown) and for programs (JSON).

use std::fmt::Write as _;

use serde::Serialize;

use super::compare::{Comparison, Contender, Tally};
use super::scenarios::{Bar, Case, Finding, Runs};
use super::setup::Setup;

/// A row of the table: a case and what came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// How many members.
    pub members: String,
    /// What happens.
    pub case: String,
    /// How many seeds are added up.
    pub seeds: u64,
    /// The fleet's tokens over the ideal bucket's.
    pub use_of_ideal: f64,
    /// A static split's tokens over the ideal bucket's.
    pub split_use_of_ideal: f64,
    /// Requests refused that the ideal bucket did not, of those offered.
    pub refused_beyond_ideal: f64,
    /// The fullest 60 s over the budget, by contender: never above 1 for TokenBudget.
    pub worst60s: [f64; 4],
    /// The longest time without an admission, in ms.
    pub longest_gap_ms: u64,
    /// The same of the ideal bucket.
    pub ideal_longest_gap_ms: u64,
    /// Ledger calls a second.
    pub calls_per_second: f64,
    /// What had to be reached, in words, with what was.
    pub bars: Vec<String>,
    /// Use over the ideal bucket's in stretches of it.
    pub shown: Vec<(String, f64)>,
    /// What broke the promise, if anything did.
    pub breach: Option<String>,
    /// Everything was reached.
    pub met: bool,
}

impl Row {
    /// The figures of a case.
    #[must_use]
    pub fn of(case: &Case, runs: &Runs) -> Self {
        let findings = case.findings(runs);
        let worst60s = Contender::ALL.map(|who| of_budget(runs.tally(who).worst60s, case.setup.budget));
        let breach = runs.runs.iter().find_map(|(_, comparison)| comparison.run.breach.clone());
        let within = runs.tally(Contender::TokenBudget).worst60s <= case.setup.budget && breach.is_none();
        let calls: u64 = runs.runs.iter().map(|(_, comparison)| comparison.run.calls).sum();
        let ideal = runs.tally(Contender::Ideal);
        let mut shown: Vec<(String, f64)> =
            case.shown.iter().map(|&(name, from, to)| (name.to_owned(), runs.use_in(from, to))).collect();
        if case.bars.iter().any(|bar| matches!(bar, Bar::NewestShare(_))) {
            shown.push(("of the minute as a whole".to_owned(), runs.newest_share(&case.setup, 60.0)));
        }
        Self {
            members: case.members.clone(),
            case: case.what.clone(),
            seeds: case.seeds,
            use_of_ideal: runs.use_of_ideal(),
            split_use_of_ideal: of_budget(runs.tally(Contender::Split).tokens, ideal.tokens),
            refused_beyond_ideal: runs.refused_beyond(),
            worst60s,
            longest_gap_ms: runs.tally(Contender::TokenBudget).longest_gap_ms,
            ideal_longest_gap_ms: ideal.longest_gap_ms,
            calls_per_second: calls as f64 / (case.setup.seconds * case.seeds as f64),
            bars: findings.iter().map(in_words).collect(),
            shown,
            breach,
            met: within && findings.iter().all(|finding| finding.met),
        }
    }
}

impl Row {
    /// What had to be reached, and what was.
    fn words(&self) -> String {
        let mut words = self.bars.join("; ");
        if !self.shown.is_empty() {
            let shown = self.shown.iter().map(|(name, part)| format!("{name} {}", percent_down(*part)));
            let _ = write!(words, " ({})", shown.collect::<Vec<_>>().join(", "));
        }
        words
    }
}

fn of_budget(tokens: u64, budget: u64) -> f64 {
    tokens as f64 / budget.max(1) as f64
}

/// Cut, not rounded: 98.99 % is not 99.0 %.
fn percent_down(part: f64) -> String {
    format!("{:.2} %", (part * 10_000.0 + 1e-6).floor() / 100.0)
}

/// Rounded up: 100.001 % is not 100.00 %.
fn percent_up(part: f64) -> String {
    format!("{:.2} %", (part * 10_000.0 - 1e-6).ceil().max(0.0) / 100.0)
}

fn percent_up_signed(part: f64) -> String {
    format!("{:.2} %", (part * 10_000.0 - 1e-6).ceil() / 100.0)
}

fn plain(part: f64) -> String {
    format!("{} %", (part * 1000.0).round() / 10.0)
}

fn in_words(finding: &Finding) -> String {
    let value = finding.value;
    let (what, value) = match finding.bar {
        Bar::UseOfIdeal(least) => (format!("use >= {} of ideal", plain(least)), percent_down(value)),
        Bar::UseOfBudget(least) => (format!("use >= {} of the budget", plain(least)), percent_down(value)),
        Bar::RefusedBeyond(most) => (format!("refused beyond ideal <= {}", plain(most)), percent_up_signed(value)),
        Bar::BackWithin(most) => (format!("back to 99 % within {most} s"), format!("{value:.1} s")),
        Bar::UnderWithin(most) => (format!("under the new budget within {most} s"), format!("{value:.1} s")),
        Bar::NewestShare(least) => {
            (format!("newest has >= {} of its share in 65 s", plain(least)), percent_down(value))
        }
    };
    format!("{what}: {} {value}", if finding.met { "yes," } else { "NO," })
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

/// The text of docs/simulation.md.
#[must_use]
pub fn markdown(rows: &[Row], seed: u64) -> String {
    let mut out = String::from(HEAD);
    out.push_str("| members | case | has to reach, and does | use / ideal | refused beyond ideal | worst 60 s | longest without admission (ideal) | ledger calls/s | |\n|---|---|---|---|---|---|---|---|---|\n");
    for row in rows {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} ({}) | {:.0} | {} |",
            row.members,
            row.case,
            row.words(),
            percent_down(row.use_of_ideal),
            percent_up_signed(row.refused_beyond_ideal),
            percent_up(row.worst60s[0]),
            seconds(row.longest_gap_ms),
            seconds(row.ideal_longest_gap_ms),
            row.calls_per_second,
            if row.met { "ok" } else { "**missed**" },
        );
    }
    for row in rows {
        if let Some(breach) = &row.breach {
            let _ = writeln!(out, "\n**The promise was broken** ({} members, {}): {breach}", row.members, row.case);
        }
    }
    out.push_str(AGAINST);
    for row in rows {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            row.members,
            row.case,
            percent_down(row.use_of_ideal),
            percent_down(row.split_use_of_ideal),
            percent_up(row.worst60s[0]),
            percent_up(row.worst60s[3]),
        );
    }
    let _ = write!(out, "\nSeeds from {seed} on. {}", FOOT);
    out
}

const HEAD: &str = "# Simulation

Written by `make simulation` (`tokenbudget simulate --table`); do not edit. The agent's and the ledger's rules run in virtual time,
the same text in Rust that the Lua scripts and the agent are held to.

Budget 600,000 tokens per minute, demand 1.2 times that, Zipf 1.1 over the members, lognormal sizes with mean 500 and
coefficient of variation 2, unless a row says otherwise. *Ideal* is one central rolling minute that knows everything at once, over
the same trace. The first 120 s are not judged; figures are sums over 10 seeds (the turn-over: 40), the worst
60 s and the longest time without an admission are the worst of all seeds. Use is cut, the worst 60 s are rounded up.

";

const AGAINST: &str = "
## Against what is there today

A static split gives each member budget/N. LiteLLM's own shared counter is read before a call and charged after it, by minutes of the
clock: it lets more than the budget through. What is above 100 % in 60 s a provider answers with 429.

| members | case | TokenBudget: use / ideal | static split: use / ideal | TokenBudget: worst 60 s | LiteLLM: worst 60 s |
|---|---|---|---|---|---|
";

const FOOT: &str = "What a row means:

- *Back to 99 %*: from then on the last 60 s of the fleet hold 99 % of the ideal bucket's, at every tenth of a second.
- *Under the new budget*: from then on every 60 s do; the slowest seed counts.
- *Newest has its share*: what it used in the 5th to 65th second of its life, over its max-min share of what the fleet spent in each
  5 s of them: in some seconds hardly anything leaves a rolling minute, and no bucket has anything for anybody. In brackets, the
  same of the minute as a whole: there it also misses what nobody could have had, and requests larger than what is at hand.
- *The operator away* and *Redis away for 5 minutes* are judged while they are away; *one more member* in the two minutes from its start.
- What else stands in brackets is use over the ideal bucket's in that stretch.
- *Worst 60 s* of the cut is against the larger budget; each moment is held to the budget then, and to what is declared after a cut.
- Calls are counted one by one. Members beat each 0.5 s, more slowly above 4,000 members, and under pressure as soon as a
  5000th of the budget has left their window.

![Use, and requests refused, over time](simulation.svg)
";

/// One run beside its baselines, for a terminal.
#[must_use]
pub fn text(setup: &Setup, comparison: &Comparison) -> String {
    let mut out = String::new();
    let ideal = comparison.tally(Contender::Ideal).tokens;
    let _ = writeln!(
        out,
        "{} members, {} tokens per minute, {} requests offered from {} s to {} s\n",
        setup.members, setup.budget, comparison.offered, setup.judged.0, setup.judged.1
    );
    let _ = writeln!(
        out,
        "{:<26}{:>13}{:>10}{:>9}{:>13}{:>14}",
        "", "use / ideal", "admitted", "refused", "worst 60 s", "longest gap"
    );
    for who in Contender::ALL {
        let Tally { tokens, requests, refused, worst60s, longest_gap_ms } = *comparison.tally(who);
        let _ = writeln!(
            out,
            "{:<26}{:>13}{requests:>10}{refused:>9}{:>13}{:>14}",
            who.name(),
            percent_down(of_budget(tokens, ideal)),
            percent_up(of_budget(worst60s, setup.budget)),
            seconds(longest_gap_ms),
        );
    }
    let calls = comparison.run.calls as f64 / setup.seconds.max(1.0);
    let _ = writeln!(
        out,
        "\nLedger calls: {calls:.1} a second, {:.2} by each member.",
        calls / setup.members.max(1) as f64
    );
    match &comparison.run.breach {
        Some(breach) => {
            let _ = writeln!(out, "THE PROMISE WAS BROKEN {breach}");
        }
        None => out.push_str("No 60 s above what is allowed.\n"),
    }
    out
}

/// What [`json`] writes of one contender.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OneJson {
    who: Contender,
    use_of_ideal: f64,
    worst60s_of_budget: f64,
    #[serde(flatten)]
    tally: Tally,
}

/// One run beside its baselines, for programs.
///
/// # Errors
/// When it cannot be written as JSON, which does not happen.
pub fn json(setup: &Setup, comparison: &Comparison) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct All<'a> {
        members: usize,
        budget: u64,
        seed: u64,
        judged_seconds: (f64, f64),
        offered: u64,
        ledger_calls_per_second: f64,
        breach: &'a Option<String>,
        contenders: Vec<OneJson>,
    }
    let ideal = comparison.tally(Contender::Ideal).tokens;
    let one = |who| {
        let tally = *comparison.tally(who);
        OneJson {
            who,
            use_of_ideal: of_budget(tally.tokens, ideal),
            worst60s_of_budget: of_budget(tally.worst60s, setup.budget),
            tally,
        }
    };
    serde_json::to_string_pretty(&All {
        members: setup.members,
        budget: setup.budget,
        seed: setup.seed,
        judged_seconds: setup.judged,
        offered: comparison.offered,
        ledger_calls_per_second: comparison.run.calls as f64 / setup.seconds.max(1.0),
        breach: &comparison.run.breach,
        contenders: Contender::ALL.map(one).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_never_flatter() {
        assert_eq!((percent_down(0.98999), percent_up(1.000_01)), ("98.99 %".to_owned(), "100.01 %".to_owned()));
        assert_eq!((percent_down(0.99), percent_up(1.0)), ("99.00 %".to_owned(), "100.00 %".to_owned()));
    }

    #[test]
    fn a_missed_row_is_seen() {
        let finding = Finding { bar: Bar::UseOfIdeal(0.99), value: 0.9, met: false };
        assert_eq!(in_words(&finding), "use >= 99 % of ideal: NO, 90.00 %");
        let row = Row {
            members: "5".to_owned(),
            case: "saturated".to_owned(),
            seeds: 3,
            use_of_ideal: 0.9,
            split_use_of_ideal: 0.5,
            refused_beyond_ideal: 0.1,
            worst60s: [1.0, 1.0, 0.5, 2.0],
            longest_gap_ms: 1_200,
            ideal_longest_gap_ms: 1_100,
            calls_per_second: 20.0,
            bars: vec![in_words(&finding)],
            shown: vec![("first 3 s".to_owned(), 0.5)],
            breach: Some("at 3 s".to_owned()),
            met: false,
        };
        let text = markdown(&[row], 1);
        assert!(
            text.contains("90.00 % (first 3 s 50.00 %)")
                && text.contains("**missed**")
                && text.contains("**The promise was broken** (5 members, saturated): at 3 s")
        );
    }
}
