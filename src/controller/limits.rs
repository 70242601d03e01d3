//! Which limits a TokenBudget comes to: those of its spec, or those that LiteLLM's own configuration declares. Pure.

use std::collections::BTreeMap;

use crate::api::{DeploymentSelector, Limit, LimitStatus, TokenBudgetSpec};
use crate::digest::digest;
use crate::ledger::{Declared, MOST_LIMITS, Report, Unit};

/// One limit as the fleet is to keep it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EffectiveLimit {
    /// Its name, also in the ledger's keys.
    pub name: String,
    /// What spends from it; empty for a derived limit.
    pub models: Vec<DeploymentSelector>,
    /// The identity of the LiteLLM deployment that declared it.
    pub derived: Option<String>,
    /// Tokens per minute.
    pub tokens: Option<u64>,
    /// Requests per minute.
    pub requests: Option<u64>,
}

impl EffectiveLimit {
    /// The books of this limit: unit and budget.
    pub fn books(&self) -> impl Iterator<Item = (Unit, u64)> + '_ {
        let tokens = self.tokens.map(|budget| (Unit::Tokens, budget));
        let requests = self.requests.map(|budget| (Unit::Requests, budget));
        tokens.into_iter().chain(requests)
    }

    fn of_spec(spec: &TokenBudgetSpec, limit: &Limit) -> Self {
        let budget = |quota: Option<i64>| quota.and_then(|v| u64::try_from(v).ok()).map(|v| spec.without_headroom(v));
        Self {
            name: limit.name.clone(),
            models: limit.models.clone(),
            derived: None,
            tokens: budget(limit.tokens_per_minute),
            requests: budget(limit.requests_per_minute),
        }
    }

    /// Takes in what one more process declares for the same deployment. While processes disagree (a rolling update) the
    /// smaller value counts.
    fn narrow(&mut self, tokens: Option<u64>, requests: Option<u64>) {
        let smaller = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        self.tokens = smaller(self.tokens, tokens);
        self.requests = smaller(self.requests, requests);
    }
}

/// The most limits that are derived for a TokenBudget. In tokens and requests each is 1.6 to 2.2 KB of the status, with what the
/// API server notes of who owns which field, and an object has room for 1.5 MiB. A report tells of no more.
pub const MOST_DERIVED: usize = MOST_LIMITS;

/// What is known about the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limits {
    /// These, by name.
    Known(Vec<EffectiveLimit>),
    /// They are to be derived, and no process has said yet what it declares.
    Waiting,
    /// They are to be derived, and no process declares any.
    NoneDeclared,
}

impl Limits {
    /// Drops those beyond [`MOST_DERIVED`], by name, and says how many there were.
    pub fn cut(&mut self) -> Option<usize> {
        let Self::Known(limits) = self else { return None };
        let declared = limits.len();
        limits.truncate(MOST_DERIVED);
        (declared > MOST_DERIVED).then_some(declared)
    }
}

/// The limits of the spec; else what live processes declare; else, while none has said so, what the status holds from
/// before.
#[must_use]
pub fn effective<'a>(spec: &TokenBudgetSpec, live: impl Iterator<Item = &'a Report>, before: &[LimitStatus]) -> Limits {
    if !spec.derives_limits() {
        return Limits::Known(spec.limits.iter().map(|limit| EffectiveLimit::of_spec(spec, limit)).collect());
    }
    let declared: Vec<&[Declared]> = live.filter_map(|report| report.declared.as_deref()).collect();
    let mut derived: BTreeMap<String, EffectiveLimit> = BTreeMap::new();
    if declared.is_empty() {
        for row in before.iter().filter(|row| row.derived.is_some()) {
            // Without the headroom already.
            let budget = u64::try_from(row.budget).ok();
            let (tokens, requests) = if row.unit == Unit::Tokens.as_str() { (budget, None) } else { (None, budget) };
            let blank = EffectiveLimit { name: row.name.clone(), derived: row.derived.clone(), ..Default::default() };
            derived.entry(row.name.clone()).or_insert(blank).narrow(tokens, requests);
        }
    }
    // By what names a deployment, as the names of two limits may be alike.
    let mut deployments: BTreeMap<&str, (&str, EffectiveLimit)> = BTreeMap::new();
    for entry in declared.iter().copied().flatten() {
        let positive = |value: Option<u64>| value.filter(|v| *v > 0).map(|v| spec.without_headroom(v));
        let (tokens, requests) = (positive(entry.tokens_per_minute), positive(entry.requests_per_minute));
        if tokens.is_some() || requests.is_some() {
            let blank = || (entry.model_name.as_deref().unwrap_or_default(), EffectiveLimit::default());
            deployments.entry(&entry.identity).or_insert_with(blank).1.narrow(tokens, requests);
        }
    }
    for (identity, (group, limit)) in deployments {
        let mut name = derived_name(group, identity, 6);
        if derived.contains_key(&name) {
            name = derived_name(group, identity, 12);
        }
        derived.insert(name.clone(), EffectiveLimit { name, derived: Some(identity.to_owned()), ..limit });
    }
    match (derived.is_empty(), declared.is_empty()) {
        (false, _) => Limits::Known(derived.into_values().collect()),
        (true, true) => Limits::Waiting,
        (true, false) => Limits::NoneDeclared,
    }
}

