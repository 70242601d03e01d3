//! Step 2, validate: what of the spec can be acted on, and what is wrong with the rest. Pure. Later steps do not read the
//! spec's targets and limits again.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;

use super::agent_pod::AgentPod;
use super::evidence::Evidence;
use super::limits::{Limits, MOST_DERIVED, effective};
use super::observe::Observed;
use super::overlap::{overlap, standing};
use crate::api::{AgentUpdatePolicy, Reason, TokenBudget};
use crate::ledger::Report;
use crate::litellm::{Wanted, choose_container, surge};
use crate::plan;

/// What can be acted on.
pub struct Validated {
    /// The Deployments that exist and have a container for the agent.
    pub targets: Vec<Target>,
    /// What is wrong, most important first; it makes Accepted False.
    pub problems: Vec<Problem>,
    /// The limits to keep.
    pub limits: Limits,
    /// Every process that has reported, by id.
    pub members: Vec<Member>,
}

/// A Deployment that runs LiteLLM.
pub struct Target {
    /// The Deployment.
    pub deployment: Arc<Deployment>,
    /// Name of the container that runs LiteLLM.
    pub container: String,
    /// What its attachment is to hold.
    pub wanted: Wanted,
    /// How many processes it may come to.
    pub size: plan::Target,
    /// Its pods that were made with the agent.
    pub pods: Vec<Arc<AgentPod>>,
    /// Its live pods that were made without.
    pub pods_without_agent: usize,
}

impl Validated {
    /// Whether an older TokenBudget of a Deployment has another Redis. Both may be on their way to it, one after the other, so what
    /// the processes hold stays.
    #[must_use]
    pub fn waits_for_another(&self) -> bool {
        // Of targets that name several themselves there are targets.
        self.targets.is_empty() && self.problems.iter().any(|problem| problem.reason == Reason::SeveralLedgers)
    }

    /// Pods with the agent that have not ended.
    #[must_use]
    pub fn living_pods(&self) -> usize {
        self.targets.iter().map(|target| target.pods.iter().filter(|pod| pod.is_living()).count()).sum()
    }

    /// Live pods that were made without the agent.
    #[must_use]
    pub fn pods_without_agent(&self) -> usize {
        self.targets.iter().map(|target| target.pods_without_agent).sum()
    }
}

impl Target {
    /// Name of the Deployment.
    #[must_use]
    pub fn name(&self) -> String {
        self.deployment.name_any()
    }
}

/// A process that has reported.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// What it said.
    pub report: Report,
    /// When it ended, as far as there is evidence, by the wall clock of its node, unix ms.
    pub finished_ms: Option<u64>,
}

/// Something that the user has to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For the condition.
    pub reason: Reason,
    /// What is wrong, and the way out.
    pub message: String,
}

/// Checks what was observed against the spec.
#[must_use]
pub fn validate(tb: &TokenBudget, observed: &Observed, evidence: &Evidence) -> Validated {
    if let Some(problem) = overlap(tb, &observed.targets) {
        // Nothing of it is kept: what the older one counts must not be counted twice.
        let members = members(observed, evidence);
        return Validated { targets: Vec::new(), problems: vec![problem], limits: Limits::Known(Vec::new()), members };
    }
    let mut problems = Vec::new();
    let mut targets = Vec::new();
    for seen in &observed.targets {
        let name = &seen.reference.name;
        let Some(deployment) = &seen.deployment else {
            let namespace = tb.namespace().unwrap_or_default();
            let message = format!(
                "there is no Deployment {name} in namespace {namespace}: correct targetRefs[].name, or create it"
            );
            problems.push(Problem { reason: Reason::TargetNotFound, message });
            continue;
        };
        let container = match choose_container(deployment, seen.reference.container.as_deref()) {
            Ok(container) => container,
            Err(refusal) => {
                problems.push(Problem { reason: refusal.reason(), message: refusal.to_string() });
                continue;
            }
        };
        let replicas = count(deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1));
        let most_replicas = seen.most_replicas.map(count);
        let most = replicas.max(most_replicas.unwrap_or(0));
        let redis_secret = observed.redis.as_ref().and_then(|r| r.as_ref().ok()).and_then(|l| l.secret.clone());
        targets.push(Target {
            container: container.name.clone(),
            wanted: Wanted {
                container: Some(container.name.clone()),
                redis_secret,
                inherited_hooks: seen.inherited_hooks.clone(),
                roll_out_agent: standing(&seen.budgets, deployment)
                    .any(|tb| tb.spec.agent_update_policy == AgentUpdatePolicy::RollingUpdate),
            },
            size: plan::Target { replicas, most_replicas, surge: surge(deployment, most), workers: seen.workers },
            pods: seen.pods.clone(),
            pods_without_agent: seen.pods_without_agent,
            deployment: deployment.clone(),
        });
    }
    if let Some(Err(no_redis)) = &observed.redis {
        problems.push(Problem { reason: no_redis.reason, message: no_redis.message.clone() });
    }

    let members = members(observed, evidence);
    let before = tb.status.as_ref().map_or(&[][..], |s| s.limits.as_slice());
    // After a flush they report again one by one: what the rest declared still counts.
    let reported = |id: &str| matches!(&observed.ledger, Some(Ok(seen)) if seen.reports.contains_key(id));
    let lost = observed.lost.iter().filter(|(id, _)| !reported(id)).map(|(_, report)| report);
    let live = members.iter().filter(|m| m.finished_ms.is_none()).map(|m| &m.report).chain(lost);
    let mut limits = effective(&tb.spec, live, before);
    if let Some(declared) = limits.cut() {
        let message = format!(
            "LiteLLM's configuration declares tpm or rpm for {declared} deployments, and a TokenBudget derives at most \
             {MOST_DERIVED} limits: those that come last by name go by LiteLLM's own limit in each process; name the deployments \
             that share a quota in spec.limits"
        );
        problems.push(Problem { reason: Reason::TooManyLimits, message });
    }
    if limits == Limits::NoneDeclared {
        let message =
            "no deployment in LiteLLM's configuration declares tpm or rpm, and spec.limits is empty: set one of them";
        problems.push(Problem { reason: Reason::NoLimits, message: message.to_owned() });
    }
    Validated { targets, problems, limits, members }
}

