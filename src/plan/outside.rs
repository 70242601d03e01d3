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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn tokens(tokens: u64) -> Amounts {
        Amounts { tokens, requests: tokens / 100 }
    }

    /// An audit of the limit `gpt`; minutes go by one by one.
    #[derive(Default)]
    struct Audit {
        outside: Outside,
        minute: u64,
    }

    impl Audit {
        /// One minute: the counters, and the sum of the reports.
        fn minute(&mut self, counted: Option<Amounts>, reported: Option<Amounts>) -> Option<Amounts> {
            self.minute += 1;
            self.outside.members(self.minute, ["a", "b"]);
            self.outside.counted(self.minute, counted.map(|amounts| [("gpt".to_owned(), amounts)].into()));
            self.outside.compare(|_, minute| reported.filter(|_| minute == self.minute));
            self.outside.of("gpt")
        }

        fn started() -> Self {
            let mut audit = Self::default();
            audit.minute(Some(tokens(0)), Some(tokens(0)));
            audit
        }

        fn dirty(&mut self) -> Option<Amounts> {
            self.minute(Some(tokens(12_000)), Some(tokens(2_000)))
        }

        fn clean(&mut self) -> Option<Amounts> {
            self.minute(Some(tokens(2_000)), Some(tokens(2_000)))
        }

        fn unknown(&mut self) -> Option<Amounts> {
            self.minute(Some(tokens(12_000)), None)
        }
    }

    #[test]
    fn two_minutes_say_it_and_two_take_it_back() {
        let mut audit = Audit::started();
        assert_eq!(audit.dirty(), None);
        assert_eq!(audit.clean(), None);
        assert_eq!(audit.dirty(), None);
        assert_eq!(audit.dirty(), Some(tokens(10_000)));
        assert_eq!(audit.clean(), Some(tokens(10_000)));
        assert_eq!(audit.minute(Some(tokens(9_000)), Some(tokens(1_000))), Some(tokens(8_000)));
        assert_eq!(audit.clean(), Some(tokens(8_000)));
        assert_eq!(audit.clean(), None);
    }

    #[test]
    fn both_counts_of_a_minute_are_there_until_nothing_could_be_compared_for_five() {
        let mut audit = Audit::started();
        let both = |counted, reported| Some(Compared { counted: tokens(counted), reported: tokens(reported) });
        assert_eq!(audit.outside.compared("gpt"), None, "nobody was there from the minute's beginning");
        audit.dirty();
        assert_eq!(audit.outside.compared("gpt"), both(12_000, 2_000));
        for _ in 0..STALE_MINUTES + 2 {
            audit.minute(Some(tokens(1_000)), Some(tokens(9_000)));
            assert_eq!(audit.outside.compared("gpt"), both(1_000, 9_000), "LiteLLM has another Redis");
        }
        for _ in 0..STALE_MINUTES {
            assert_ne!(audit.outside.compared("gpt"), None);
            audit.unknown();
        }
        audit.unknown();
        assert_eq!(audit.outside.compared("gpt"), None);
    }

    #[test]
    fn a_minute_that_is_not_known_is_between_no_two() {
        let mut audit = Audit::started();
        audit.dirty();
        assert_eq!(audit.unknown(), None);
        assert_eq!(audit.dirty(), None);
        assert_eq!(audit.dirty(), Some(tokens(10_000)));
        audit.clean();
        audit.unknown();
        assert_eq!(audit.clean(), Some(tokens(10_000)));
        assert_eq!(audit.clean(), None);
    }

    #[test]
    fn what_cannot_be_checked_for_five_minutes_is_taken_back() {
        let mut audit = Audit::started();
        audit.dirty();
        audit.dirty();
        for _ in 0..STALE_MINUTES {
            assert_eq!(audit.unknown(), Some(tokens(10_000)));
        }
        // What a minute left open is unknown when the next one is read.
        assert_eq!(audit.unknown(), None);

        let mut next = Audit { minute: 100, ..Audit::default() };
        next.outside.said_before("gpt", tokens(7_000));
        let said: Vec<bool> = (0..6).map(|_| next.minute(None, None).is_some()).collect();
        assert_eq!(said, [true, true, true, true, false, false]);
    }

    #[test]
    fn another_operator_goes_on_with_what_was_said() {
        let mut audit = Audit::default();
        audit.outside.said_before("gpt", tokens(7_000));
        assert_eq!(audit.unknown(), Some(tokens(7_000)));
        assert_eq!(audit.dirty(), Some(tokens(10_000)));
        audit.clean();
        assert_eq!(audit.clean(), None);
        audit.outside.said_before("gpt", tokens(7_000));
        audit.outside.keep(&["other"].into());
        assert_eq!(audit.outside.of("gpt"), None);
    }

    #[test]
    fn members_that_change_in_a_minute_or_after_it_leave_it_unknown() {
        let counters = || Some([("gpt".to_owned(), tokens(12_000))].into());
        let mut outside = Outside::default();
        let mut minute = |at: u64, in_it: &[&str], after: &[&str]| {
            outside.members(at, in_it.iter().copied());
            assert!(outside.is_due(at));
            outside.counted(at, counters());
            assert!(!outside.is_due(at));
            outside.members(at + 1, after.iter().copied());
            outside.compare(|_, _| Some(tokens(2_000)));
            outside.of("gpt").is_some()
        };
        let (two, three) = (["a", "b"], ["a", "b", "c"]);
        assert!(!minute(1, &two, &two), "new in this minute");
        assert!(!minute(2, &two, &two));
        assert!(!minute(3, &two, &three), "new before the reports were there");
        assert!(!minute(4, &three, &three));
        assert!(!minute(5, &three, &three));
        assert!(minute(6, &three, &three));
    }

    #[test]
    fn small_differences_are_none_and_missing_counters_say_nothing() {
        let of = |tokens, requests| Amounts { tokens, requests };
        for (counted, reported, expected) in [
            (of(1_500, 10), of(1_000, 10), Finding::Clean),
            (of(1_501, 10), of(1_000, 10), Finding::Outside(of(501, 0))),
            (of(100_000, 10), of(98_000, 10), Finding::Clean),
            (of(100_000, 12), of(97_999, 10), Finding::Outside(of(2_001, 2))),
            // Failed calls are in the counters only.
            (of(1_000, 900), of(1_000, 10), Finding::Clean),
            (of(0, 0), of(0, 0), Finding::Clean),
            (of(0, 0), of(501, 1), Finding::Unknown),
            (of(0, 0), of(500, 5), Finding::Clean),
            (of(0, 0), of(0, 6), Finding::Unknown),
            (of(9_000, 10), of(1_000, 40), Finding::Unknown),
        ] {
            assert_eq!(finding(counted, reported), expected, "{counted:?} {reported:?}");
        }
    }

    proptest! {
        /// Whatever happens: what is said was shown by two minutes in a row not long ago, or said before and shown since,
        /// and what was never reported by all is never said.
        #[test]
        fn says_only_what_two_minutes_in_a_row_have_shown(minutes in prop::collection::vec(0_u8..3, 0..40)) {
            let mut audit = Audit::started();
            let mut shown: Vec<u8> = vec![1];
            for kind in minutes {
                let said = match kind {
                    0 => audit.dirty(),
                    1 => audit.clean(),
                    _ => audit.unknown(),
                };
                shown.push(kind);
                let pairs = |kind: u8| shown.windows(2).rposition(|pair| pair == [kind, kind]);
                let (dirty, clean) = (pairs(0), pairs(1));
                if said.is_some() {
                    prop_assert!(dirty.is_some() && clean < dirty, "{:?}", shown);
                }
                if dirty.is_some() && dirty.map(|at| at + 2) == Some(shown.len()) {
                    prop_assert!(said.is_some(), "{:?}", shown);
                }
                if clean.is_some() && clean.map(|at| at + 2) == Some(shown.len()) {
                    prop_assert!(said.is_none(), "{:?}", shown);
                }
            }
        }

        /// No members' traffic is taken for that of others, as long as the counters have no more than what they reported
        /// and a minute's edge.
        #[test]
        fn a_fleet_alone_is_never_accused(
            minutes in prop::collection::vec((0_u64..10_000_000, -500_i64..=500, 0_u64..1_000, any::<bool>()), 0..40)
        ) {
            let mut audit = Audit::started();
            for (tokens, edge, failed, told) in minutes {
                let reported = Amounts { tokens, requests: tokens / 900 };
                let counted = Amounts {
                    tokens: tokens.saturating_add_signed(edge),
                    requests: reported.requests + failed,
                };
                prop_assert_eq!(audit.minute(Some(counted), told.then_some(reported)), None);
            }
        }
    }
}
