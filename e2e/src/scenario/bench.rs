//! Offers a load to the fleet and measures it at the provider.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio_util::sync::CancellationToken;

use super::rig::Rig;
use crate::clock::unix_ms;
use crate::judge::{self, Arrival};
use crate::load::{self, LoadReport, LoadSpec, TargetWatch};
use crate::provider::{Range, Remote};
use crate::size::Size;

/// `tpm` in LiteLLM's configuration: tokens per minute.
pub const BUDGET: u64 = 60_000;

/// Tokens per minute that are asked for, as a multiple of the budget.
const OVERLOAD: f64 = 5.0;

/// The key in `manifests/litellm.yaml`.
pub(super) const MASTER_KEY: &str = "sk-local";

/// How long a load lasts.
pub const LOAD: Duration = Duration::from_secs(75);

/// What a step came to.
#[derive(Clone, Debug)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// First and last moment, in Unix milliseconds.
    pub from_ms: u64,
    /// Last moment.
    pub to_ms: u64,
    /// Largest sum of any 600 consecutive 100 ms slots, in tokens.
    pub worst: u64,
    /// What the provider admitted of what one ideal rolling bucket would have.
    pub used: f64,
    /// Longest time without an admission, in seconds.
    pub gap: f64,
    /// Requests that failed with anything but 429.
    pub lost: u64,
    /// Everything that was offered.
    pub report: LoadReport,
}

impl Step {
    /// What did not reach its figure: the budget is never exceeded, so much of it is used, nothing is lost.
    #[must_use]
    pub fn failures(&self, least_used: f64) -> Vec<String> {
        let name = &self.name;
        let mut failures = Vec::new();
        if self.worst > BUDGET {
            let worst = judge::percent_up(self.worst, BUDGET);
            failures.push(format!("{name}: the worst 60 s were {worst} of the budget ({} tokens)", self.worst));
        }
        if self.used < least_used {
            failures.push(format!("{name}: {:.1}% used, under {:.0}%", self.used * 100.0, least_used * 100.0));
        }
        if self.lost > 0 {
            failures.push(format!("{name}: {} requests were lost to something else than a 429", self.lost));
        }
        failures
    }
}

/// Measures steps at the provider.
#[derive(Debug)]
pub struct Bench<'a> {
    rig: &'a Rig,
    provider: Remote,
}

impl<'a> Bench<'a> {
    /// A bench on this rig.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    pub fn new(rig: &'a Rig) -> Result<Self> {
        Ok(Self { rig, provider: rig.provider()? })
    }

    /// The load of the demo: requests of some hundred tokens, at five times the budget.
    ///
    /// # Errors
    /// When the provider's prices cannot be read.
    pub async fn spec(&self) -> Result<LoadSpec> {
        let spec = LoadSpec {
            prompt_tokens: Size::lognormal(150.0, 0.5),
            max_tokens: Some(Size::fixed(500.0)),
            stream: 0.3,
            key: Some(MASTER_KEY.to_owned()),
            duration: LOAD,
            concurrency: 800,
            timeout: Duration::from_secs(20),
            progress: Some(Duration::from_secs(15)),
            ..LoadSpec::default()
        };
        let spec = spec.priced_by(&self.provider.settings().await?);
        Ok(spec.tokens_per_minute(BUDGET as f64 * OVERLOAD))
    }

    async fn pods(&self) -> Result<TargetWatch> {
        TargetWatch::deployment(self.rig.client().await?, "llm", "litellm", 4000).await
    }

    /// Offers a load.
    ///
    /// # Errors
    /// When it cannot be offered.
    pub async fn offer(&self, spec: LoadSpec) -> Result<LoadReport> {
        load::run_on(spec, self.pods().await?, CancellationToken::new()).await
    }

    /// Offers a load and measures it. The worst 60 s are looked for from `since_ms` on.
    ///
    /// # Errors
    /// When the load cannot be offered, or the provider not be asked.
    pub async fn run(&self, name: &str, spec: LoadSpec, since_ms: Option<u64>) -> Result<Step> {
        let from_ms = unix_ms();
        let report = self.offer(spec).await?;
        self.measure(name, report, from_ms, since_ms.unwrap_or(from_ms)).await
    }

    /// Measures what the provider saw of a load that ended just now.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    pub async fn measure(&self, name: &str, report: LoadReport, from_ms: u64, since_ms: u64) -> Result<Step> {
        let to_ms = unix_ms();
        let all = self
            .provider
            .arrivals(&Range { from_ms: Some(since_ms.min(from_ms) - judge::WINDOW_MS), ..Range::default() })
            .await?;
        if !all.complete {
            bail!("the provider has forgotten arrivals of step {name}");
        }
        let admitted = all.admitted();
        let end_ms = report.offered_until_ms();
        let ideal = judge::ideal_admitted(&admitted, &report.arrivals(), BUDGET, judge::WINDOW_MS);
        let usage =
            self.provider.usage(&Range { from_ms: Some(since_ms), to_ms: Some(to_ms), ..Range::default() }).await?;
        let step = Step {
            name: name.to_owned(),
            from_ms,
            to_ms,
            worst: usage.worst_60s.tokens,
            used: judge::used(&admitted, &ideal.admitted, from_ms, end_ms),
            gap: judge::longest_gap(&admitted, from_ms, end_ms) as f64 / 1000.0,
            lost: report.summary().counts.lost,
            report,
        };
        let counts = step.report.summary().counts;
        println!(
            "{name}: worst 60 s {} of the budget, {:.1}% used, longest time without an admission {:.1} s; {} answered, {} refused with 429, {} lost",
            judge::percent_up(step.worst, BUDGET),
            step.used * 100.0,
            step.gap,
            counts.ok,
            counts.limited,
            counts.lost,
        );
        for (error, count) in step.report.summary().errors.iter().take(5) {
            println!("  {count} x {error}");
        }
        Ok(step)
    }

    /// Everything that was admitted since then.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    pub async fn admitted_since(&self, from_ms: u64) -> Result<Vec<Arrival>> {
        Ok(self.provider.arrivals(&Range { from_ms: Some(from_ms), ..Range::default() }).await?.admitted())
    }

    /// Offers a load while something else happens, until that has ended; for at most an hour.
    ///
    /// # Errors
    /// When the load or the work fails.
    pub async fn meanwhile<T>(&self, spec: LoadSpec, work: impl Future<Output = Result<T>>) -> Result<(LoadReport, T)> {
        let cancel = CancellationToken::new();
        let spec = LoadSpec { duration: Duration::from_secs(3600), ..spec };
        let offered = tokio::spawn(load::run_on(spec, self.pods().await?, cancel.clone()));
        let done = work.await;
        cancel.cancel();
        let report = offered.await??;
        Ok((report, done?))
    }
}
