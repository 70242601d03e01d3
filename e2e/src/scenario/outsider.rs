//! Traffic outside: a second Deployment on the same provider key and Redis, without the agent.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio_util::sync::CancellationToken;

use super::checks::told_once;
use super::fleet::{Fleet, message, until};
use super::rig::Rig;
use crate::load::{self, LoadSpec, TargetSpec};

/// Two whole minutes have to show it; the first may have begun already, and reports come 15 s into the next.
const PATIENCE: Duration = Duration::from_secs(240);

const NAME: &str = "outsider";

/// A load that runs beside other checks.
pub struct Outsider<'a> {
    rig: &'a Rig,
    started: Instant,
    stop: CancellationToken,
    load: tokio::task::JoinHandle<Result<load::LoadReport>>,
}

impl<'a> Outsider<'a> {
    /// Starts the Deployment, with the fleet's own config, and sends it about 6,000 tokens a minute.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(rig: &'a Rig) -> Result<Self> {
        Fleet::of(rig).copy_plain(NAME, |deployment| {
            let volumes = deployment["spec"]["template"]["spec"]["volumes"].as_array_mut();
            for volume in volumes.into_iter().flatten().filter(|volume| volume["name"] == "config") {
                volume["configMap"]["name"] = "litellm-config".into();
            }
        })?;
        rig.kubectl(&["-n", "llm", "rollout", "status", &format!("deployment/{NAME}"), "--timeout=120s"])?;
        let spec = LoadSpec {
            targets: TargetSpec::Deployment { namespace: "llm".to_owned(), name: NAME.to_owned(), port: 4000 },
            rate: 1.0,
            // Until it is seen: other checks come before.
            duration: Duration::from_secs(3600),
            key: Some("sk-local".to_owned()),
            ..LoadSpec::default()
        };
        let stop = CancellationToken::new();
        let targets = load::TargetWatch::deployment(rig.client().await?, "llm", NAME, 4000).await?;
        let load = tokio::spawn(load::run_on(spec, targets, stop.clone()));
        Ok(Self { rig, started: Instant::now(), stop, load })
    }

    /// Waits until the fleet's TokenBudget says so, and ends the load.
    ///
    /// # Errors
    /// When it does not say so in time, or says another amount.
    pub async fn until_seen(self) -> Result<()> {
        let fleet = Fleet::of(self.rig);
        fleet.until_condition("gpt-4o", "WithinBudget", "False", Some("TrafficOutside"), PATIENCE).await?;
        // An operator that has just started says at once what the one before said, and has to compare for itself.
        let limit = || Ok::<_, anyhow::Error>(fleet.get("tokenbudget", "gpt-4o")?["status"]["limits"][0].clone());
        until("both counts are shown", PATIENCE, || Ok(limit()?["observed"]["reported"].is_i64())).await?;
        let object = fleet.get("tokenbudget", "gpt-4o")?;
        let outside = object["status"]["limits"][0]["outside"]["tokens"].as_i64().unwrap_or(0);
        let observed = &object["status"]["limits"][0]["observed"];
        let [counted, reported] = ["tokens", "reported"].map(|count| observed[count].as_i64().unwrap_or(-1));
        ensure!(
            reported >= 0 && counted >= reported + outside / 2,
            "LiteLLM's counters beside the reports: {observed}"
        );
        told_once(self.rig, &object, "TrafficOutside")?;
        self.stop.cancel();
        self.load.await??;
        ensure!(
            (2_000..20_000).contains(&outside),
            "{outside} tokens a minute are said to come from others, where about 6,000 did"
        );
        println!(
            "check: a Deployment without the agent is seen after {:.0} s: {}",
            self.started.elapsed().as_secs_f32(),
            message(&object, "WithinBudget")
        );
        self.rig.kubectl(&["-n", "llm", "delete", "deployment", NAME])?;
        Ok(())
    }
}
