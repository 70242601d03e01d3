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
