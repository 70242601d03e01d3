//! What of a pass goes to Prometheus.

use kube::ResourceExt;

use super::apply::Applied;
use super::context::Context;
use super::observe::Observed;
use crate::api::{TokenBudget, TokenBudgetStatus};
use crate::ledger::LedgerError;
use crate::ops::{LedgerErrorKind, Reading, Unit};

/// Sets the series of a TokenBudget from its status, and counts failures of the ledger.
pub fn set(tb: &TokenBudget, ctx: &Context, observed: &Observed, applied: &Applied, status: &TokenBudgetStatus) {
    let errors = [
        observed.ledger.as_ref().and_then(|l| l.as_ref().err()),
        applied.ledger.as_ref().and_then(|l| l.as_ref().err()),
    ];
    for error in errors.into_iter().flatten() {
        ctx.metrics.ledger_error(kind(error));
    }
    // What is of the limit, and not of a unit, is in its first row.
    let first = |name: &str| status.limits.iter().find(|row| row.name == name);
    let outside = |name: &str| first(name).and_then(|row| row.outside.as_ref());
    let reserved = |name: &str| first(name).and_then(|row| row.reserved_percent.as_ref());
    let readings: Vec<_> = status
        .limits
        .iter()
        .map(|row| {
            let unit = if row.unit == "tokens" { Unit::tokens } else { Unit::requests };
            let reading = Reading {
                budget: row.budget,
                spent: row.spent,
                pool: row.pool,
                members: row.members,
                denied: row.denied,
                outside: outside(&row.name).map(|o| if unit == Unit::tokens { o.tokens } else { o.requests }),
                reserved_percent: reserved(&row.name).map(|r| [r.p50, r.p99]),
            };
            (row.name.as_str(), unit, reading)
        })
        .collect();
    ctx.metrics.set_budget(&tb.namespace().unwrap_or_default(), &tb.name_any(), &readings);
}

fn kind(error: &LedgerError) -> LedgerErrorKind {
    match error {
        LedgerError::Timeout { .. } => LedgerErrorKind::Timeout,
        LedgerError::Fenced => LedgerErrorKind::Fenced,
        LedgerError::Unreachable { .. } => LedgerErrorKind::Connection,
        LedgerError::InvalidUrl { .. } | LedgerError::Malformed { .. } | LedgerError::Script { .. } => {
            LedgerErrorKind::Reply
        }
    }
}
