//! Helm beside us: releases of LiteLLM's two charts that are upgraded and rolled back, and everything that our own chart can
//! render, sent to the API server.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokenbudget::litellm::AGENT_HOOK;

use super::checks::{delete_within, manifest, untouched};
use super::fleet::{Fleet, text, until};
use super::rig::{OPERATOR_NAMESPACE, Rig};

const SOON: Duration = Duration::from_secs(20);

/// The Deployments as LiteLLM's charts make them, from the operator's own fixtures.
const CHARTS: [(&str, &str); 2] = [
    ("litellm-helm", include_str!("../../../src/litellm/fixtures/litellm-helm.yaml")),
    ("litellm-gateway", include_str!("../../../src/litellm/fixtures/litellm-gateway.yaml")),
];

/// Runs all of it.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    everything_rendered_is_accepted(rig)?;
    notes_are_right(rig)?;
    rig.redis_secret("live-redis", &rig.redis_url)?;
    for (name, fixture) in CHARTS {
        Release::new(rig, name, fixture)?.run().await?;
    }
    Ok(())
}

/// A release of a chart that was made of one fixture.
struct Release<'a> {
    rig: &'a Rig,
    name: &'static str,
    chart: String,
    deployment: String,
}

impl<'a> Release<'a> {
    fn new(rig: &'a Rig, name: &'static str, fixture: &str) -> Result<Self> {
        let mut object: Value = serde_saphyr::from_str(fixture)?;
        let deployment = text(&object["metadata"]["name"]).to_owned();
        let metadata = object["metadata"].as_object_mut().context("no metadata")?;
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "labels" | "annotations"));
        object["status"] = Value::Null;
        let spec = &mut object["spec"];
        if !spec["replicas"].is_null() {
            spec["replicas"] = 0.into();
        }
        // No node has it, so the gateway's pods stay Pending where its chart leaves the count to an HPA.
        spec["template"]["spec"]["nodeSelector"] = json!({"nobody": "has-it"});
        spec["template"]["metadata"]["annotations"]["checksum/config"] = "{{ .Values.checksum }}".into();
        let template = format!(
            "{{{{ if eq .Values.checksum \"second\" }}}}{}{{{{ else }}}}{object}{{{{ end }}}}\n",
            with_more(object.clone())?
        );
        let folder = rig.paths.dir.join(name);
        fs::create_dir_all(folder.join("templates"))?;
        fs::write(folder.join("Chart.yaml"), format!("apiVersion: v2\nname: {name}\nversion: 1.0.0\n"))?;
        fs::write(folder.join("templates/deployment.yaml"), template)?;
        Ok(Self { rig, name, chart: folder.to_string_lossy().into_owned(), deployment })
    }

    fn upgrade(&self, checksum: &str) -> Result<()> {
        let set = format!("checksum={checksum}");
        self.rig.helm(&["upgrade", "--install", self.name, &self.chart, "--namespace", "llm", "--set", &set])
    }

    /// Helm's annotation has this value, its items are in the lists or not, and our entries are there beside them.
    async fn until_both(&self, checksum: &str) -> Result<Duration> {
        let fleet = Fleet::of(self.rig);
        until(&format!("{} has checksum {checksum} and the agent", self.deployment), SOON, || {
            let template = fleet.get("deployment", &self.deployment)?["spec"]["template"].clone();
            let helms = template["metadata"]["annotations"]["checksum/config"] == checksum;
            let text = template.to_string();
            let added = ["ADDED_BY_HELM", "added-by-helm", "/added"].map(|item| text.contains(item));
            Ok(helms && text.contains(AGENT_HOOK) && added == [checksum == "second"; 3])
        })
        .await
    }

    async fn run(&self) -> Result<()> {
        self.upgrade("first")?;
        let spec = format!(
            "targetRefs: [{{name: {}}}]\n  redis: {{urlSecretRef: {{name: live-redis, key: url}}}}\n  \
             limits: [{{name: a, models: [{{modelName: m}}], tokensPerMinute: 600}}]",
            self.deployment
        );
        self.rig.apply_text(&manifest(self.name, &spec))?;
        self.until_both("first").await?;
        self.upgrade("second")?;
        self.stays("second", "an upgrade").await?;
        self.rig.helm(&["rollback", self.name, "1", "--namespace", "llm"])?;
        self.stays("first", "a rollback").await?;
        delete_within(self.rig, self.name, Duration::from_secs(30))?;
        untouched(&Fleet::of(self.rig), &self.deployment)?;
        self.rig.helm(&["uninstall", self.name, "--namespace", "llm"])?;
        println!("check: Helm upgrades and rolls back a release of {} beside the agent, which stays", self.name);
        Ok(())
    }

    /// Helm's change is there at once, and no second rollout follows to put the agent back.
    async fn stays(&self, checksum: &str, what: &str) -> Result<()> {
        let fleet = Fleet::of(self.rig);
        let generation = fleet.get("deployment", &self.deployment)?["metadata"]["generation"].clone();
        self.until_both(checksum).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = fleet.get("deployment", &self.deployment)?["metadata"]["generation"].clone();
        ensure!(generation == after, "{what} of {} cost a second rollout: {generation} -> {after}", self.name);
        Ok(())
    }
}

