//! What load to offer.

use std::str::FromStr;
use std::time::Duration;

use crate::request::Endpoint;
use crate::size::{Size, SplitMix64};

use super::prompt::Ask;

/// Where the load goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// The Ready pods of a Deployment, at their pod IPs.
    Deployment {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The port of the pods.
        port: u16,
    },
    /// Fixed base URLs, like `http://127.0.0.1:4000`.
    Urls(Vec<String>),
}

/// How arrivals are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Pacing {
    /// Independent clients: exponential gaps.
    #[default]
    Poisson,
    /// Equal gaps.
    Even,
}

/// How requests are spread over the Ready pods.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Skew {
    /// Each pod with the same probability, as kube-proxy does it.
    #[default]
    Even,
    /// The pod of rank r (oldest known first) with probability 1 / r^s.
    Zipf(f64),
    /// All to one pod: the first by name, as long as it is Ready.
    Hot,
    /// All to one pod, and to the next one after so many requests.
    Hopping(usize),
}

impl FromStr for Skew {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a skew; write even, hot, hopping:100, or zipf:1.1");
        match text.split_once(':') {
            None if text == "even" => Ok(Self::Even),
            None if text == "hot" => Ok(Self::Hot),
            Some(("hopping", n)) => n.parse().ok().filter(|n| *n > 0).map(Self::Hopping).ok_or_else(wrong),
            Some(("zipf", s)) => match s.parse::<f64>() {
                Ok(s) if s.is_finite() && s >= 0.0 => Ok(Self::Zipf(s)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

/// Extra requests, all at once, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// How many at once.
    pub requests: usize,
    /// How often; the first comes after one period.
    pub every: Duration,
}

impl FromStr for Burst {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a burst; write 50@10s: 50 requests every 10 s");
        let (requests, every) = text.split_once('@').ok_or_else(wrong)?;
        let burst = Self { requests: requests.parse().map_err(|_| wrong())?, every: duration(every)? };
        if burst.every.is_zero() {
            return Err(wrong());
        }
        Ok(burst)
    }
}

/// Reads a duration: `75s`, `500ms`, `2m`, `1h`, or seconds without a unit.
///
/// # Errors
/// When it is none of these.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write 75s, 500ms, 2m or 1h");
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = text.strip_suffix(unit).unwrap_or(text);
    let seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// An open-loop load: requests come when they come, whatever the answers do.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// Where it goes.
    pub targets: TargetSpec,
    /// How it is spread over the targets.
    pub skew: Skew,
    /// The endpoint that is called.
    pub endpoint: Endpoint,
    /// The model that is asked for.
    pub model: String,
    /// Requests per second.
    pub rate: f64,
    /// How they are spaced.
    pub pacing: Pacing,
    /// Extra requests at once.
    pub burst: Option<Burst>,
    /// How long requests are offered; those under way then are waited for.
    pub duration: Duration,
    /// Tokens of a prompt, at least 4.
    pub prompt_tokens: Size,
    /// max_tokens of a request; `None` sends none.
    pub max_tokens: Option<Size>,
    /// Share of streamed requests, 0 to 1.
    pub stream: f64,
    /// Whether streamed requests ask for usage.
    pub include_usage: bool,
    /// Most requests in flight; a request over it is counted as dropped.
    pub concurrency: usize,
    /// The API key, sent as a bearer token.
    pub key: Option<String>,
    /// The deadline of a request, from offering it to the end of its answer.
    pub timeout: Duration,
    /// Seeds arrivals, sizes and pods.
    pub seed: u64,
    /// The provider's distribution of answers, to price requests with.
    pub answer: Size,
    /// The provider's seed.
    pub answer_seed: u64,
    /// How often a progress line goes to stderr; `None` prints none.
    pub progress: Option<Duration>,
}

impl Default for LoadSpec {
    fn default() -> Self {
        Self {
            targets: TargetSpec::Urls(Vec::new()),
            skew: Skew::Even,
            endpoint: Endpoint::Chat,
            model: "gpt-4o".to_owned(),
            rate: 10.0,
            pacing: Pacing::Poisson,
            burst: None,
            duration: Duration::from_secs(60),
            prompt_tokens: Size::fixed(50.0),
            max_tokens: Some(Size::fixed(50.0)),
            stream: 0.0,
            include_usage: true,
            concurrency: 500,
            key: None,
            timeout: Duration::from_secs(60),
            seed: 1,
            answer: Size::fixed(50.0),
            answer_seed: 1,
            progress: None,
        }
    }
}

impl LoadSpec {
    /// The same load, priced as a provider with these settings charges.
    #[must_use]
    pub const fn priced_by(mut self, settings: &crate::provider::Settings) -> Self {
        self.answer = settings.answer;
        self.answer_seed = settings.seed;
        self
    }

    /// The mean cost of a request in tokens, over 10,000 of them.
    #[must_use]
    pub fn mean_tokens(&self) -> f64 {
        let mut rng = SplitMix64::new(self.seed);
        let n = 10_000_u32;
        let total: u64 = (0..n).map(|_| Ask::draw(self, &mut rng).tokens).sum();
        total as f64 / f64::from(n)
    }

    /// The same load at the rate that offers `tokens` per minute on average,
    /// bursts not counted. Say how requests are priced first.
    #[must_use]
    pub fn tokens_per_minute(mut self, tokens: f64) -> Self {
        self.rate = tokens / 60.0 / self.mean_tokens();
        self
    }

    /// Whether the values make sense.
    ///
    /// # Errors
    /// Says which does not.
    pub fn check(&self) -> Result<(), String> {
        if !(self.rate.is_finite() && self.rate >= 0.0) {
            return Err(format!("rate is {}; it must be at least 0", self.rate));
        }
        if !(0.0..=1.0).contains(&self.stream) {
            return Err(format!("stream is {}; it must be 0 to 1", self.stream));
        }
        if matches!(&self.targets, TargetSpec::Urls(urls) if urls.is_empty()) {
            return Err("no target: name a Deployment or a URL".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_bursts_and_skews() {
        assert_eq!(duration("75s"), Ok(Duration::from_secs(75)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("9"), Ok(Duration::from_secs(9)));
        for wrong in ["", "s", "5d", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        let burst: Burst = "50@10s".parse().unwrap();
        assert_eq!((burst.requests, burst.every.as_secs()), (50, 10));
        assert!("50".parse::<Burst>().is_err());
        assert!("5@0s".parse::<Burst>().is_err());
        assert_eq!("zipf:1.1".parse(), Ok(Skew::Zipf(1.1)));
        assert_eq!("hot".parse(), Ok(Skew::Hot));
        assert!("zipf".parse::<Skew>().is_err());
    }

    #[test]
    fn tokens_per_minute_become_a_rate() {
        let spec = LoadSpec {
            prompt_tokens: Size::fixed(100.0),
            max_tokens: None,
            answer: Size::lognormal(100.0, 0.5),
            ..LoadSpec::default()
        };
        let rate = spec.tokens_per_minute(60_000.0).rate;
        assert!((rate - 5.0).abs() < 0.1, "{rate}");
    }
}
