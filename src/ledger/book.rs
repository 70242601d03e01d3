//! A book as it is stored.

use std::collections::{BTreeMap, HashMap};

use super::error::LedgerError;
use super::rules::LEAVE_SLACK_MS;
use super::{LEAVE_STEP_MS, Leaves};
use crate::plan::MemberDemand;

/// What the ledger holds for one member in one book. Amounts in the book's unit, times in ms of ledger time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRecord {
    /// Number of the last call that counted.
    pub seq: u64,
    /// The grant: the most the member may have charged in any 60 s.
    pub record: u64,
    /// What it had charged in the last 60 s at its last call.
    pub spent: u64,
    /// What it refused in the last 60 s, as it reported.
    pub denied: u64,
    /// When its lease is over, unless it calls again.
    pub until_ms: u64,
    /// What it admits up to after its lease.
    pub off: u64,
    /// Its fair part of the budget.
    pub share: u64,
    /// Since when it is known to have ended.
    pub ended_ms: Option<u64>,
    /// What it wanted at or under its share and did not get at its last call.
    pub claim: u64,
    /// When that was, in slots of 250 ms.
    pub claim_slot: u64,
    /// The learning that it registered in: see [`BookState::round`]; one less after its first call in it.
    pub round: u64,
    /// See [`Ask::as_of_ms`](super::Ask::as_of_ms).
    pub as_of_ms: u64,
    /// See [`Ask::leaves`](super::Ask::leaves). Once the member has ended: what has left is 0 here, and gone from `record`.
    pub leaves: Leaves,
}

impl MemberRecord {
    /// What it may have in its window now: what it said, but no more than its record, which falls once it is silent or ended.
    #[must_use]
    pub fn in_window(&self) -> u64 {
        self.spent.min(self.record)
    }

    /// Ledger time after `clock_ms` from which on a plan lends again what has left the window of a member that has ended;
    /// `None`: it has not, or nothing will.
    #[must_use]
    pub fn next_leave_ms(&self, clock_ms: u64) -> Option<u64> {
        let ended = self.ended_ms.filter(|_| self.until_ms <= clock_ms)?;
        let over = |step: u64| ended.saturating_add(LEAVE_SLACK_MS + (step + 1) * LEAVE_STEP_MS);
        let steps = (0..).zip(&self.leaves.0).filter(|(_, amount)| **amount > 0);
        steps.map(|(step, _)| over(step)).find(|at| *at > clock_ms)
    }

    /// Takes the first steps out of `leaves`; answers what they come to.
    pub(super) fn take_steps(&mut self, steps: u64) -> u64 {
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        self.leaves.0.iter_mut().take(steps).map(std::mem::take).fold(0, u64::saturating_add)
    }

    /// It has not called for as long as its lease, by this ledger time.
    #[must_use]
    pub const fn lease_is_over(&self, clock_ms: u64) -> bool {
        self.until_ms < clock_ms
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
        let mut next = || words.next()?;
        let mut record = Self {
            seq: next()?,
            record: next()?,
            spent: next()?,
            denied: next()?,
            until_ms: next()?,
            off: next()?,
            share: next()?,
            ended_ms: Some(next()?).filter(|&at| at > 0),
            claim: next()?,
            claim_slot: next()?,
            round: next()?,
            as_of_ms: next()?,
            leaves: Leaves::default(),
        };
        let mut steps = record.leaves.0.iter_mut();
        for word in words {
            *steps.next()? = word?;
        }
        Some(record)
    }
}

/// One book, as of its last call. Amounts in the book's unit, times in ms of ledger time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BookState {
    /// What the whole fleet may spend in any 60 s.
    pub budget: u64,
    /// Sum of all members' records.
    pub lent: u64,
    /// Set aside by the operator, lent to nobody.
    pub aside: u64,
    /// Up to it everybody is entitled to draw.
    pub level: u64,
    /// The safe share.
    pub safe: u64,
    /// How long a grant lasts without an answer, ms.
    pub lease_ms: u64,
    /// Ledger time of the last call.
    pub clock_ms: u64,
    /// The server's clock at the last call, ms since 1970.
    pub time_ms: u64,
    /// `master_replid` of the server that wrote last.
    pub replid: String,
    /// Until when nothing is lent.
    pub learn_until_ms: u64,
    /// Twice how often the ledger has had to learn.
    pub round: u64,
    /// What members gave back since it last began to, and was not lent again.
    pub spare: u64,
    /// What members below their share were refused, by slots of 250 ms; the newest last for a second.
    pub claims: BTreeMap<u64, u64>,
    /// The members' records.
    pub members: BTreeMap<String, MemberRecord>,
}

impl BookState {
    /// What could be lent now; negative after a cut or a debt.
    pub fn pool(&self) -> i64 {
        let whole = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        whole(self.budget).saturating_sub(whole(self.lent)).saturating_sub(whole(self.aside))
    }

    /// Sum of the stored claims.
    #[must_use]
    pub fn claimed(&self) -> u64 {
        self.claims.values().sum()
    }

    /// At the last call nothing was lent but what was given back, because the ledger is new, another server, or was silent.
    pub fn learning(&self) -> bool {
        self.clock_ms < self.learn_until_ms
    }

