//! `tokenbudget simulate`: its options, and what it does.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::compare::{Comparison, Contender, ms};
use super::demand::{Offered, read_trace};
use super::fault::Fault;
use super::report::{self, Row};
use super::scenarios;
use super::setup::{Setup, Skew};
use super::size::Size;
use crate::output::Format;
use crate::plot::{Compared, Curve, compared, thousands};

/// Nothing is said on stderr by runs that are shorter.
const QUIET: Duration = Duration::from_secs(3);

/// How often progress is said after that.
const PROGRESS: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  # Would 20 members use a budget of 600,000 tokens per minute as well as one central bucket would?
  tokenbudget simulate --members 20 --budget 600000

  # Small budget, long prompts, an output limit that is twice what is used, requests in bursts of 4
  tokenbudget simulate --members 40 --budget 200000 --size 3000~1.5 --over 2 --latency 8~0.5 --burst 4

  # Demand as it was measured: parts of the members, or a whole trace (seconds,tokens[,reserve[,latency]])
  tokenbudget simulate --members 4 --skew 60,25,10,5
  tokenbudget simulate --members 12 --budget 900000 --trace requests.csv

  # An autoscaler and a Redis that goes away, drawn
  tokenbudget simulate --members 4 --most 64 --at 120 scale=64 --at 300 ledger-down=20s --plot out.svg

  # The table of docs/simulation.md; exits with 1 when a row misses its bar
  tokenbudget simulate --table > simulation.md

Events of --at (the seconds come first):
  scale=64             the autoscaler wants 64 members
  turn                 the demand turns over to other members
  budget=40%           the budget becomes 40 % of what it was at first
  ledger-down=20s      Redis refuses connections for so long (s or m)
  ledger-silent=20s    Redis is not heard
  failover=2s          a Redis replica takes over that lacks the last seconds
  flush, restart       Redis loses its data; starts again with its data
  operator-away=10m    the operator is away
  kill=3, freeze=3:20s the member at place 3 (from 0) is killed, or stands still
  cut-off=3:20s        the member at place 3 cannot reach Redis";

/// Options of `simulate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Simulate {
    /// LiteLLM processes at the start (replicas times workers).
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub members: u32,

    /// The most processes that there may be (maxReplicas, surge included, times workers): the budget over it is what a process may
    /// spend without Redis. Left out: what `--members` and the events come to.
    #[arg(long)]
    pub most: Option<u32>,

    /// Tokens per minute of the provider's quota.
    #[arg(long, default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub budget: u64,

    /// Tokens offered, as a multiple of the budget.
    #[arg(long, default_value_t = 1.2)]
    pub load: f64,

    /// How the demand falls on the members: a Zipf exponent (0 is even), or measured parts as 60,25,10,5.
    #[arg(long, default_value = "1.1", value_parser = skew)]
    pub skew: Skew,

    /// Tokens of a request: 500, or 500~2 for lognormal with mean 500 and coefficient of variation 2.
    #[arg(long, default_value = "500~2")]
    pub size: Size,

    /// What is reserved when a request is admitted, as a multiple of what it costs.
    #[arg(long, default_value_t = 1.0)]
    pub over: f64,

    /// Seconds until the end of an answer: 5, or 5~1 for lognormal.
    #[arg(long, default_value = "5~1")]
    pub latency: Size,

    /// Requests that come at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub burst: u32,

    /// Seconds that a request may wait for tokens (maxWait).
    #[arg(long, default_value_t = 0.25)]
    pub max_wait: f64,

    /// Seconds to simulate. With --trace: until its end.
    #[arg(long)]
    pub seconds: Option<f64>,

    /// Seconds at the start that are not judged.
    #[arg(long, default_value_t = 120.0)]
    pub warm: f64,

    /// Same seed, same result.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// A recorded trace, as CSV of seconds,tokens[,reserve[,latency]] in the order of time; takes the place of load, size, over,
    /// latency and burst.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["load", "size", "over", "latency", "burst"])]
    pub trace: Option<PathBuf>,

    /// Something that happens; repeat it. See below.
    #[arg(long, num_args = 2, value_names = ["SECONDS", "EVENT"], action = clap::ArgAction::Append)]
    pub at: Vec<String>,

    /// Messages get lost, late and doubled, and clocks differ.
    #[arg(long)]
    pub rough: bool,

    /// Draw use over time against the budget, and requests refused, as SVG.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,

    /// Run the table of docs/simulation.md and print it as Markdown (or JSON); fails when a bar is missed. Only --seed, --output and
    /// --plot go with it.
    #[arg(long, conflicts_with_all = ["members", "most", "budget", "load", "skew", "size", "over", "latency", "burst", "max_wait",
        "seconds", "warm", "trace", "at", "rough"])]
    pub table: bool,
}

