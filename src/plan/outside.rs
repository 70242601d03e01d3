//! Traffic outside: what LiteLLM's own counters have that no member reported. It comes from processes that spend the same
//! quota without us, and is said only when nothing else explains it.
//!
//! Minutes are unix time in minutes, by the caller's clock.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A difference of so many tokens is none: a call that ends between two minutes counts in either.
const LEAST_TOKENS: u64 = 500;

/// The same, in requests.
const LEAST_REQUESTS: u64 = 5;

/// Nor is one of this part of what was counted: 2 %.
const LEAST_PART: u64 = 50;

/// What was said is taken back when nothing could be compared for so many minutes: it would be out of date.
const STALE_MINUTES: u64 = 5;

/// Tokens and requests of one limit in one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Tokens.
    pub tokens: u64,
    /// Requests.
    pub requests: u64,
}

/// Both counts of one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// By LiteLLM's own counters.
    pub counted: Amounts,
    /// By the reports of all members.
    pub reported: Amounts,
}

/// What one minute shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// So much was counted that no member reported.
    Outside(Amounts),
    /// Nothing, or too little to tell.
    Clean,
    /// It cannot be told.
    Unknown,
}

/// Compares what LiteLLM counted with what the members reported. Tokens decide: LiteLLM counts failed calls as requests,
/// too, and members report those that ended well. Less in the counters than in the reports means that they are not the
/// counters of these processes (another Redis, a key prefix), or that they are gone.
fn finding(counted: Amounts, reported: Amounts) -> Finding {
    let matters = |more: u64, all: u64, least: u64| more > least && more > all / LEAST_PART;
    let missing = matters(reported.tokens.saturating_sub(counted.tokens), reported.tokens, LEAST_TOKENS)
        || matters(reported.requests.saturating_sub(counted.requests), reported.requests, LEAST_REQUESTS);
    let outside = Amounts {
        tokens: counted.tokens.saturating_sub(reported.tokens),
        requests: counted.requests.saturating_sub(reported.requests),
    };
    match (missing, matters(outside.tokens, counted.tokens, LEAST_TOKENS)) {
        (true, _) => Finding::Unknown,
        (false, true) => Finding::Outside(outside),
        (false, false) => Finding::Clean,
    }
}

/// What is known of the traffic around one limit.
#[derive(Clone, Copy, Debug, Default)]
struct Limit {
    /// What is said.
    said: Option<Amounts>,
    /// The last minute of which both counts were known, whatever they show.
    compared: Option<(u64, Compared)>,
    /// The last minute that could be compared, and whether it showed traffic.
    last: Option<(u64, bool)>,
    /// The first minute that was looked at: what was said before that is as old as the minute before.
    first: Option<u64>,
}

impl Limit {
    /// Takes in a minute. Two in a row make what is said, and take it back.
    fn minute(&mut self, minute: u64, finding: Finding) {
        let first = *self.first.get_or_insert(minute);
        self.compared = self.compared.filter(|(at, _)| minute.saturating_sub(*at) < STALE_MINUTES);
        let shows = match finding {
            Finding::Unknown => {
                let known = self.last.map_or(first.saturating_sub(1), |(last, _)| last);
                if minute.saturating_sub(known) >= STALE_MINUTES {
                    self.said = None;
                }
                return;
            }
            Finding::Outside(_) => true,
            Finding::Clean => false,
        };
        let in_a_row = self.last == Some((minute.saturating_sub(1), shows));
        self.last = Some((minute, shows));
        self.said = match (finding, self.said) {
            (Finding::Outside(amounts), said) if in_a_row || said.is_some() => Some(amounts),
            (Finding::Clean, Some(_)) if in_a_row => None,
            (_, said) => said,
        };
    }
}

/// The counters of a minute, and the limits that have not been compared yet.
#[derive(Clone, Debug)]
struct Counted {
    minute: u64,
    open: BTreeMap<String, Amounts>,
}

/// The traffic outside of one TokenBudget's limits.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    limits: BTreeMap<String, Limit>,
    counted: Option<Counted>,
    /// Who the members are (a digest), and in which minute that was new.
    members: Option<(u64, u64)>,
}

impl Outside {
    /// Takes over what was said before this operator was there.
    pub fn said_before(&mut self, limit: &str, amounts: Amounts) {
        self.limits.entry(limit.to_owned()).or_default().said = Some(amounts);
    }

    /// Takes note of the members that live in `minute`, by id and always in the same order. Ask often: a member that
    /// comes and goes between two calls is not seen.
    pub fn members<'a>(&mut self, minute: u64, ids: impl IntoIterator<Item = &'a str>) {
        let mut hasher = DefaultHasher::new();
        ids.into_iter().for_each(|id| id.hash(&mut hasher));
        let digest = hasher.finish();
        if self.members.is_none_or(|(known, _)| known != digest) {
            self.members = Some((digest, minute));
        }
    }

    /// Whether the counters of `minute` have not been read yet.
    #[must_use]
    pub fn is_due(&self, minute: u64) -> bool {
        self.counted.as_ref().is_none_or(|counted| counted.minute < minute)
    }

    /// Takes in the counters of `minute` by limit; none if they could not be read. What the minute before left open stays
    /// unknown.
    pub fn counted(&mut self, minute: u64, counters: Option<BTreeMap<String, Amounts>>) {
        if let Some(Counted { minute, open }) = self.counted.take() {
            for limit in open.keys() {
                self.limits.entry(limit.clone()).or_default().minute(minute, Finding::Unknown);
            }
        }
        let open = counters.unwrap_or_default();
        for (limit, known) in &mut self.limits {
            if !open.contains_key(limit) {
                known.minute(minute, Finding::Unknown);
            }
        }
        self.counted = Some(Counted { minute, open });
    }

    /// Compares what can be compared by now. `reported(limit, minute)` is what all members together say of it, once every
    /// one has. Who was there in the minute must have been there from its beginning, and must be there now.
    pub fn compare(&mut self, reported: impl Fn(&str, u64) -> Option<Amounts>) {
        let Some(Counted { minute, open }) = &mut self.counted else { return };
        let Some((_, since)) = self.members else { return };
        let same = since < *minute;
        open.retain(|limit, counted| {
            let Some(reported) = reported(limit, *minute).filter(|_| same) else { return true };
            let known = self.limits.entry(limit.clone()).or_default();
            known.compared = Some((*minute, Compared { counted: *counted, reported }));
            known.minute(*minute, finding(*counted, reported));
            false
        });
    }

    /// Forgets limits that are no more.
    pub fn keep(&mut self, limits: &BTreeSet<&str>) {
        self.limits.retain(|limit, _| limits.contains(limit.as_str()));
        if let Some(counted) = &mut self.counted {
            counted.open.retain(|limit, _| limits.contains(limit.as_str()));
        }
    }

    /// What the limit's quota is spent for outside, a minute; none while there is nothing, or nothing is known.
    #[must_use]
    pub fn of(&self, limit: &str) -> Option<Amounts> {
        self.limits.get(limit)?.said
    }

    /// Both counts of the last minute of which both are known; none when that is five minutes ago.
    #[must_use]
    pub fn compared(&self, limit: &str) -> Option<Compared> {
        self.limits.get(limit)?.compared.map(|(_, both)| both)
    }
}

#[cfg(test)]
mod tests;
