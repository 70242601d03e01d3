//! What came of a load.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::judge::Arrival;

use super::send::Reply;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// 2xx, and the answer came to its end.
    Ok,
    /// 429.
    Limited,
    /// Anything else: another status, no connection, a cut answer, the deadline.
    Lost,
    /// Never sent: too many were in flight already.
    Dropped,
    /// Under way when the load was cancelled.
    Cancelled,
}

/// One request that was offered.
#[derive(Clone, Debug, Serialize)]
pub struct Offered {
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// What it costs or would have cost: prompt plus answer.
    pub tokens: u64,
    /// What became of it.
    pub class: Class,
    /// The status, if a response came.
    pub status: Option<u16>,
    /// The pod (or URL) it went to last.
    pub pod: Option<Arc<str>>,
    /// Until the end of the answer, in milliseconds.
    pub latency_ms: f64,
    /// `Retry-After`, in seconds.
    pub retry_after_s: Option<f64>,
    /// Whether another pod had to be tried after a refused connection.
    pub retried_connect: bool,
    /// Why it is lost, in a few words.
    pub error: Option<String>,
}

impl Offered {
    /// A request with what came back for it.
    #[must_use]
    pub fn new(arrival: Arrival, reply: Reply, latency_ms: f64) -> Self {
        let class = match reply.status {
            Some(200..=299) if reply.error.is_none() => Class::Ok,
            Some(429) => Class::Limited,
            _ => Class::Lost,
        };
        Self {
            class,
            status: reply.status,
            pod: reply.target,
            retry_after_s: reply.retry_after_s,
            retried_connect: reply.retried_connect,
            error: reply.error,
            ..Self::unsent(arrival, class, latency_ms)
        }
    }

    /// A request without an answer.
    #[must_use]
    pub const fn unsent(arrival: Arrival, class: Class, latency_ms: f64) -> Self {
        Self {
            at_ms: arrival.at_ms,
            tokens: arrival.tokens,
            class,
            status: None,
            pod: None,
            latency_ms,
            retry_after_s: None,
            retried_connect: false,
            error: None,
        }
    }
}

/// A load that is over.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// When it began, in Unix milliseconds.
    pub start_ms: u64,
    /// When the last answer was there.
    pub end_ms: u64,
    /// Every request, in the order it was offered.
    pub offered: Vec<Offered>,
    /// The most a request was offered after its moment: above some tens of
    /// milliseconds the machine could not keep the load open-loop.
    pub late_ms_max: f64,
}

/// Counts by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Of [`Class::Ok`].
    pub ok: u64,
    /// Of [`Class::Limited`].
    pub limited: u64,
    /// Of [`Class::Lost`].
    pub lost: u64,
    /// Of [`Class::Dropped`].
    pub dropped: u64,
    /// Of [`Class::Cancelled`].
    pub cancelled: u64,
}

impl Counts {
    /// Counts one.
    pub const fn add(&mut self, class: Class) {
        match class {
            Class::Ok => self.ok += 1,
            Class::Limited => self.limited += 1,
            Class::Lost => self.lost += 1,
            Class::Dropped => self.dropped += 1,
            Class::Cancelled => self.cancelled += 1,
        }
    }
}

/// Latency percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    /// Of a list; `None` of an empty one. Nearest rank.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).max(1);
            values.get(rank - 1).copied()
        };
        Some(Self { p50: at(50)?, p90: at(90)?, p99: at(99)?, max: at(100)? })
    }
}

/// A load in numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// When it began, in Unix milliseconds.
    pub start_ms: u64,
    /// Until the last answer, in seconds.
    pub seconds: f64,
    /// Requests offered, dropped ones too.
    pub requests: u64,
    /// Tokens they cost or would have cost.
    pub tokens: u64,
    /// Tokens of those that came back ok.
    pub ok_tokens: u64,
    /// By class.
    #[serde(flatten)]
    pub counts: Counts,
    /// Requests that needed a second pod because the first refused to connect.
    pub retried_connect: u64,
    /// By status; `none` where no response came.
    pub by_status: BTreeMap<String, u64>,
    /// By pod (or URL).
    pub by_pod: BTreeMap<String, Counts>,
    /// By what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// Latency of what came back ok.
    pub ok_latency_ms: Option<Percentiles>,
    /// Latency of 429s.
    pub limited_latency_ms: Option<Percentiles>,
    /// `Retry-After` of 429s, in seconds.
    pub retry_after_s: Option<Percentiles>,
    /// See [`LoadReport::late_ms_max`].
    pub late_ms_max: f64,
}

