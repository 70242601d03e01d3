//! Reads LiteLLM's own counters of the minute that has just ended, once a minute, for the comparison in `traffic`.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use kube::ResourceExt;
use tracing::{debug, warn};

use super::evidence::Evidence;
use super::memory::Memory;
use super::traffic::{alive, minute_of};
use crate::api::TokenBudget;
use crate::causes::Causes;
use crate::ledger::Observation;
use crate::litellm::counters;

/// Seconds into a minute from which on the counters of the minute before are read: the clocks of processes are a little
/// behind, and what they write is under way for a moment.
const FROM: i64 = 3;

/// Seconds over which TokenBudgets spread what they read, each always in the same: with 1,000 of them every pass of one
/// second would read, and all others be late. Not longer: what LiteLLM counted early in a minute would be gone.
const SPREAD: u64 = 6;

/// Seconds into a minute from which on they are not read any more. A counter lives for 60 s from its last call on: so
/// late, one with its last call in these seconds is gone, and what it had counted is missed.
const UNTIL: i64 = 20;

/// The second of a minute from which on the TokenBudget with this UID reads.
fn reads_from(uid: &str) -> i64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    FROM + i64::try_from(hasher.finish() % SPREAD).unwrap_or(0)
}

/// Reads the counters when it is time to. Failing is no reason to fail a pass: the minute stays unknown.
pub async fn read(tb: &TokenBudget, seen: &Observation, evidence: &Evidence, memory: &mut Memory, now: Timestamp) {
    let minute = minute_of(now).saturating_sub(1);
    let from = reads_from(&tb.uid().unwrap_or_default());
    if !(from..UNTIL).contains(&(now.as_second() % 60)) || !memory.fleet.outside.is_due(minute) {
        return;
    }
    let Some((_, ledger)) = memory.ledger.connection.clone() else { return };
    let named = counters::deployments(alive(seen, evidence).map(|(_, report)| report));
    let keys = counters::keys(&named, minute);
    let texts = if keys.is_empty() { Ok(Vec::new()) } else { ledger.texts(&keys).await };
    let counted = match texts {
        Ok(texts) => Some(counters::sums(&named, &texts)),
        Err(error) => {
            // Said once: a user of Redis who may not read them stays so.
            if std::mem::replace(&mut memory.fleet.counters_failed, true) {
                debug!(name = tb.name_any(), error = %Causes(&error), "LiteLLM's counters could not be read");
            } else {
                warn!(name = tb.name_any(), error = %Causes(&error), "LiteLLM's counters could not be read: traffic outside is not seen");
            }
            None
        }
    };
    memory.fleet.counters_failed &= counted.is_none();
    memory.fleet.outside.counted(minute, counted);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn many_do_not_read_in_the_same_second() {
        let mut seconds = BTreeMap::<i64, u32>::new();
        for n in 0..600 {
            let uid = format!("0b9c2f1e-5a0e-4c39-9c55-{n:012x}");
            assert_eq!(reads_from(&uid), reads_from(&uid), "each always in the same");
            *seconds.entry(reads_from(&uid)).or_default() += 1;
        }
        assert_eq!(seconds.keys().copied().collect::<Vec<_>>(), (FROM..FROM + 6).collect::<Vec<_>>());
        assert!(seconds.values().all(|n| (50..200).contains(n)), "{seconds:?}");
    }
}