/// The second version of a chart has one more item in each of the lists that the agent's entries are in, too.
fn with_more(mut deployment: Value) -> Result<Value> {
    for (parent, list, item) in [
        ("/spec/template/spec/containers/0", "env", json!({"name": "ADDED_BY_HELM", "value": "1"})),
        ("/spec/template/spec/containers/0", "volumeMounts", json!({"name": "added-by-helm", "mountPath": "/added"})),
        ("/spec/template/spec", "volumes", json!({"name": "added-by-helm", "emptyDir": {}})),
    ] {
        let items = &mut deployment.pointer_mut(parent).context("no container")?[list];
        if items.is_null() {
            *items = json!([]);
        }
        items.as_array_mut().context("not a list")?.push(item);
    }
    Ok(deployment)
}

/// Every object of the chart with everything on, by a server-side dry run.
fn everything_rendered_is_accepted(rig: &Rig) -> Result<()> {
    let crds = rig.paths.prometheus_operator_crds();
    rig.kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()])?;
    let chart = rig.chart();
    let all = [
        "serviceMonitor.enabled=true",
        "prometheusRule.enabled=true",
        "dashboard.enabled=true",
        "networkPolicy.enabled=true",
        "podDisruptionBudget.enabled=true",
        "replicas=2",
    ];
    for namespace in ["watchNamespaces={llm}", "watchNamespaces=null"] {
        let mut args =
            vec!["template", "everything", &chart, "--namespace", OPERATOR_NAMESPACE, "--kube-version", "1.36.0"];
        all.iter().chain([&namespace]).for_each(|value| args.extend(["--set", value]));
        let rendered = rig.helm_output(&args)?;
        let count = rendered.lines().filter(|line| line.starts_with("kind: ")).count();
        dry_run(rig, &rendered)?;
        println!("check: the API server accepts all {count} objects of the chart with {namespace}");
    }
    Ok(())
}

/// What Helm says after an installation can be done as it is written.
fn notes_are_right(rig: &Rig) -> Result<()> {
    let notes = rig.helm_output(&["get", "notes", "tokenbudget", "--namespace", OPERATOR_NAMESPACE])?;
    let (before, rest) = notes.split_once("kubectl apply -f - <<YAML\n").context("the notes apply no TokenBudget")?;
    let (manifest, after) = rest.split_once("   YAML\n").context("the manifest in the notes has no end")?;
    let manifest: String =
        manifest.lines().map(|line| format!("{}\n", line.strip_prefix("   ").unwrap_or(line))).collect();
    let (accepted, said) = rig.try_apply(&["--dry-run=server", "--validate=strict"], &manifest)?;
    ensure!(accepted && said.contains("tokenbudget.tokenbudget.dev/gpt-4o"), "the manifest in the notes: {said}");
    let commands: Vec<&str> = [before, after]
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|l| l.trim().strip_prefix("kubectl "))
        .collect();
    ensure!(commands.len() == 2, "the notes have these commands: {commands:?}");
    for command in &commands {
        rig.kubectl(&command.split(' ').collect::<Vec<_>>())?;
    }
    println!("check: the manifest and the {} commands of the chart's notes work", commands.len());
    Ok(())
}

fn dry_run(rig: &Rig, manifests: &str) -> Result<()> {
    let options = ["--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"];
    let (accepted, said) = rig.try_apply(&options, manifests)?;
    ensure!(accepted, "the API server does not accept what the chart renders: {}", said.trim());
    Ok(())
}