fn skew(text: &str) -> Result<Skew, String> {
    let parts: Result<Vec<f64>, _> = text.split(',').map(|part| part.trim().parse::<f64>()).collect();
    match parts.as_deref() {
        Ok([exponent]) if exponent.is_finite() && *exponent >= 0.0 => Ok(Skew::Zipf(*exponent)),
        Ok(parts)
            if parts.len() > 1
                && parts.iter().all(|p| p.is_finite() && *p >= 0.0)
                && parts.iter().sum::<f64>() > 0.0 =>
        {
            Ok(Skew::Parts(parts.to_vec()))
        }
        _ => Err("expected a Zipf exponent of at least 0, as 1.1, or parts, as 60,25,10,5".to_owned()),
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Happens {
    Fault(Fault),
    Turn,
}

/// `20s`, `5m` or `20` as seconds.
fn duration(text: &str) -> anyhow::Result<f64> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds = number.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    Ok(unit * seconds.with_context(|| format!("{text:?} is no time; write 20s or 5m"))?)
}

fn event(text: &str) -> anyhow::Result<Happens> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let whole = |text: &str| text.parse::<usize>().with_context(|| format!("{text:?} in {name} is no whole number"));
    let placed = || -> anyhow::Result<(usize, f64)> {
        let (place, lasts) =
            value.split_once(':').with_context(|| format!("write {name}=PLACE:TIME, as {name}=3:20s"))?;
        Ok((whole(place)?, duration(lasts)?))
    };
    Ok(Happens::Fault(match name {
        "turn" => return Ok(Happens::Turn),
        "scale" => Fault::Scale(whole(value)?),
        "budget" => Fault::Budget(whole(value.trim_end_matches('%').trim())? as u64),
        "ledger-down" => Fault::LedgerDown(duration(value)?),
        "ledger-silent" => Fault::LedgerSilent(duration(value)?),
        "failover" => Fault::Failover(duration(value)?),
        "flush" => Fault::Flush,
        "restart" => Fault::Restart(true),
        "operator-away" => Fault::OperatorAway(duration(value)?),
        "kill" => Fault::Kill(whole(value)?),
        "freeze" => placed().map(|(place, lasts)| Fault::Freeze(place, lasts))?,
        "cut-off" => placed().map(|(place, lasts)| Fault::CutOff(place, lasts))?,
        _ => bail!("there is no event {name:?}; `tokenbudget simulate --help` names them"),
    }))
}

