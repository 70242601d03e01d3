//! The command line of the binary `load`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio_util::sync::CancellationToken;

use crate::provider::{Remote, Settings};
use crate::request::Endpoint;
use crate::size::Size;

use super::{Burst, Class, LoadReport, LoadSpec, Pacing, Percentiles, Skew, TargetSpec, duration, run};

/// Open-loop load on the Ready pods of a Deployment, as a Service spreads it.
///
/// Requests are offered when they are due, whatever became of earlier ones.
/// A refused connection is tried once more on another pod (retried_connect);
/// everything but 2xx and 429 counts as lost.
///
///   load --deployment litellm --rate 12.5 --duration 75s
///   load --deployment litellm --tokens-per-minute 300k --skew hot \
///        --provider-url http://127.0.0.1:9000 --arrivals offered.jsonl
///   load --url http://127.0.0.1:4000 --rate 5 --burst 50@10s --stream 0.3
///
/// A SIZE is a number (always that) or `MEAN~CV`: lognormal with that mean and
/// coefficient of variation.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "load", version, verbatim_doc_comment)]
pub struct Args {
    /// The Deployment whose Ready pods get the load (through KUBECONFIG)
    #[arg(long, required_unless_present = "url")]
    pub deployment: Option<String>,
    /// Its namespace
    #[arg(long, short, default_value = "llm")]
    pub namespace: String,
    /// The port of its pods
    #[arg(long, default_value_t = 4000)]
    pub port: u16,
    /// A base URL instead of a Deployment (repeatable)
    #[arg(long, conflicts_with = "deployment")]
    pub url: Vec<String>,
    /// The model to ask for
    #[arg(long, default_value = "gpt-4o")]
    pub model: String,
    /// The endpoint to call
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    pub endpoint: Endpoint,
    /// Requests per second
    #[arg(long, default_value_t = 10.0)]
    pub rate: f64,
    /// Offer this many tokens per minute instead (300000 or 300k), bursts not
    /// counted; the rate follows from the mean cost of a request
    #[arg(long, conflicts_with = "rate", value_parser = amount)]
    pub tokens_per_minute: Option<f64>,
    /// How requests are spaced
    #[arg(long, value_enum, default_value_t = Pacing::Poisson)]
    pub pacing: Pacing,
    /// Extra requests at once, like 50@10s: 50 of them every 10 s
    #[arg(long)]
    pub burst: Option<Burst>,
    /// How long requests are offered: 75s, 500ms, 2m, 1h
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    /// Spread over the pods: even, zipf:1.1, or hot (all to the first by name)
    #[arg(long, default_value = "even")]
    pub skew: Skew,
    /// Tokens of a prompt
    #[arg(long, default_value = "100", value_name = "SIZE")]
    pub prompt_tokens: Size,
    /// max_tokens of a request; 0 sends none
    #[arg(long, default_value = "400", value_name = "SIZE")]
    pub max_tokens: Size,
    /// Share of streamed requests, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub stream: f64,
    /// Don't ask for usage in streams
    #[arg(long)]
    pub no_include_usage: bool,
    /// Most requests in flight; over it a request is counted as dropped
    #[arg(long, default_value_t = 500)]
    pub concurrency: usize,
    /// The API key, sent as a bearer token
    #[arg(long, env = "LOAD_API_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// The deadline of a request, to the end of its answer
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
    /// Seeds arrivals, sizes and pods
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Ask this provider of the rig how it prices answers
    #[arg(long, value_name = "URL")]
    pub provider_url: Option<String>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    /// Write every offered request to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub arrivals: Option<PathBuf>,
    /// Print no progress lines
    #[arg(long, short)]
    pub quiet: bool,
}

/// `300000`, `300k` or `1.2M`.
fn amount(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.char_indices().next_back() {
        Some((at, 'k')) => (text.get(..at), 1e3),
        Some((at, 'M')) => (text.get(..at), 1e6),
        _ => (Some(text), 1.0),
    };
    match number.unwrap_or_default().parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number * factor),
        _ => Err(format!("{text:?} is not a number like 300000 or 300k")),
    }
}

