//! TokenBudgets that cannot both be kept: the younger steps back and names the older.
//!
//! Only what is certain from the specs counts. A deployment that selectors of different kinds (`modelName` here, `apiBase`
//! there) both happen to match spends from both limits, as it does from several limits of one TokenBudget.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;

use super::observe::TargetSeen;
use super::validate::Problem;
use super::{Error, World};
use crate::api::{Clash, Reason, TargetRef, TokenBudget};
use crate::litellm::choose_container;

/// The TokenBudgets that name a Deployment, without those that step back. Who steps back claims nothing, at none of its
/// Deployments: a third that only it clashes with is kept.
///
/// # Errors
/// When a Deployment cannot be read.
pub fn kept(namespace: &str, deployment: &str, world: &World) -> Result<Vec<Arc<TokenBudget>>, Error> {
    let mut known = BTreeMap::new();
    let mut kept = world.budgets_of(namespace, deployment);
    for tb in &kept {
        steps_back(tb, namespace, world, &mut known)?;
    }
    kept.retain(|tb| known.get(&tb.name_any()) != Some(&true));
    Ok(kept)
}

/// Whether an older one that does not itself step back has claimed something of it before. It asks for older ones only, so it
/// comes to an end.
fn steps_back(
    tb: &TokenBudget,
    namespace: &str,
    world: &World,
    known: &mut BTreeMap<String, bool>,
) -> Result<bool, Error> {
    if let Some(&known) = known.get(&tb.name_any()) {
        return Ok(known);
    }
    let mut found = false;
    for TargetRef { name, .. } in &tb.spec.target_refs {
        let mut older = world.budgets_of(namespace, name);
        older.retain(|other| is_older(other, tb));
        older.sort_by_key(|other| age(other));
        // To unpack a Deployment is dear, and most have one TokenBudget.
        let deployment = if older.is_empty() { None } else { world.deployment(namespace, name)? };
        for other in older.iter().filter(|other| clash(tb, other, name, deployment.as_deref()).is_some()) {
            found = found || !steps_back(other, namespace, world, known)?;
        }
    }
    known.insert(tb.name_any(), found);
    Ok(found)
}

/// The first thing that an older TokenBudget of the same Deployments has claimed before, if there is one.
#[must_use]
pub fn overlap(tb: &TokenBudget, targets: &[TargetSeen]) -> Option<Problem> {
    targets.iter().find_map(|target| {
        let mut older: Vec<&Arc<TokenBudget>> = target.budgets.iter().filter(|other| is_older(other, tb)).collect();
        older.sort_by_key(|other| age(other));
        older.into_iter().find_map(|other| conflict(tb, other, &target.reference, target.deployment.as_deref()))
    })
}

/// Older ones are smaller; of two of the same second the one whose name comes first.
fn age(tb: &TokenBudget) -> (Option<jiff::Timestamp>, String) {
    (tb.metadata.creation_timestamp.as_ref().map(|at| at.0), tb.name_any())
}

fn is_older(other: &TokenBudget, tb: &TokenBudget) -> bool {
    other.uid() != tb.uid() && other.metadata.deletion_timestamp.is_none() && age(other) < age(tb)
}

fn conflict(
    tb: &TokenBudget,
    older: &TokenBudget,
    target: &TargetRef,
    deployment: Option<&Deployment>,
) -> Option<Problem> {
    let (name, deployment_name) = (older.name_any(), &target.name);
    let (reason, message) = match clash(tb, older, deployment_name, deployment)? {
        Clash::Ledgers => (
            Reason::SeveralLedgers,
            format!(
                "TokenBudget {name} has another spec.redis for Deployment {deployment_name}, and is older: all TokenBudgets \
                 of a Deployment share one Redis, so write the same in both"
            ),
        ),
        Clash::Containers { mine, theirs } => (
            Reason::Overlap,
            format!(
                "TokenBudget {name} names container {theirs} of Deployment {deployment_name}, this one {mine}, and is older: \
                 name the same container in both"
            ),
        ),
        Clash::Derived => (
            Reason::Overlap,
            format!(
                "TokenBudget {name} makes every declared tpm and rpm of Deployment {deployment_name} fleet-wide already, and is \
                 older: delete one of them, or give this one spec.limits"
            ),
        ),
        Clash::Limits { mine: (mine, _), theirs: (theirs, _) } => (
            Reason::Overlap,
            format!(
                "limit {mine} and limit {theirs} of TokenBudget {name} select the same deployments of Deployment \
                 {deployment_name}, and {name} is older: change the models of one, or delete it"
            ),
        ),
    };
    Some(Problem { reason, message })
}

