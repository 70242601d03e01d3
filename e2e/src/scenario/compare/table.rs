//! The runs as tables and a plot for the documentation. Pure.

use clap::ValueEnum;

use super::arms::{Arm, Demand};
use super::published::{self, Told};
use super::run::{Figures, Run};
use crate::judge;
use crate::load::LoadSpec;
use crate::plot::{Compared, Curve};

const HEAD: &str = "| | Worst 60 s | Worst minute of the clock | Used | Refused beyond ideal | p50 | p99 | Redis commands a request | Lost |\n|---|---|---|---|---|---|---|---|---|\n";

const INTRODUCTION: &str = "# Benchmarks

TokenBudget beside what LiteLLM has of its own. Written by `make bench`; nothing here is typed in. The figures of each run are in
[benchmarks.json](benchmarks.json), to which `target/release/scenario bench --add` adds a round.

Five replicas of LiteLLM on a real control plane, with a real Redis, before a provider of ours that speaks the OpenAI API and counts every
token: its count is the judge. The budget is {budget} tokens per minute. Each way gets the same requests (seeded: Zipf 1.1 over the pods,
lognormal sizes; of {mean} tokens in the mean, {input} of them prompt, with `max_tokens` {most}; not streamed where nothing else is said), starts with an
empty Redis and new processes that have answered some requests, and begins each load with an empty window at the same second of the clock's minute:
30 in the first round, 0 in the second, 45 in the third. LiteLLM does not retry (`num_retries: 0`), as its router otherwise sleeps for 60 s after
a refusal of usage-based-routing-v2. A request that has no answer after 20 s is lost. {sent} {rounds}

- **Worst 60 s**: the most tokens that the provider admitted in any 60 s. **Worst minute of the clock**: the same in whole minutes, by which
  LiteLLM's limiters count.
- **Used**: what was admitted, of what one ideal bucket with a rolling minute would have admitted of the same requests.
- **Refused beyond ideal**: requests that got a 429, less those that the bucket refuses; negative where too many were admitted.
- **p50, p99**: of the answers' latency; the provider takes 0.3 s. **Lost**: requests that failed with anything but 429.
- **Redis commands a request**: all that Redis ran, those inside of scripts and of beats included. TokenBudget's are not on the way of a
  request: five processes beat twice a second, and draw when what they were lent runs short.
- itpm/otpm splits the budget into input and output as the mean request has them.
- The demand with streams is only for one way of each kind: a counter that lacks what streams used admits more of it than of the first.

![Tokens admitted in the last 60 s under 1.3 times the budget, round {plotted}](benchmarks.svg)

";

/// The page of the documentation; the plot is of the round `plotted`.
pub fn document(budget: u64, runs: &[Told], spec: &LoadSpec, plotted: u32) -> String {
    let told = match published::whole_rounds(runs) {
        Some(1) => format!("Each ran once, with commit {}.", commits(runs)),
        Some(rounds) => format!(
            "{rounds} rounds of all of them, one way after the other, each with other requests (commits {}); a cell has the least and \
             the greatest.",
            commits(runs)
        ),
        None => format!("This is a part of it, with commit {}.", commits(runs)),
    };
    let head = [
        ("{budget}", budget.to_string()),
        ("{mean}", format!("{:.0}", spec.mean_tokens())),
        ("{input}", format!("{:.0}", spec.prompt_tokens.mean)),
        ("{most}", spec.max_tokens.map_or_else(|| "missing".to_owned(), |most| format!("{:.0}", most.mean))),
        ("{sent}", sent(runs)),
        ("{rounds}", told),
        ("{plotted}", plotted.to_string()),
    ];
    head.iter().fold(INTRODUCTION.to_owned(), |text, (mark, with)| text.replace(mark, with)) + &tables(budget, runs)
}

/// Whether the load was what it should be.
fn sent(runs: &[Told]) -> String {
    let late = runs.iter().map(|run| run.figures.late_ms).fold(0.0, f64::max);
    match runs.iter().map(|run| run.figures.dropped).sum() {
        0 => format!("All requests were sent, each at most {late:.0} ms later than planned."),
        dropped => {
            format!("{dropped} requests were not sent, as too many had no answer; the rest at most {late:.0} ms late.")
        }
    }
}

/// The commits of the rounds, in their order.
fn commits(runs: &[Told]) -> String {
    let mut all: Vec<&str> = runs.iter().map(|run| run.commit.as_str()).collect();
    all.dedup();
    all.join(", ")
}

/// A table for each demand; a cell has the figures of all runs, the least and the greatest.
fn tables(budget: u64, runs: &[Told]) -> String {
    let demands = Demand::value_variants().iter().filter(|&of| runs.iter().any(|run| run.demand() == Some(*of)));
    demands.map(|demand| table(budget, *demand, runs)).collect::<Vec<_>>().join("\n")
}

