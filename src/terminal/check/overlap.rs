//! Two TokenBudgets that claim the same LiteLLM deployment of the same fleet: each request would be charged to both.

use crate::api::{DeploymentSelector, Relation, TokenBudget};

/// What two TokenBudgets have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Some LiteLLM deployments are claimed by both.
    Certain {
        /// The Deployment that both name.
        deployment: String,
        /// What both claim.
        what: String,
    },
    /// There may be such.
    Possible {
        /// The Deployment that both name.
        deployment: String,
        /// What both may claim.
        what: String,
    },
}

/// How two TokenBudgets of one namespace overlap, if they do.
#[must_use]
pub fn overlap(a: &TokenBudget, b: &TokenBudget) -> Option<Overlap> {
    let targets = |budget: &TokenBudget| budget.spec.target_refs.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    let others = targets(b);
    let deployment = targets(a).into_iter().find(|name| others.contains(name))?;
    if a.spec.derives_limits() && b.spec.derives_limits() {
        let what = "both have no limits, so each claims all that LiteLLM's configuration declares".to_owned();
        return Some(Overlap::Certain { deployment, what });
    }
    // A limit of a spec beats a derived one (`match` in the agent), so these two share nothing.
    if a.spec.derives_limits() || b.spec.derives_limits() {
        return None;
    }
    let mut possible = None;
    for (mine, theirs) in selectors(a).flat_map(|mine| selectors(b).map(move |theirs| (mine, theirs))) {
        let what = || {
            let (a, b) = (text(mine.1), text(theirs.1));
            if a == b {
                format!("limits {} and {} both select {a}", mine.0, theirs.0)
            } else {
                format!("limit {} selects {a}, limit {} selects {b}", mine.0, theirs.0)
            }
        };
        match mine.1.relation(theirs.1) {
            Relation::Covers => return Some(Overlap::Certain { deployment, what: what() }),
            Relation::MayMeet if possible.is_none() => possible = Some(what()),
            Relation::MayMeet | Relation::Apart => {}
        }
    }
    possible.map(|what| Overlap::Possible { deployment, what })
}

/// Every selector, with the name of its limit.
fn selectors(budget: &TokenBudget) -> impl Iterator<Item = (&str, &DeploymentSelector)> {
    budget.spec.limits.iter().flat_map(|limit| limit.models.iter().map(|model| (limit.name.as_str(), model)))
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
        let kind = |a: &str, b: &str| match overlap(&of("t", a), &of("t", b)) {
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
        assert_eq!(overlap(&of("t", "{id: i}"), &of("other", "{id: i}")), None);
    }

    #[test]
    fn a_budget_without_limits_claims_what_no_limit_of_a_spec_does() {
        let derives = budget("{targetRefs: [{name: u}, {name: t}]}");
        assert!(matches!(overlap(&derives, &derives), Some(Overlap::Certain { deployment, .. }) if deployment == "u"));
        assert_eq!(overlap(&derives, &of("t", "{id: i}")), None);
    }
}