    /// What the plan has to know of each member, by id. `ended`: whether there is evidence that a member's process has ended.
    pub fn demands(&self, ended: impl Fn(&str) -> bool) -> Vec<MemberDemand<'_>> {
        self.members
            .iter()
            .map(|(id, record)| {
                let gone = record.ended_ms.is_some() || ended(id);
                MemberDemand {
                    member: id,
                    spent: record.spent,
                    denied: record.denied,
                    record: record.record,
                    share: record.share,
                    lost: gone || record.lease_is_over(self.clock_ms),
                    offline: if gone { 0 } else { record.off },
                }
            })
            .collect()
    }

    /// Reads what HGETALL answered for `key`; `None` if there is no such book.
    pub(super) fn parse(key: &str, fields: HashMap<String, String>) -> Result<Option<Self>, LedgerError> {
        if fields.is_empty() {
            return Ok(None);
        }
        read(&fields).map(Some).ok_or_else(|| LedgerError::malformed(key))
    }
}

fn read(fields: &HashMap<String, String>) -> Option<BookState> {
    let number = |name: &str| fields.get(name)?.parse::<u64>().ok();
    let mut members = BTreeMap::new();
    for (field, text) in fields {
        if let Some(member) = field.strip_prefix("m:") {
            members.insert(member.to_owned(), MemberRecord::parse(text)?);
        }
    }
    // Scripts keep this, whatever they are called with. Planning on a record that somebody else wrote would take from `lent` what
    // was never added to it, and lend the budget again.
    let lent = number("lent")?;
    if members.values().map(|member| u128::from(member.record)).sum::<u128>() != u128::from(lent) {
        return None;
    }
    let mut claims = BTreeMap::new();
    for claim in fields.get("claims")?.split_ascii_whitespace() {
        let (slot, amount) = claim.split_once(':')?;
        claims.insert(slot.parse().ok()?, amount.parse().ok()?);
    }
    Some(BookState {
        budget: number("budget")?,
        lent,
        aside: number("aside")?,
        level: number("level")?,
        safe: number("safe")?,
        lease_ms: number("leaseMs")?,
        clock_ms: number("clock")?,
        time_ms: number("time")?,
        replid: fields.get("replid")?.clone(),
        learn_until_ms: number("learnUntil")?,
        round: number("round")?,
        spare: number("spare")?,
        claims,
        members,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> HashMap<String, String> {
        [
            ("budget", "1000"),
            ("lent", "1100"),
            ("aside", "50"),
            ("level", "300"),
            ("safe", "100"),
            ("leaseMs", "30000"),
            ("clock", "10"),
            ("time", "1790000000000"),
            ("replid", "abc"),
            ("learnUntil", "95010"),
            ("round", "2"),
            ("spare", "3"),
            ("claims", "4:10 5:20"),
            ("m:p.1.a", "7 1100 30 5 30010 100 500 0 20 5 2 60"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    #[test]
    fn reads_a_book() {
        let book = BookState::parse("k", fields()).unwrap().unwrap();
        assert_eq!((book.pool(), book.learning(), book.claimed()), (-150, true, 30));
        let member = &book.members["p.1.a"];
        assert_eq!((member.seq, member.record, member.off, member.ended_ms, member.claim), (7, 1100, 100, None, 20));
        let mut left = fields();
        left.insert("m:p.1.a".into(), "7 1100 30 5 30010 100 500 9 20 5 2 60 3 0 4".into());
        let member = &BookState::parse("k", left).unwrap().unwrap().members["p.1.a"];
        let mut leaves = Leaves::default();
        (leaves.0[0], leaves.0[2]) = (3, 4);
        assert_eq!((member.as_of_ms, member.leaves), (60, leaves));
    }

    #[test]
    fn says_when_something_of_an_ended_member_is_free_again() {
        let mut member = MemberRecord { until_ms: 90_000, ..MemberRecord::default() };
        (member.leaves.0[2], member.leaves.0[4]) = (3, 4);
        assert_eq!(member.next_leave_ms(100_000), None, "it runs");
        member.ended_ms = Some(100_000);
        // A step of a second has to be over, and a second more.
        assert_eq!(member.next_leave_ms(100_000), Some(104_000));
        assert_eq!(member.next_leave_ms(104_000), Some(106_000));
        assert_eq!(member.next_leave_ms(106_000), None);
        member.until_ms = 100_001;
        assert_eq!(member.next_leave_ms(100_000), None, "its lease is ahead");
    }

    #[test]
    fn no_fields_is_no_book() {
        assert_eq!(BookState::parse("k", HashMap::new()).unwrap(), None);
    }

    #[test]
    fn says_which_key_cannot_be_read() {
        let too_many = &format!("7 1100 30 5 30010 100 500 9 20 5 6 60{}", " 1".repeat(crate::ledger::LEAVE_STEPS + 1));
        for (field, value) in [
            ("budget", ""),
            ("lent", "-1"),
            ("lent", "1099"),
            ("m:forged", "1 1000000000000 0 0 1 0 0 0 0 0 0 0"),
            ("claims", "4"),
            ("m:p.1.a", "7 1100"),
            ("m:p.1.a", "7 1100 30 5 30010 100 500 9 20 5 6"),
            ("m:p.1.a", "7 1100 30 5 30010 100 500 9 20 5 6 60 x"),
            ("m:p.1.a", too_many),
            ("m:p.1.a", "7 1e3 30 5 30010 100 500 0 20 5 6 60"),
        ] {
            let mut broken = fields();
            broken.insert(field.into(), value.into());
            let error = BookState::parse("the-key", broken).unwrap_err();
            assert!(matches!(&error, LedgerError::Malformed { key } if key == "the-key"), "{field}={value}: {error}");
        }
        let mut missing = fields();
        missing.remove("clock");
        assert!(BookState::parse("k", missing).is_err());
    }
}