impl Simulate {
    /// The run that the options describe, and its trace.
    fn setup(&self) -> anyhow::Result<(Setup, Vec<Offered>)> {
        let mut setup = Setup {
            members: self.members as usize,
            budget: self.budget,
            load: self.load,
            skew: self.skew.clone(),
            size: self.size,
            over: self.over,
            latency: self.latency,
            burst: self.burst,
            max_wait: self.max_wait,
            rough: self.rough,
            seed: self.seed,
            ..Setup::default()
        };
        let mut marks = Vec::new();
        for pair in self.at.chunks(2) {
            let [at, text] = pair else { bail!("--at takes SECONDS and EVENT") };
            let at = duration(at)?;
            match event(text).with_context(|| format!("--at {at} {text}"))? {
                Happens::Fault(fault) => marks.push((at, fault)),
                Happens::Turn => setup.turn_at = Some(at),
            }
        }
        marks.sort_by(|a, b| a.0.total_cmp(&b.0));
        let scaled = marks.iter().filter_map(|(_, fault)| match fault {
            Fault::Scale(to) => u32::try_from(*to).ok(),
            _ => None,
        });
        let most = scaled.fold(self.members, u32::max);
        ensure!(self.most.is_none_or(|given| given >= most), "--most is below the {most} members that there will be");
        setup.most = self.most.unwrap_or(most);
        setup.faults = marks;
        for (name, value) in [("--load", self.load), ("--over", self.over), ("--max-wait", self.max_wait)] {
            ensure!(value.is_finite() && value >= 0.0, "{name} has to be at least 0");
        }
        ensure!(self.load > 0.0 && self.size.mean > 0.0, "--load and --size have to be above 0");
        let trace = match &self.trace {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                let trace = read_trace(&text, self.seed).with_context(|| path.display().to_string())?;
                let end =
                    trace.last().map(|last| last.at.ceil()).with_context(|| format!("{} is empty", path.display()))?;
                setup.seconds = self.seconds.unwrap_or(end);
                setup.skewed(trace)
            }
            None => {
                setup.seconds = self.seconds.unwrap_or(setup.seconds);
                setup.trace()
            }
        };
        let seconds = setup.seconds;
        ensure!(seconds.is_finite() && seconds <= 1e7, "--seconds has to be at most ten million");
        ensure!(self.warm < seconds, "nothing is left to judge: --warm is {} of {seconds} s", self.warm);
        setup.judged = (self.warm, seconds);
        Ok((setup, trace))
    }

    /// Simulates, prints and draws. False: a bar was missed, or the promise was broken.
    ///
    /// # Errors
    /// What cannot be read, written or understood.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        if self.table {
            return self.run_table(out);
        }
        let (setup, trace) = self.setup()?;
        let mut progress = Progress::new();
        let comparison = Comparison::of(&setup, &trace, &mut |at| {
            progress.say(|| format!("{at:.0} of {:.0} s simulated", setup.seconds));
        });
        let text = if self.output == Format::Json {
            report::json(&setup, &comparison)? + "\n"
        } else {
            report::text(&setup, &comparison)
        };
        out.write_all(text.as_bytes())?;
        self.draw(&setup, &comparison)?;
        Ok(comparison.run.breach.is_none())
    }

    fn run_table(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        let cases = scenarios::table(self.seed);
        let mut progress = Progress::new();
        let mut rows = Vec::new();
        for (place, case) in cases.iter().enumerate() {
            let runs = case.run(&mut |seed, at| {
                let row = format!("row {} of {}, {} members, {}", place + 1, cases.len(), case.members, case.what);
                progress.say(|| format!("{row}: seed {} of {}, {at:.0} s", seed + 1, case.seeds));
            });
            // The picture is of the row in which the fleet is scaled.
            if let Some((_, comparison)) = runs.runs.first().filter(|_| case.members.contains("->")) {
                self.draw(&case.setup, comparison)?;
            }
            let row = Row::of(case, &runs);
            for missed in row.bars.iter().filter(|_| !row.met) {
                eprintln!("MISSED: {} members, {}: {missed}", row.members, row.case);
            }
            rows.push(row);
        }
        let text = if self.output == Format::Json {
            serde_json::to_string_pretty(&rows)? + "\n"
        } else {
            report::markdown(&rows, self.seed)
        };
        out.write_all(text.as_bytes())?;
        Ok(rows.iter().all(|row| row.met))
    }

    fn draw(&self, setup: &Setup, comparison: &Comparison) -> anyhow::Result<()> {
        let Some(path) = &self.plot else { return Ok(()) };
        let curve = |who: Contender| {
            let served = comparison.served(who);
            let worst60s = comparison.tally(who).worst60s;
            Curve { name: who.name(), admitted: &served.admitted, refused: &served.refused, worst60s }
        };
        let turn = setup.turn_at.map(|at| (at, "demand turns over".to_owned()));
        let chart = Compared {
            title: format!(
                "{} members share {} tokens per minute (simulated)",
                members(comparison),
                thousands(setup.budget)
            ),
            subtitle: if self.trace.is_some() {
                "a recorded trace".to_owned()
            } else {
                format!("demand {} times the budget, sizes {} tokens, seed {}", setup.load, setup.size, setup.seed)
            },
            budgets: setup.budgets(),
            length_ms: ms(setup.seconds),
            curves: Contender::ALL.map(curve).into(),
            marks: setup.faults.iter().map(|(at, fault)| (*at, name(*fault))).chain(turn).collect(),
        };
        std::fs::write(path, compared(&chart)).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// How many members there were: `20`, or `4 to 64`.
fn members(comparison: &Comparison) -> String {
    // They start one by one.
    let counts = || comparison.fleet.members.iter().filter(|(at, _)| *at > 0.0).map(|(_, members)| *members);
    let first = comparison.fleet.members.iter().rfind(|(at, _)| *at <= 0.0).map_or(0, |(_, members)| *members);
    let (least, most) = (counts().fold(first, u32::min), counts().fold(first, u32::max));
    if least == most { most.to_string() } else { format!("{least} to {most}") }
}

/// A fault in a few words, for a mark.
fn name(fault: Fault) -> String {
    match fault {
        Fault::Scale(to) => format!("{to} members"),
        Fault::Budget(percent) => format!("budget {percent} %"),
        Fault::LedgerDown(seconds) => format!("Redis away {seconds} s"),
        Fault::OperatorAway(seconds) => format!("operator away {seconds} s"),
        other => format!("{other:?}"),
    }
}

/// Says on stderr how far something is, if it takes long.
struct Progress {
    started: Instant,
    last: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self { started: Instant::now(), last: None }
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        let due = self.last.map_or_else(|| self.started.elapsed() >= QUIET, |last| last.elapsed() >= PROGRESS);
        if due {
            eprintln!("{}", text());
            self.last = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