fn members(observed: &Observed, evidence: &Evidence) -> Vec<Member> {
    let Some(Ok(observation)) = &observed.ledger else {
        return Vec::new();
    };
    observation
        .reports
        .iter()
        .map(|(id, report)| Member { id: id.clone(), finished_ms: evidence.end_of(report), report: report.clone() })
        .collect()
}

fn count(replicas: i32) -> u32 {
    u32::try_from(replicas).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Observation;

    fn report(model: &str) -> Report {
        serde_json::from_value(serde_json::json!({"pod": "p", "podUid": "u", "container": "litellm", "worker": 1,
            "startedMs": 0, "agent": "0.1.0", "state": "Enforcing",
            "declared": [{"identity": model, "modelName": model, "tokensPerMinute": 9}]}))
        .unwrap()
    }

    #[test]
    fn a_flush_takes_no_derived_limit_away() {
        let tb = TokenBudget::new("tb", serde_json::from_str(r#"{"targetRefs": [{"name": "litellm"}]}"#).unwrap());
        let names = |reports: &[&str], lost: &[&str]| {
            let named = |models: &[&str]| models.iter().map(|m| ((*m).to_owned(), report(m))).collect();
            let seen = Observation { reports: named(reports), ..Observation::default() };
            let observed = Observed { ledger: Some(Ok(seen)), lost: named(lost), ..Observed::default() };
            match validate(&tb, &observed, &Evidence::default()).limits {
                Limits::Known(limits) => limits.into_iter().filter_map(|limit| limit.derived).collect(),
                Limits::Waiting | Limits::NoneDeclared => Vec::new(),
            }
        };
        assert_eq!(names(&["gpt", "claude"], &[]).len(), 2);
        assert_eq!(names(&["gpt"], &["gpt", "claude"]).len(), 2, "one process has reported again, and one has not");
        assert_eq!(names(&[], &["gpt", "claude"]).len(), 2);
    }

    #[test]
    fn only_one_that_steps_back_waits_for_another() {
        let waits = |reason, targets| {
            let problems = vec![Problem { reason, message: String::new() }];
            let valid = Validated { targets, problems, limits: Limits::Waiting, members: Vec::new() };
            valid.waits_for_another()
        };
        assert!(waits(Reason::SeveralLedgers, Vec::new()));
        assert!(!waits(Reason::Overlap, Vec::new()));
        let target = Target {
            deployment: Arc::default(),
            container: "litellm".to_owned(),
            wanted: Wanted::default(),
            size: plan::Target { replicas: 1, most_replicas: None, surge: 0, workers: 1 },
            pods: Vec::new(),
            pods_without_agent: 0,
        };
        assert!(!waits(Reason::SeveralLedgers, vec![target]), "its own targets name different servers");
    }

    #[test]
    fn what_is_derived_fits_into_a_status() {
        let tb = TokenBudget::new("tb", serde_json::from_str(r#"{"targetRefs": [{"name": "litellm"}]}"#).unwrap());
        let validated = |deployments: usize| {
            let reports = (0..deployments).map(|i| (i.to_string(), report(&format!("gpt-{i:04}")))).collect();
            let seen = Observation { reports, ..Observation::default() };
            validate(&tb, &Observed { ledger: Some(Ok(seen)), ..Observed::default() }, &Evidence::default())
        };
        let kept = |valid: &Validated| match &valid.limits {
            Limits::Known(limits) => limits.iter().map(|limit| limit.name.clone()).collect(),
            Limits::Waiting | Limits::NoneDeclared => Vec::new(),
        };
        let (fits, more) = (validated(MOST_DERIVED), validated(MOST_DERIVED + 1));
        assert!(fits.problems.is_empty());
        assert_eq!(kept(&more), kept(&fits), "the rest stays as it is when one more comes last");
        let [problem] = &more.problems[..] else { panic!("{:?}", more.problems) };
        assert_eq!(problem.reason, Reason::TooManyLimits);
        assert!(problem.message.contains("for 513 deployments"), "{}", problem.message);
    }
}