fn table(budget: u64, demand: Demand, runs: &[Told]) -> String {
    let mut text = format!("## {}\n\n{HEAD}", capitalised(&demand.told()));
    // Rounded up: 100.0 % is never more than the budget.
    let percent = |tokens: u64| Some((tokens as f64 * 1000.0 / budget as f64).ceil() / 10.0);
    let all = |arm: Arm| runs.iter().filter(move |run| run.demand() == Some(demand) && run.arm() == Some(arm));
    let of: Vec<&Figures> = all(Arm::TokenBudget).map(|run| &run.figures).collect();
    if !of.is_empty() {
        let worst = span(&of, &|run| percent(run.ideal_worst.0), 1, " %");
        let minute = span(&of, &|run| percent(run.ideal_worst.1), 1, " %");
        text += &format!("| One ideal bucket, computed | {worst} | {minute} | 100.0 % | 0 | - | - | - | - |\n");
    }
    for arm in Arm::value_variants() {
        let of: Vec<&Figures> = all(*arm).map(|run| &run.figures).collect();
        if of.is_empty() {
            continue;
        }
        let (rounds, ran) = (published::last_round(runs), of.len());
        let part = if ran < rounds as usize { format!(" ({ran} of {rounds} rounds)") } else { String::new() };
        let cell = |show: &dyn Fn(&Figures) -> Option<f64>, digits: usize, unit: &str| span(&of, show, digits, unit);
        text += &format!(
            "| {}{part} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            arm.told().1,
            cell(&|run| percent(run.worst_60s), 1, " %"),
            cell(&|run| percent(run.worst_minute), 1, " %"),
            cell(&|run| Some((run.used * 1000.0).floor() / 10.0), 1, " %"),
            cell(&|run| Some(run.refused_beyond as f64), 0, ""),
            cell(&|run| run.latency_ms.map(|(p50, _)| p50), 0, " ms"),
            cell(&|run| run.latency_ms.map(|(_, p99)| p99), 0, " ms"),
            cell(&|run| run.commands, 1, ""),
            cell(&|run| Some(run.lost as f64), 0, ""),
        );
    }
    text
}

fn span(runs: &[&Figures], show: &dyn Fn(&Figures) -> Option<f64>, digits: usize, unit: &str) -> String {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| show(run)).collect();
    values.sort_by(f64::total_cmp);
    let text = |value: f64| format!("{value:.digits$}");
    match (values.first(), values.last()) {
        (Some(least), Some(most)) if text(*least) != text(*most) => {
            format!("{} to {}{unit}", text(*least), text(*most))
        }
        (Some(value), _) => format!("{}{unit}", text(*value)),
        _ => "-".to_owned(),
    }
}

fn capitalised(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// TokenBudget, the ideal bucket and the two limiters of LiteLLM that are used most, under 1.3 times the budget.
pub fn plot(budget: u64, runs: &[(Demand, Arm, Run)]) -> Option<String> {
    let of = |arm: Arm| runs.iter().find(|(d, a, _)| *d == Demand::Over && *a == arm).map(|(.., run)| run);
    let ours = of(Arm::TokenBudget)?;
    let from = |admitted: &[judge::Arrival], from_ms: u64| -> Vec<judge::Arrival> {
        let since = |a: &judge::Arrival| judge::Arrival { at_ms: a.at_ms.saturating_sub(from_ms), ..*a };
        let mut moved: Vec<_> = admitted.iter().map(since).collect();
        moved.sort_by_key(|a| a.at_ms);
        moved
    };
    let lines: Vec<(&str, Vec<judge::Arrival>, Vec<u64>)> = [
        ("TokenBudget", Some((ours.admitted.as_slice(), ours))),
        ("one ideal bucket", Some((ours.ideal.admitted.as_slice(), ours))),
        ("enforce_model_rate_limits", of(Arm::Enforce).map(|run| (run.admitted.as_slice(), run))),
        ("usage-based-routing-v2", of(Arm::UsageBased).map(|run| (run.admitted.as_slice(), run))),
    ]
    .into_iter()
    .filter_map(|(name, of)| {
        let (admitted, run) = of?;
        let refused = if name == "one ideal bucket" { &[][..] } else { &run.refused_ms };
        let refused = refused.iter().map(|at| at.saturating_sub(run.from_ms)).collect();
        Some((name, from(admitted, run.from_ms), refused))
    })
    .collect();
    let length_ms = lines.iter().flat_map(|(_, admitted, _)| admitted.last()).map(|a| a.at_ms).max()? + 1000;
    let curves = lines.iter().map(|(name, admitted, refused)| Curve {
        name,
        admitted,
        refused,
        worst60s: judge::worst_60s_exact(admitted).tokens,
    });
    Some(crate::plot::compared(&Compared {
        title: "Tokens that the provider admitted in the last 60 s".to_owned(),
        subtitle: "5 replicas of LiteLLM, 1.3 times the budget, the same requests for each".to_owned(),
        budgets: vec![(0.0, budget)],
        length_ms,
        curves: curves.collect(),
        marks: Vec::new(),
    }))
}
