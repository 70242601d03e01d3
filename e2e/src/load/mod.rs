//! Open-loop load: requests are offered when they are due, whatever became of
//! the earlier ones.
//!
//! [`run`] offers a [`LoadSpec`] and comes back with a [`LoadReport`] that
//! names every request, with what it cost or would have cost.

mod cli;
mod picker;
mod prompt;
mod report;
mod schedule;
mod send;
mod spec;
mod targets;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

pub use cli::Args;
pub use prompt::Ask;
pub use report::{Class, Counts, LoadReport, Offered, Percentiles, Summary};
pub use schedule::Schedule;
pub use spec::{Burst, LoadSpec, Pacing, Skew, TargetSpec, duration};
pub use targets::{Target, TargetWatch};

use crate::clock::unix_ms;
use crate::judge::Arrival;
use crate::size::SplitMix64;
use picker::Picker;
use send::Sender;

/// Finds the targets of a load and offers it.
///
/// Comes back when the last answer is there, at the latest one timeout after
/// the load's duration. A cancelled load stops at once: what is under way then
/// is counted as [`Class::Cancelled`].
///
/// # Errors
/// When the spec does not make sense, or the targets cannot be found.
pub async fn run(spec: LoadSpec, cancel: CancellationToken) -> Result<LoadReport> {
    spec.check().map_err(anyhow::Error::msg)?;
    let targets = TargetWatch::of(&spec.targets).await?;
    run_on(spec, targets, cancel).await
}

/// Offers a load to targets that are watched already.
///
/// # Errors
/// When the HTTP client cannot be made.
pub async fn run_on(spec: LoadSpec, targets: TargetWatch, cancel: CancellationToken) -> Result<LoadReport> {
    let path = spec.endpoint.path();
    let sender = Sender::new(path, spec.key.as_deref(), spec.timeout, targets)?;
    let (results, mut done) = mpsc::unbounded_channel();
    let mut fleet = Fleet {
        picker: Picker::new(spec.skew, spec.seed ^ 0x91c4),
        rng: SplitMix64::new(spec.seed),
        sender: Arc::new(sender),
        in_flight: Arc::new(AtomicUsize::new(0)),
        results: Some(results),
        cancel: cancel.clone(),
        number: 0,
    };
    let start = Instant::now();
    let mut report = LoadReport { start_ms: unix_ms(), ..LoadReport::default() };
    let mut collected: Vec<(usize, Offered)> = Vec::new();
    let mut schedule = Schedule::new(&spec);
    let mut next = schedule.next();
    let every = spec.progress.unwrap_or(Duration::from_secs(3600));
    let mut tick = interval_at(start + every, every);
    let mut shown = Counts::default();
    let mut counts = Counts::default();
    loop {
        if next.is_none() {
            // The channel closes when the last request under way is done.
            fleet.results = None;
        }
        tokio::select! {
            biased;
            () = cancel.cancelled(), if next.is_some() => next = None,
            () = sleep_until(start + next.unwrap_or_default()), if next.is_some() => {
                let late = start.elapsed().saturating_sub(next.unwrap_or_default());
                report.late_ms_max = report.late_ms_max.max(late.as_secs_f64() * 1000.0);
                fleet.offer(&spec);
                next = schedule.next();
            }
            result = done.recv() => match result {
                Some((number, offered)) => {
                    let offered: Offered = offered;
                    counts.add(offered.class);
                    collected.push((number, offered));
                }
                None => break,
            },
            _ = tick.tick(), if spec.progress.is_some() => {
                let in_flight = fleet.in_flight.load(Ordering::Relaxed);
                let ready = fleet.sender.targets().ready().len();
                eprintln!("{}", progress(start.elapsed(), every, &counts, &shown, in_flight, ready));
                shown = counts;
            }
        }
    }
    report.end_ms = unix_ms();
    collected.sort_by_key(|(number, _)| *number);
    report.offered = collected.into_iter().map(|(_, offered)| offered).collect();
    Ok(report)
}

/// Everything that offering a request needs.
struct Fleet {
    picker: Picker,
    rng: SplitMix64,
    sender: Arc<Sender>,
    in_flight: Arc<AtomicUsize>,
    results: Option<mpsc::UnboundedSender<(usize, Offered)>>,
    cancel: CancellationToken,
    number: usize,
}

impl Fleet {
    /// Offers one request now.
    fn offer(&mut self, spec: &LoadSpec) {
        let Some(results) = self.results.clone() else {
            return;
        };
        let number = self.number;
        self.number += 1;
        let ask = Ask::draw(spec, &mut self.rng);
        let arrival = Arrival { at_ms: unix_ms(), tokens: ask.tokens };
        if self.in_flight.load(Ordering::Relaxed) >= spec.concurrency {
            // The receiver outlives every sender: a send cannot fail.
            let _ = results.send((number, Offered::unsent(arrival, Class::Dropped, 0.0)));
            return;
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let target = self.picker.pick(&self.sender.targets().ready());
        let dice = self.rng.clone().next_u64();
        let sender = self.sender.clone();
        let in_flight = self.in_flight.clone();
        let cancel = self.cancel.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let latency = || (start.elapsed().as_secs_f64() * 10_000.0).round() / 10.0;
            let offered = tokio::select! {
                reply = sender.send(&ask, target, dice) => Offered::new(arrival, reply, latency()),
                () = cancel.cancelled() => Offered::unsent(arrival, Class::Cancelled, latency()),
            };
            in_flight.fetch_sub(1, Ordering::Relaxed);
            let _ = results.send((number, offered));
        });
    }
}

/// One line of progress: rates since the last one.
fn progress(elapsed: Duration, every: Duration, now: &Counts, last: &Counts, in_flight: usize, ready: usize) -> String {
    let rate = |now: u64, last: u64| (now - last) as f64 / every.as_secs_f64();
    format!(
        "{:>6.0} s  ok {:>7.1}/s  429 {:>7.1}/s  lost {:>6.1}/s  dropped {:>6.1}/s  in flight {in_flight:>4}  ready {ready}",
        elapsed.as_secs_f64(),
        rate(now.ok, last.ok),
        rate(now.limited, last.limited),
        rate(now.lost, last.lost),
        rate(now.dropped, last.dropped),
    )
}