fn clash<'a>(
    tb: &'a TokenBudget,
    older: &'a TokenBudget,
    name: &str,
    deployment: Option<&Deployment>,
) -> Option<Clash<'a>> {
    let container =
        |target: &TargetRef| Some(choose_container(deployment?, target.container.as_deref()).ok()?.name.clone());
    tb.spec.clash(&older.spec, name, container)
}

/// Those of a Deployment's TokenBudgets whose wishes for it count: not those that go, and not those that an older one has made
/// step back there.
pub fn standing<'a>(
    budgets: &'a [Arc<TokenBudget>],
    deployment: &'a Deployment,
) -> impl Iterator<Item = &'a TokenBudget> {
    let name = deployment.name_any();
    let steps_back = move |tb: &TokenBudget| {
        let mut older = budgets.iter().filter(|other| is_older(other, tb));
        older.any(|older| clash(tb, older, &name, Some(deployment)).is_some())
    };
    let stays = |tb: &TokenBudget| tb.metadata.deletion_timestamp.is_none();
    budgets.iter().map(Arc::as_ref).filter(move |tb| stays(tb) && !steps_back(tb))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(name: &str, second: u8, spec: &str) -> TokenBudget {
        serde_saphyr::from_str(&format!(
            "{{apiVersion: tokenbudget.dev/v1alpha1, kind: TokenBudget, metadata: {{name: {name}, uid: {name}, namespace: llm, \
             creationTimestamp: '2026-11-24T12:00:0{second}Z'}}, spec: {{targetRefs: [{{name: litellm}}], {spec}}}}}"
        ))
        .unwrap()
    }

    fn limit(name: &str, model: &str) -> String {
        format!("limits: [{{name: {name}, tokensPerMinute: 5, models: [{{{model}}}]}}]")
    }

    fn found(tb: &TokenBudget, others: &[&TokenBudget]) -> Option<(Reason, String)> {
        let budgets = others.iter().map(|other| Arc::new((*other).clone())).collect();
        let target = TargetSeen { reference: tb.spec.target_refs[0].clone(), budgets, ..TargetSeen::default() };
        overlap(tb, &[target]).map(|problem| (problem.reason, problem.message))
    }

    #[test]
    fn who_stepped_back_has_no_wishes() {
        let deployment: Deployment = serde_saphyr::from_str("{metadata: {name: litellm}}").unwrap();
        let [a, b, c] =
            [budget("a", 1, "mode: Observe"), budget("b", 2, "mode: Enforce"), budget("c", 3, &limit("c", "id: x"))];
        let all = [&b, &c, &a].map(|tb| Arc::new(tb.clone()));
        let standing: Vec<String> = standing(&all, &deployment).map(ResourceExt::name_any).collect();
        assert_eq!(standing, ["c", "a"]);
    }

    #[test]
    fn who_stepped_back_at_one_deployment_claims_nothing_at_another() {
        let models = |models: &str| format!("limits: [{{name: x, tokensPerMinute: 5, models: [{models}]}}]");
        let both = models("{modelName: gpt-4o}, {modelName: claude}");
        let [a, mut b, mut c] = [
            budget("a", 1, &models("{modelName: gpt-4o}")),
            budget("b", 2, &both),
            budget("c", 3, &models("{modelName: claude}")),
        ];
        let second = TargetRef { name: "second".to_owned(), ..a.spec.target_refs[0].clone() };
        b.spec.target_refs.push(second.clone());
        c.spec.target_refs = vec![second];
        let kept = |budgets: &[&TokenBudget], deployment: &str| {
            let litellm = serde_json::json!({"metadata": {"name": "litellm", "namespace": "llm"}});
            let world = World::of(litellm).with_budgets(budgets.iter().map(|tb| (*tb).clone()));
            let kept = kept("llm", deployment, &world).unwrap();
            kept.iter().map(|tb| tb.name_any()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[&a, &b, &c], "litellm"), ["a"]);
        assert_eq!(kept(&[&a, &b, &c], "second"), ["c"], "b yields to a, so nobody else keeps claude");
        assert_eq!(kept(&[&b, &c], "second"), ["b"]);
    }

    #[test]
    fn the_younger_steps_back_and_names_the_older() {
        let older = budget("older", 1, &limit("a", "modelName: gpt-4o"));
        let younger = budget("younger", 2, &limit("b", "modelName: gpt-4o, apiBase: 'http://x'"));
        let (reason, message) = found(&younger, &[&older, &younger]).unwrap();
        assert_eq!(reason, Reason::Overlap);
        assert!(message.starts_with("limit b and limit a of TokenBudget older select the same"), "{message}");
        assert_eq!(found(&older, &[&older, &younger]), None);
    }

    #[test]
    fn of_two_of_one_second_the_first_by_name_stays() {
        let (a, b) = (budget("a", 1, &limit("x", "id: one")), budget("b", 1, &limit("x", "id: one")));
        assert!(found(&a, &[&b]).is_none() && found(&b, &[&a]).is_some());
    }

    #[test]
    fn one_that_is_being_deleted_claims_nothing() {
        let mut older = budget("older", 1, &limit("x", "id: one"));
        older.metadata.deletion_timestamp = older.metadata.creation_timestamp.clone();
        assert_eq!(found(&budget("younger", 2, &limit("x", "id: one")), &[&older]), None);
    }

    #[test]
    fn only_what_is_certain_is_an_overlap() {
        for (older, younger, overlaps) in [
            (limit("a", "modelName: gpt-4o"), limit("a", "modelName: gpt-4o-mini"), false),
            (limit("a", "modelName: gpt-4o"), limit("a", "apiBase: 'http://x'"), false),
            (limit("a", "modelName: gpt-4o, id: x"), limit("a", "modelName: gpt-4o, id: y"), false),
            (limit("a", "modelName: gpt-4o, id: x"), limit("a", "modelName: gpt-4o"), true),
            // An explicit limit beats a derived one for what it matches.
            ("mode: Enforce".to_owned(), limit("a", "modelName: gpt-4o"), false),
            (limit("a", "modelName: gpt-4o"), "mode: Enforce".to_owned(), false),
            ("mode: Enforce".to_owned(), "mode: Observe".to_owned(), true),
        ] {
            let (older, younger) = (budget("older", 1, &older), budget("younger", 2, &younger));
            let reason = found(&younger, &[&older]).map(|(reason, _)| reason);
            assert_eq!(reason, overlaps.then_some(Reason::Overlap), "{older:?} {younger:?}");
        }
    }

    #[test]
    fn a_deployment_has_one_redis_and_one_container() {
        let redis =
            |name: &str| format!("redis: {{urlSecretRef: {{name: {name}, key: url}}}}, {}", limit(name, "id: x"));
        let reason =
            found(&budget("younger", 2, &redis("b")), &[&budget("older", 1, &redis("a"))]).map(|(reason, _)| reason);
        assert_eq!(reason, Some(Reason::SeveralLedgers));

        let deployment: Deployment = serde_saphyr::from_str(
            "{metadata: {name: litellm}, spec: {selector: {}, template: {spec: {containers: [{name: litellm}, {name: other}]}}}}",
        )
        .unwrap();
        let (older, mut younger) =
            (budget("older", 1, &limit("a", "id: x")), budget("younger", 2, &limit("b", "id: y")));
        younger.spec.target_refs[0].container = Some("other".to_owned());
        let target = TargetSeen {
            reference: younger.spec.target_refs[0].clone(),
            budgets: vec![Arc::new(older)],
            deployment: Some(Arc::new(deployment)),
            ..TargetSeen::default()
        };
        let problem = overlap(&younger, &[target]).unwrap();
        assert!(problem.message.contains("names container litellm"), "{}", problem.message);
    }
}
