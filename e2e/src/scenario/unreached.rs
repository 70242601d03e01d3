//! `spec.redis` names a Redis that does not answer, or does not know the password yet: the fleet goes on by the one that it has.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::fleet::{Fleet, message, until};
use super::knobs::set;
use super::rig::{OPERATOR_NAMESPACE, Rig};

const SOON: Duration = Duration::from_secs(20);

/// The operator looks, by what it remembers and without that; a rollout would send the pods to where no ledger is.
///
/// # Errors
/// What did not hold.
pub async fn run(rig: &Rig, fleet: &Fleet<'_>) -> Result<()> {
    fleet.until_condition("gpt-4o", "LedgerReachable", "True", None, Duration::from_secs(150)).await?;
    let template = || Ok::<_, anyhow::Error>(fleet.get("deployment", "litellm")?["spec"]["template"].clone());
    let before = template()?;
    rig.redis_secret("nowhere", "redis://:hunter2@127.0.0.1:1")?;
    set(rig, "gpt-4o", r#"{"redis": {"urlSecretRef": {"name": "nowhere", "key": "url"}}}"#)?;
    fleet.until_condition("gpt-4o", "LedgerReachable", "False", Some("LedgerUnreachable"), SOON).await?;
    let tb = fleet.get("tokenbudget", "gpt-4o")?;
    let said = message(&tb, "LedgerReachable");
    ensure!(said.contains("goes on by the one before it"), "it is not said that the ledger before serves: {said}");
    // Withdrawn, all of the budget would be set aside.
    let pool = tb["status"]["limits"][0]["pool"].as_i64().unwrap_or(i64::MIN);
    ensure!(pool >= 0, "the ledger before lends nothing more: its pool is {pool}");
    ensure!(template()? == before, "the pods roll over to a Redis that does not answer");

    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "restart", "deployment/tokenbudget"])?;
    rig.kubectl(&["-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment/tokenbudget", "--timeout=120s"])?;
    let knows_none = || {
        let said = message(&fleet.get("tokenbudget", "gpt-4o")?, "LedgerReachable");
        Ok(said.contains("cannot be reached") && !said.contains("the one before"))
    };
    until("an operator that knows no ledger before says so", Duration::from_secs(60), knows_none).await?;
    ensure!(
        template()? == before,
        "an operator that has just begun rolls the pods over to a Redis that does not answer"
    );

    set(rig, "gpt-4o", r#"{"redis": null}"#)?;
    let took = fleet.until_condition("gpt-4o", "LedgerReachable", "True", Some("LedgerAnswers"), SOON).await?;
    rig.kubectl(&["-n", "llm", "delete", "secret", "nowhere"])?;
    println!(
        "check: the fleet stays with its ledger while another does not answer, and has it back {:.1} s after",
        took.as_secs_f32()
    );
    Ok(())
}
