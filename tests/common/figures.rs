//! The smallest policy, report, plan and call that are whole; a test changes what it is about.

use std::collections::BTreeMap;

use tokenbudget::ledger::{Ask, BookCall, BookId, MemberState, Mode, OnLedgerLoss, PlanWrite, Policy, Report, Reserve};

pub fn policy(uid: &str) -> Policy {
    Policy {
        version: String::new(),
        token_budget: "llm/one".into(),
        uid: uid.into(),
        mode: Mode::Enforce,
        reserve: Reserve::MaxTokens,
        max_wait_ms: 250,
        on_ledger_loss: OnLedgerLoss::SafeShare,
        lease_ms: 30_000,
        beat_ms: 500,
        deriving: false,
        limits: vec![],
    }
    .stamped()
}

pub fn report(state: MemberState) -> Report {
    Report {
        pod: "litellm-1".into(),
        pod_uid: "p".into(),
        node: String::new(),
        container: "litellm".into(),
        worker: 7,
        started_ms: 1_790_000_000_000,
        siblings: None,
        agent: "0.1.0".into(),
        policy: String::new(),
        state,
        problems: vec![],
        declared: None,
        private: false,
        limits: None,
        calls: None,
        outside: vec![],
    }
}

/// A limit's first plan: a budget of 1,000, a safe share of 100, nobody in it.
pub fn plan(book: BookId) -> PlanWrite {
    PlanWrite {
        book,
        budget: 1_000,
        aside: 0,
        level: 0,
        safe: 100,
        lease_ms: 30_000,
        first: true,
        members: BTreeMap::new(),
    }
}

/// The figures in the order of the script's arguments.
pub fn ask([keep, want, least, spent, denied, off]: [u64; 6]) -> Ask {
    Ask { keep, want, least, spent, denied, off, ..Ask::default() }
}

/// A call for one book: `keep want spent off`, with the rest at rest.
pub fn amounts(book: BookId, keep: u64, want: u64, spent: u64, off: u64) -> BookCall {
    BookCall { book, ask: ask([keep, want, 0, spent, 0, off]) }
}
