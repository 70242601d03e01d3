//! A cluster that does not let the operator write: an admission policy denies what it does to a Deployment, and a Redis never
//! answers. It is said, it is tried again, it holds up nobody else, and deletion ends.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::checks::{delete_within, manifest, untouched};
use super::fleet::{Fleet, message, until};
use super::operator::Passes;
use super::rig::{OPERATOR_NAMESPACE, Rig};

const NAME: &str = "denied";
const SOON: Duration = Duration::from_secs(20);

/// A finalizer goes by then, whatever is broken.
const ENDS: Duration = Duration::from_secs(30);

/// Runs all of it on Deployment `pair`, which has no pods.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    let spec = "targetRefs: [{name: pair, container: one}]\n  redis: {urlSecretRef: {name: open-redis, key: url}}\n  \
                limits: [{name: a, models: [{modelName: m}], tokensPerMinute: 600}]";
    rig.redis_secret("open-redis", &rig.redis_url)?;
    deny(rig).await?;
    rig.apply_text(&manifest(NAME, spec))?;
    fleet.until_condition(NAME, "Attached", "False", Some("AttachFailed"), SOON).await?;
    let message = message(&fleet.get("tokenbudget", NAME)?, "Attached");
    ensure!(message.contains("not while we look"), "Attached says: {message}");
    allow(rig)?;
    let took = until("it is attached once it may be", SOON, || Ok(untouched(&fleet, "pair").is_err())).await?;
    println!(
        "check: a policy that denies the Deployment is AttachFailed, and {:.1} s after its end it is attached",
        took.as_secs_f32()
    );

    deny(rig).await?;
    let started = Instant::now();
    delete_within(rig, NAME, ENDS)?;
    ensure!(untouched(&fleet, "pair").is_err(), "the policy denied nothing: this check is void");
    println!(
        "check: a TokenBudget whose Deployment may not be written is gone after {:.0} s",
        started.elapsed().as_secs_f32()
    );
    allow(rig)?;
    hangs(rig, &fleet, spec).await
}

/// What was left is taken out with another TokenBudget's end. That has a Redis which takes connections and never answers: nobody
/// else waits for it, and its deletion ends, too.
async fn hangs(rig: &Rig, fleet: &Fleet<'_>, spec: &str) -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    rig.redis_secret("silent-redis", &format!("redis://{}", silent.local_addr()?))?;
    rig.apply_text(&manifest("silent", &spec.replace("open-redis", "silent-redis")))?;
    fleet.until_condition("silent", "LedgerReachable", "False", Some("LedgerUnreachable"), SOON).await?;
    let before = Passes::so_far(rig)?;
    let counted = Instant::now();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let rate = Passes::so_far(rig)?.since(&before).count / counted.elapsed().as_secs_f64();
    ensure!(rate > 0.8, "with a Redis of another that hangs there are only {rate:.1} passes a second");
    let started = Instant::now();
    delete_within(rig, "silent", ENDS)?;
    untouched(fleet, "pair")?;
    println!(
        "check: beside a Redis that never answers there are {rate:.1} passes a second; its TokenBudget is gone after {:.0} s, and \
         takes the agent out of the Deployment",
        started.elapsed().as_secs_f32()
    );
    rig.kubectl(&["-n", "llm", "delete", "secret", "silent-redis", "open-redis"]).map(drop)
}

/// Denies the operator to change Deployment `pair`, and waits until that holds.
async fn deny(rig: &Rig) -> Result<()> {
    let policy = format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {{name: freeze}}\nspec:\n  \
         failurePolicy: Fail\n  matchConstraints: {{resourceRules: [{{apiGroups: [apps], apiVersions: [v1], operations: [UPDATE], \
         resources: [deployments]}}]}}\n  validations:\n  - expression: \"object.metadata.name != 'pair' || request.userInfo.username \
         != 'system:serviceaccount:{OPERATOR_NAMESPACE}:tokenbudget' && !('frozen' in object.metadata.annotations)\"\n    \
         message: not while we look\n---\napiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\n\
         metadata: {{name: freeze}}\nspec: {{policyName: freeze, validationActions: [Deny]}}\n"
    );
    rig.apply_text(&policy)?;
    // The API server takes a new policy in within a second or two.
    let tried = ["-n", "llm", "annotate", "deployment", "pair", "frozen=yes", "--overwrite", "--dry-run=server"];
    until("the policy holds", SOON, || Ok(rig.kubectl(&tried).is_err())).await.map(drop)
}

fn allow(rig: &Rig) -> Result<()> {
    rig.kubectl(&["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "freeze"]).map(drop)
}
