//! Two TokenBudgets that cannot both be kept, or may charge one request to both.

use crate::api::{Clash, DeploymentSelector, Relation, TargetRef, TokenBudget, TokenBudgetSpec};

/// What two TokenBudgets have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// The operator keeps the older one only.
    Certain {
        /// The Deployment that both name.
        deployment: String,
        /// Why.
        what: String,
    },
    /// Some LiteLLM deployments may be claimed by both.
    Possible {
        /// The Deployment that both name.
        deployment: String,
        /// What both may claim.
        what: String,
    },
}

/// How two TokenBudgets of one namespace overlap, if they do. `container` says which container of a Deployment a target means,
/// where that is known.
#[must_use]
pub fn overlap(a: &TokenBudget, b: &TokenBudget, container: impl Fn(&TargetRef) -> Option<String>) -> Option<Overlap> {
    let names = |spec: &TokenBudgetSpec, name: &str| spec.target_refs.iter().any(|target| target.name == name);
    let mut both = a.spec.target_refs.iter().map(|target| &target.name).filter(|name| names(&b.spec, name)).peekable();
    let first = (*both.peek()?).clone();
    let clash = |deployment: &String| Some((deployment.clone(), a.spec.clash(&b.spec, deployment, &container)?));
    if let Some((deployment, clash)) = both.find_map(clash) {
        let what = match clash {
            Clash::Ledgers => "they have different spec.redis, and a process has one ledger".to_owned(),
            Clash::Containers { mine, theirs } => format!("one names its container {mine}, the other {theirs}"),
            Clash::Derived => {
                "both have no limits, so each claims all that LiteLLM's configuration declares".to_owned()
            }
            Clash::Limits { mine, theirs } => both_select(mine, theirs),
        };
        return Some(Overlap::Certain { deployment, what });
    }
    // A limit of a spec beats a derived one (`match` in the agent), so these two share nothing.
    if a.spec.derives_limits() || b.spec.derives_limits() {
        return None;
    }
    let mut pairs = a.spec.selectors().flat_map(|mine| b.spec.selectors().map(move |theirs| (mine, theirs)));
    let (mine, theirs) = pairs.find(|(mine, theirs)| mine.1.relation(theirs.1) == Relation::MayMeet)?;
    Some(Overlap::Possible { deployment: first, what: both_select(mine, theirs) })
}

/// What two limits select, in words.
fn both_select(mine: (&str, &DeploymentSelector), theirs: (&str, &DeploymentSelector)) -> String {
    let (a, b) = (text(mine.1), text(theirs.1));
    if a == b {
        format!("limits {} and {} both select {a}", mine.0, theirs.0)
    } else {
        format!("limit {} selects {a}, limit {} selects {b}", mine.0, theirs.0)
    }
}

fn text(selector: &DeploymentSelector) -> String {
    let given = selector.fields().into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
    given.collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(spec: &str) -> TokenBudget {
        TokenBudget::new("x", serde_saphyr::from_str(spec).unwrap())
    }

    fn of(target: &str, models: &str) -> TokenBudget {
        budget(&format!(
            "{{targetRefs: [{{name: {target}}}], limits: [{{name: g, models: [{models}], tokensPerMinute: 1}}]}}"
        ))
    }

    #[test]
    fn selectors_are_compared_field_by_field() {
        let kind = |a: &str, b: &str| match overlap(&of("t", a), &of("t", b), |_| None) {
            Some(Overlap::Certain { .. }) => "certain",
            Some(Overlap::Possible { .. }) => "possible",
            None => "none",
        };
        assert_eq!(kind("{modelName: m}", "{modelName: m}"), "certain");
        assert_eq!(kind("{modelName: m}", "{modelName: m, apiBase: u}"), "certain");
        assert_eq!(kind("{modelName: m}", "{modelName: n}, {modelName: m}"), "certain");
        assert_eq!(kind("{modelName: m}", "{litellmModel: azure/m}"), "possible");
        assert_eq!(kind("{modelName: m, id: i}", "{modelName: m, id: j}"), "none");
        assert_eq!(kind("{modelName: m}", "{modelName: n}"), "none");
        assert_eq!(overlap(&of("t", "{id: i}"), &of("other", "{id: i}"), |_| None), None);
    }

    #[test]
    fn a_budget_without_limits_claims_what_no_limit_of_a_spec_does() {
        let derives = budget("{targetRefs: [{name: u}, {name: t}]}");
        assert!(
            matches!(overlap(&derives, &derives, |_| None), Some(Overlap::Certain { deployment, .. }) if deployment == "u")
        );
        assert_eq!(overlap(&derives, &of("t", "{id: i}"), |_| None), None);
    }

    #[test]
    fn one_process_has_one_ledger_and_one_container() {
        let what = |a: &str, b: &str| {
            let found = overlap(&budget(a), &budget(b), |target| target.container.clone());
            matches!(found, Some(Overlap::Certain { .. })).then_some(found).flatten()
        };
        let limit = |name: &str| format!("limits: [{{name: g, models: [{{id: {name}}}], tokensPerMinute: 1}}]");
        let of = |more: &str, id: &str| format!("{{targetRefs: [{{name: t{more}}}], {}}}", limit(id));
        let redis =
            format!("{{targetRefs: [{{name: t}}], redis: {{urlSecretRef: {{name: r, key: url}}}}, {}}}", limit("j"));
        assert!(what(&of("", "i"), &redis).is_some());
        assert!(what(&of(", container: a", "i"), &of(", container: b", "j")).is_some());
        assert!(what(&of(", container: a", "i"), &of(", container: a", "j")).is_none());
    }
}