impl LoadReport {
    /// What was sent, for the judge: without dropped requests.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        let sent = self.offered.iter().filter(|o| o.class != Class::Dropped);
        sent.map(|o| Arrival { at_ms: o.at_ms, tokens: o.tokens }).collect()
    }

    /// When the last request was offered, in Unix milliseconds, and 1: what is admitted later belongs to requests that waited.
    #[must_use]
    pub fn offered_until_ms(&self) -> u64 {
        self.offered.iter().map(|offered| offered.at_ms + 1).max().unwrap_or(self.end_ms)
    }

    /// The load in numbers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary_between(0, u64::MAX)
    }

    /// The same over requests offered at `from_ms <= t < to_ms`.
    #[must_use]
    pub fn summary_between(&self, from_ms: u64, to_ms: u64) -> Summary {
        let mut s = Summary {
            start_ms: self.start_ms,
            seconds: self.end_ms.saturating_sub(self.start_ms) as f64 / 1000.0,
            late_ms_max: self.late_ms_max,
            ..Summary::default()
        };
        let range = from_ms..to_ms;
        let within = || self.offered.iter().filter(|o| range.contains(&o.at_ms));
        for offered in within() {
            s.requests += 1;
            s.tokens += offered.tokens;
            s.counts.add(offered.class);
            s.retried_connect += u64::from(offered.retried_connect);
            if offered.class == Class::Ok {
                s.ok_tokens += offered.tokens;
            }
            if !matches!(offered.class, Class::Dropped | Class::Cancelled) {
                let status = offered.status.map_or("none".to_owned(), |s| s.to_string());
                *s.by_status.entry(status).or_default() += 1;
            }
            if let Some(pod) = &offered.pod {
                let counts = s.by_pod.entry(pod.to_string()).or_default();
                counts.add(offered.class);
            }
            if let Some(error) = &offered.error {
                *s.errors.entry(error.clone()).or_default() += 1;
            }
        }
        let latency = |class| within().filter(move |o| o.class == class);
        s.ok_latency_ms = Percentiles::of(latency(Class::Ok).map(|o| o.latency_ms).collect());
        let limited = || latency(Class::Limited);
        s.limited_latency_ms = Percentiles::of(limited().map(|o| o.latency_ms).collect());
        s.retry_after_s = Percentiles::of(limited().filter_map(|o| o.retry_after_s).collect());
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(status: Option<u16>, error: Option<&str>) -> Offered {
        let reply = Reply { status, error: error.map(str::to_owned), ..Reply::default() };
        let arrival = Arrival { at_ms: 5, tokens: 10 };
        Offered::new(arrival, reply, 1.0)
    }

    #[test]
    fn classes() {
        assert_eq!(offered(Some(200), None).class, Class::Ok);
        assert_eq!(offered(Some(200), Some("cut")).class, Class::Lost);
        assert_eq!(offered(Some(429), None).class, Class::Limited);
        assert_eq!(offered(Some(500), None).class, Class::Lost);
        assert_eq!(offered(None, Some("connect")).class, Class::Lost);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let p = Percentiles::of((1..=100).map(f64::from).collect()).unwrap();
        assert_eq!((p.p50, p.p90, p.p99, p.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(Percentiles::of(vec![]), None);
        assert_eq!(Percentiles::of(vec![7.0]).unwrap().p50, 7.0);
    }

    #[test]
    fn the_summary_counts_everything_once() {
        let arrival = Arrival { at_ms: 9, tokens: 10 };
        let report = LoadReport {
            offered: vec![
                offered(Some(200), None),
                offered(Some(429), None),
                offered(None, Some("connect")),
                Offered::unsent(arrival, Class::Dropped, 0.0),
            ],
            ..LoadReport::default()
        };
        let s = report.summary();
        assert_eq!((s.requests, s.tokens, s.ok_tokens), (4, 40, 10));
        assert_eq!((s.counts.ok, s.counts.limited, s.counts.lost), (1, 1, 1));
        assert_eq!((s.counts.dropped, s.by_status.values().sum::<u64>()), (1, 3));
        assert_eq!(report.arrivals().len(), 3);
        assert_eq!(report.summary_between(6, 10).requests, 1);
    }
}
