//! LiteLLM's own counters in Redis: what all processes whose router has that Redis sent, with or without our agent.
//!
//! `global_router:{model id}:{litellm model}:tpm:{HH-MM}` (and `rpm`) grows when a call ends, in the minute of UTC in which
//! it ends (LiteLLM 1.82.6 and 1.106.2: `router.py` `deployment_callback_on_success`). `tpm` counts the tokens of calls
//! that ended well; `rpm` counts failed ones, too (`async_deployment_callback_on_failure`). Each call that ends well sets
//! the time to live to 60 s (`redis_cache.py` `_pipeline_increment_helper`): a counter lives for that long from its last
//! one on.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::{MOST_DEPLOYMENTS, Report};
use crate::plan::Amounts;

/// Deployments of one TokenBudget that are looked at: two keys each, once a minute.
const MOST_DEPLOYMENTS_IN_ALL: usize = 1_000;

/// The deployments of each limit, as processes name them: `<model id>:<litellm model>`.
pub type Deployments = BTreeMap<String, BTreeSet<String>>;

/// The deployments whose counters tell of each limit. What is left out makes the fleet's own figures larger than the
/// counters', so that less is claimed and never more: deployments that two limits have, and those beyond the first 20 of
/// a limit and 1,000 of a TokenBudget.
#[must_use]
pub fn deployments<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Deployments {
    let mut limits = Deployments::new();
    for usage in reports.into_iter().filter_map(|report| report.limits.as_ref()).flatten() {
        limits.entry(usage.name.clone()).or_default().extend(usage.deployments.iter().cloned());
    }
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for deployment in limits.values().flatten() {
        *times.entry(deployment.clone()).or_default() += 1;
    }
    let mut room = MOST_DEPLOYMENTS_IN_ALL;
    for named in limits.values_mut() {
        let own = std::mem::take(named).into_iter().filter(|deployment| times.get(deployment) == Some(&1));
        *named = own.take(MOST_DEPLOYMENTS.min(room)).collect();
        room -= named.len();
    }
    limits
}

/// The keys of all these deployments for a minute (unix time in minutes), in their order: tokens, then requests.
#[must_use]
pub fn keys(deployments: &Deployments, minute: u64) -> Vec<String> {
    let of_day = minute % (24 * 60);
    let clock = format!("{:02}-{:02}", of_day / 60, of_day % 60);
    let both = |deployment: &String| ["tpm", "rpm"].map(|unit| format!("global_router:{deployment}:{unit}:{clock}"));
    deployments.values().flatten().flat_map(both).collect()
}

/// What the counters say of each limit; `values` are those of [`keys`], in their order. A counter that is not there has
/// counted nothing, or has expired.
#[must_use]
pub fn sums(deployments: &Deployments, values: &[Option<String>]) -> BTreeMap<String, Amounts> {
    let mut values = values.iter().map(|value| value.as_deref().and_then(count).unwrap_or(0));
    let mut sum = |named: &BTreeSet<String>| {
        let mut sum = Amounts::default();
        for _ in named {
            sum.tokens = sum.tokens.saturating_add(values.next().unwrap_or(0));
            sum.requests = sum.requests.saturating_add(values.next().unwrap_or(0));
        }
        sum
    };
    deployments.iter().map(|(limit, named)| (limit.clone(), sum(named))).collect()
}

/// INCRBYFLOAT writes whole numbers plainly, and others with a fraction, which no count of tokens has.
fn count(value: &str) -> Option<u64> {
    value.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(limits: &str) -> Report {
        let member = r#""pod": "p", "podUid": "u", "container": "c", "worker": 1, "startedMs": 0, "agent": "a""#;
        Report::read(&format!(r#"{{{member}, "state": "Enforcing", "limits": {limits}}}"#)).unwrap()
    }

    #[test]
    fn keys_are_those_of_litellm_by_utc() {
        let named = deployments(&[report(r#"[{"name": "gpt", "deployments": ["b:openai/gpt-4o", "a:azure/x:1"]}]"#)]);
        // 1790000000 s is 2026-09-21T14:13:20Z.
        assert_eq!(
            keys(&named, 1_790_000_000 / 60),
            [
                "global_router:a:azure/x:1:tpm:14-13",
                "global_router:a:azure/x:1:rpm:14-13",
                "global_router:b:openai/gpt-4o:tpm:14-13",
                "global_router:b:openai/gpt-4o:rpm:14-13"
            ]
        );
        assert!(keys(&named, 24 * 60 * 3)[0].ends_with(":tpm:00-00"));
    }

    #[test]
    fn counters_are_summed_by_limit_and_missing_ones_are_nothing() {
        let named = deployments(&[
            report(r#"[{"name": "a", "deployments": ["1:m", "2:m"]}, {"name": "b", "deployments": ["3:m"]}]"#),
            report(r#"[{"name": "a", "deployments": ["2:m"]}, {"name": "c"}]"#),
        ]);
        let values = ["500", "7", "", "1", "12.5", "-4"].map(|v| Some(v.to_owned()).filter(|v| !v.is_empty()));
        let of = |tokens, requests| Amounts { tokens, requests };
        let sums = sums(&named, &values);
        assert_eq!(
            sums.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), of(500, 8)), ("b".to_owned(), of(12, 0)), ("c".to_owned(), of(0, 0))]
        );
    }

    #[test]
    fn what_two_limits_have_and_what_is_too_much_is_left_out() {
        let shared = r#"[{"name": "a", "deployments": ["1:m", "2:m"]}, {"name": "b", "deployments": ["2:m"]}]"#;
        let named = deployments(&[report(shared)]);
        assert_eq!((named["a"].len(), named["b"].len()), (1, 0));

        let many = |limit: usize, from: usize| {
            let ids: Vec<String> = (from..from + 20).map(|i| format!("{limit}-{i}:m")).collect();
            serde_json::json!([{"name": limit.to_string(), "deployments": ids}]).to_string()
        };
        let reports: Vec<Report> = (0..60).flat_map(|l| [report(&many(l, 0)), report(&many(l, 15))]).collect();
        let named = deployments(&reports);
        assert!(named.values().all(|all| all.len() <= MOST_DEPLOYMENTS));
        assert_eq!(keys(&named, 0).len(), 2 * MOST_DEPLOYMENTS_IN_ALL);
    }
}