impl Args {
    /// The load these flags stand for, priced as `provider` charges.
    #[must_use]
    pub fn spec(&self, provider: &Settings) -> LoadSpec {
        let targets = match &self.deployment {
            Some(name) => {
                TargetSpec::Deployment { namespace: self.namespace.clone(), name: name.clone(), port: self.port }
            }
            None => TargetSpec::Urls(self.url.clone()),
        };
        let spec = LoadSpec {
            targets,
            skew: self.skew,
            endpoint: self.endpoint,
            model: self.model.clone(),
            rate: self.rate,
            pacing: self.pacing,
            burst: self.burst,
            duration: self.duration,
            prompt_tokens: self.prompt_tokens,
            max_tokens: Some(self.max_tokens).filter(|size| size.mean > 0.0),
            stream: self.stream,
            include_usage: !self.no_include_usage,
            concurrency: self.concurrency,
            key: self.key.clone(),
            timeout: self.timeout,
            seed: self.seed,
            answer: provider.answer,
            answer_seed: provider.seed,
            progress: (!self.quiet).then_some(Duration::from_secs(5)),
        };
        match self.tokens_per_minute {
            Some(tokens) => spec.tokens_per_minute(tokens),
            None => spec,
        }
    }

    /// Offers the load and prints what came of it. An interrupt ends it early.
    ///
    /// # Errors
    /// When a flag does not make sense, the targets cannot be found, or the
    /// file cannot be written.
    pub async fn run(self) -> Result<()> {
        let settings = match &self.provider_url {
            Some(url) => Remote::new(url)?.settings().await?,
            None => Settings::default(),
        };
        let cancel = CancellationToken::new();
        let on_signal = cancel.clone();
        tokio::spawn(async move {
            if crate::clock::interrupted().await.is_ok() {
                on_signal.cancel();
            }
        });
        let report = run(self.spec(&settings), cancel).await?;
        if let Some(path) = &self.arrivals {
            let write = || -> Result<()> {
                let mut file = BufWriter::new(File::create(path)?);
                for offered in &report.offered {
                    serde_json::to_writer(&mut file, offered)?;
                    file.write_all(b"\n")?;
                }
                Ok(file.flush()?)
            };
            write().with_context(|| format!("writing {}", path.display()))?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report.summary())?);
        } else {
            println!("{}", table(&report));
        }
        Ok(())
    }
}

/// The summary for people.
fn table(report: &LoadReport) -> String {
    let s = report.summary();
    let sent_seconds = report.offered.last().map_or(0.0, |last| (last.at_ms - s.start_ms) as f64 / 1000.0);
    let mut lines = vec![format!("offered {} requests, {} tokens in {sent_seconds:.1} s", s.requests, s.tokens)];
    let c = s.counts;
    lines.push(format!(
        "ok {} ({} tokens)  429 {}  lost {}  dropped {}  cancelled {}  retried_connect {}",
        c.ok, s.ok_tokens, c.limited, c.lost, c.dropped, c.cancelled, s.retried_connect
    ));
    let percentiles = |name: &str, unit: &str, p: Option<Percentiles>| {
        p.map(|p| {
            let (p50, p90, p99, max) = (p.p50, p.p90, p.p99, p.max);
            format!("{name}  p50 {p50:.1}  p90 {p90:.1}  p99 {p99:.1}  max {max:.1} {unit}")
        })
    };
    lines.extend(percentiles("latency ok ", "ms", s.ok_latency_ms));
    lines.extend(percentiles("latency 429", "ms", s.limited_latency_ms));
    lines.extend(percentiles("Retry-After", "s", s.retry_after_s));
    for (status, n) in &s.by_status {
        lines.push(format!("status {status}: {n}"));
    }
    for (pod, n) in &s.by_pod {
        let (ok, limited, lost) = (n.ok, n.limited, n.lost);
        lines.push(format!("pod {pod}: ok {ok}  429 {limited}  lost {lost}"));
    }
    for (error, n) in &s.errors {
        lines.push(format!("error {error}: {n}"));
    }
    if s.late_ms_max > 50.0 {
        lines.push(format!(
            "requests were offered up to {:.0} ms late: this machine could not keep the load open-loop",
            s.late_ms_max
        ));
    }
    if report.offered.iter().any(|o| o.class == Class::Dropped) {
        lines.push("dropped: raise --concurrency to offer all of the load".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn flags_make_a_spec() {
        Args::command().debug_assert();
        let args = Args::parse_from([
            "load",
            "--deployment",
            "litellm",
            "--skew",
            "zipf:1.1",
            "--max-tokens",
            "300~1.5",
            "--burst",
            "50@10s",
            "--tokens-per-minute",
            "300k",
        ]);
        let spec = args.spec(&Settings::default());
        assert_eq!(spec.skew, Skew::Zipf(1.1));
        assert!((spec.rate - 300_000.0 / 60.0 / spec.mean_tokens()).abs() < 1e-9);
        assert!(Args::try_parse_from(["load"]).is_err());
        assert!(amount("k").is_err());
    }
}