/// The name of a derived limit: the model group as far as a name allows it, and six digits of its identity, so that it
/// stays the same whatever else comes and goes; more digits where another one has these.
fn derived_name(model_name: &str, identity: &str, digits: usize) -> String {
    let clean = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' }
    };
    let group: String = model_name.chars().take(40).map(clean).collect();
    let digits = digest(identity, digits);
    match group.trim_matches(|c| c == '-' || c == '.') {
        "" => format!("model-{digits}"),
        group => format!("{group}-{digits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> TokenBudgetSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn report(declared: &str) -> Report {
        serde_saphyr::from_str(&format!(
            "{{pod: p, podUid: u, container: litellm, worker: 1, startedMs: 0, agent: 0.1.0, policy: '', state: Starting, \
             problems: [], declared: {declared}}}"
        ))
        .unwrap()
    }

    const GPT: &str = "{identity: 'gpt-4o|openai/gpt-4o|http://x|0', modelName: gpt-4o, litellmModel: openai/gpt-4o, \
                       apiBase: 'http://x', id: null, tokensPerMinute: TPM, requestsPerMinute: null}";

    fn derive(reports: &[Report], before: &[LimitStatus]) -> Limits {
        effective(&spec("targetRefs: [{name: litellm}]"), reports.iter(), before)
    }

    #[test]
    fn two_deployments_whose_names_would_be_alike_have_a_limit_each() {
        let mut seen: std::collections::HashMap<String, String> = std::collections::HashMap::new();
        let (one, other) = (0..)
            .find_map(|i| {
                let identity = format!("gpt-4o|openai/gpt-4o|http://{i}|0");
                seen.insert(digest(&identity, 6), identity.clone()).map(|before| (before, identity))
            })
            .unwrap();
        let declared = [&one, &other].map(|identity| GPT.replace("gpt-4o|openai/gpt-4o|http://x|0", identity));
        let tpm = |text: &str, tpm: &str| text.replace("TPM", tpm);
        let both = report(&format!("[{}, {}]", tpm(&declared[0], "100"), tpm(&declared[1], "200")));
        let Limits::Known(limits) = derive(&[both], &[]) else { panic!("none") };
        let mut told: Vec<_> = limits.iter().map(|l| (l.derived.clone().unwrap(), l.tokens)).collect();
        told.sort();
        let mut expected = vec![(one, Some(100)), (other, Some(200))];
        expected.sort();
        assert_eq!(told, expected);
        assert_ne!(limits[0].name, limits[1].name);
    }

    #[test]
    fn the_smaller_value_counts_while_processes_disagree() {
        let reports = [
            report(&format!("[{}]", GPT.replace("TPM", "60000"))),
            report(&format!("[{}]", GPT.replace("TPM", "50000"))),
        ];
        let Limits::Known(limits) = derive(&reports, &[]) else { panic!() };
        assert_eq!(limits.len(), 1);
        assert_eq!((limits[0].tokens, limits[0].requests), (Some(50_000), None));
        assert!(limits[0].name.starts_with("gpt-4o-"), "{}", limits[0].name);
    }

    #[test]
    fn waits_until_a_process_has_said_what_it_declares() {
        assert_eq!(derive(&[report("null")], &[]), Limits::Waiting);
        assert_eq!(derive(&[report("null"), report("[]")], &[]), Limits::NoneDeclared);
    }

    fn derived_row(name: &str, budget: i64) -> LimitStatus {
        LimitStatus {
            name: name.to_owned(),
            unit: "tokens".to_owned(),
            budget,
            derived: Some("x".to_owned()),
            ..LimitStatus::default()
        }
    }

    #[test]
    fn the_status_bridges_an_empty_fleet() {
        let row = derived_row("gpt-4o-aaaaaa", 60_000);
        let Limits::Known(limits) = derive(&[report("null")], std::slice::from_ref(&row)) else { panic!() };
        assert_eq!((limits[0].name.as_str(), limits[0].tokens), ("gpt-4o-aaaaaa", Some(60_000)));
        assert_eq!(derive(&[report("[]")], &[row]), Limits::NoneDeclared);
    }

    #[test]
    fn explicit_limits_ignore_what_is_declared() {
        let spec =
            spec("{targetRefs: [{name: a}], limits: [{name: x, models: [{modelName: gpt-4o}], requestsPerMinute: 9}]}");
        let Limits::Known(limits) = effective(&spec, std::iter::empty(), &[]) else { panic!() };
        assert_eq!(limits[0].books().collect::<Vec<_>>(), [(Unit::Requests, 9)]);
    }

    #[test]
    fn the_headroom_is_taken_once_from_every_limit() {
        let explicit = spec(
            "{targetRefs: [{name: a}], headroomPercent: 10, limits: [{name: x, models: [{id: x}], tokensPerMinute: 1000, \
             requestsPerMinute: 9}]}",
        );
        let budgets = |limits: Limits| match limits {
            Limits::Known(limits) => limits.iter().flat_map(EffectiveLimit::books).map(|(_, b)| b).collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        assert_eq!(budgets(effective(&explicit, std::iter::empty(), &[])), [900, 8]);
        let deriving = spec("{targetRefs: [{name: a}], headroomPercent: 10}");
        let declared = report(&format!("[{}]", GPT.replace("TPM", "60000")));
        let now = effective(&deriving, [&declared].into_iter(), &[]);
        assert_eq!(budgets(now), [54_000]);
        assert_eq!(budgets(effective(&deriving, std::iter::empty(), &[derived_row("gpt", 54_000)])), [54_000]);
    }

    #[test]
    fn names_are_fit_for_keys_and_stable() {
        // printf a | sha256sum: another name in a later version would leave the books of the one before.
        assert_eq!(derived_name("gpt", "a", 6), "gpt-ca9781");
        assert_ne!(derived_name("gpt", "a", 6), derived_name("gpt", "b", 6));
        assert!(derived_name("*", "a", 6).starts_with("model-"));
        assert_eq!(derived_name("Azure/GPT 4o", "a", 6), "azure-gpt-4o-ca9781");
    }
}
