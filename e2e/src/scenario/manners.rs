//! Nobody reverts anybody: the operator beside those who write Deployments, too. Deployments without pods are enough.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokenbudget::api::FIELD_MANAGER;
use tokenbudget::litellm::{AGENT_HOOK, STARTUP_HOOKS};

use super::checks::{delete_within, manifest, untouched};
use super::fleet::{Fleet, message, text};
use super::rig::Rig;

/// How soon the operator answers a change.
const SOON: Duration = Duration::from_secs(20);

/// Runs all of it.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let users = ["applied", "replaced", "undone"].map(|name| User { rig, name });
    for user in &users {
        user.apply("--num_workers=1")?;
        let spec = format!(
            "targetRefs: [{{name: {name}}}]\n  limits: [{{name: a, models: [{{modelName: m}}], tokensPerMinute: 600}}]",
            name = user.name
        );
        rig.apply_text(&manifest(user.name, &spec))?;
    }
    for user in &users {
        user.until(true).await?;
        user.owns_only_its_own()?;
    }
    let [applied, replaced, undone] = &users;
    applied.applies_go_on_beside_ours().await?;
    applied.hooks_are_the_users().await?;
    replaced.replaces_are_a_contest().await?;
    undone.undo_is_mended().await?;
    for user in &users {
        delete_within(rig, user.name, Duration::from_secs(30))?;
    }
    untouched(&Fleet::of(rig), undone.name)?;
    applied.is_as_the_user_has_it()?;
    rig.kubectl(&["-n", "llm", "delete", "deployment", applied.name, replaced.name, undone.name])?;
    println!(
        "check: apply, forced server-side apply, set env, replace and rollout undo leave each other's fields alone"
    );
    Ok(())
}

/// Somebody who writes a Deployment.
struct User<'a> {
    rig: &'a Rig,
    name: &'a str,
}

impl User<'_> {
    fn wish(&self, argument: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": self.name, "namespace": "llm"},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": self.name}}, "template": {
                "metadata": {"labels": {"app": self.name}},
                "spec": {"containers": [{
                    "name": "litellm", "image": "ghcr.io/berriai/litellm:v1.106.2", "args": [argument],
                    "envFrom": [{"configMapRef": {"name": "local"}}],
                }]},
            }},
        })
    }

    fn apply(&self, argument: &str) -> Result<()> {
        self.rig.apply_text(&self.wish(argument).to_string())
    }

    fn get(&self) -> Result<Value> {
        Fleet::of(self.rig).get("deployment", self.name)
    }

    fn container(&self) -> Result<Value> {
        Ok(self.get()?["spec"]["template"]["spec"]["containers"][0].clone())
    }

    fn hooks(&self) -> Result<Option<String>> {
        let container = self.container()?;
        let mut env = container["env"].as_array().into_iter().flatten();
        Ok(env.find(|variable| variable["name"] == STARTUP_HOOKS).map(|variable| text(&variable["value"]).to_owned()))
    }

    fn has_hooks(&self, wanted: &str) -> Result<()> {
        let found = self.hooks()?;
        ensure!(found.as_deref() == Some(wanted), "the user's hooks are {found:?}, and were {wanted}");
        Ok(())
    }

    /// Waits until the agent is in the template, or is not.
    async fn until(&self, attached: bool) -> Result<()> {
        let started = std::time::Instant::now();
        loop {
            let found = self.hooks()?.is_some_and(|hooks| hooks.contains(AGENT_HOOK));
            if found == attached {
                return Ok(());
            }
            ensure!(started.elapsed() < SOON, "Deployment {}: attached is {found} after {SOON:?}", self.name);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn owns_only_its_own(&self) -> Result<()> {
        let all =
            self.rig.kubectl(&["-n", "llm", "get", "deployment", self.name, "-o", "json", "--show-managed-fields"])?;
        let all: Value = serde_json::from_str(&all)?;
        let managers = all["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let ours = managers.iter().find(|entry| entry["manager"] == FIELD_MANAGER).context("we own nothing")?;
        let fields = ours["fieldsV1"]["f:spec"].as_object().context("we own no spec")?;
        ensure!(fields.keys().eq(["f:template"]), "we own {:?} of the spec", fields.keys().collect::<Vec<_>>());
        Ok(())
    }

    async fn applies_go_on_beside_ours(&self) -> Result<()> {
        self.apply("--num_workers=2")?;
        ensure!(self.container()?["args"][0] == "--num_workers=2", "the user's change is gone");
        self.until(true).await?;
        // The PATCH itself: kubectl would first move the fields of a client-side apply to the new manager.
        let api: Api<Deployment> = Api::namespaced(self.rig.client().await?, "llm");
        let wish = self.wish("--num_workers=3");
        api.patch(self.name, &PatchParams::apply("argocd").force(), &Patch::Apply(&wish)).await?;
        let generation = self.get()?["metadata"]["generation"].clone();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let object = self.get()?;
        ensure!(object["metadata"]["generation"] == generation, "the operator answered a change that is not its own");
        ensure!(self.container()?["args"][0] == "--num_workers=3", "Argo CD's change is gone");
        ensure!(object["spec"]["replicas"] == 0, "replicas changed");
        self.until(true).await
    }

    async fn hooks_are_the_users(&self) -> Result<()> {
        let deployment = format!("deployment/{}", self.name);
        let set = |value: &str| {
            self.rig.kubectl(&["-n", "llm", "set", "env", &deployment, &format!("{STARTUP_HOOKS}={value}")])
        };
        set("flags:init")?;
        let fleet = Fleet::of(self.rig);
        fleet.until_condition(self.name, "Attached", "False", Some("HooksOwnedByUser"), SOON).await?;
        let message = message(&fleet.get("tokenbudget", self.name)?, "Attached");
        let both = format!("flags:init,{AGENT_HOOK}");
        ensure!(message.contains(&both), "{message:?} does not say {both}");
        self.has_hooks("flags:init")?;
        set(&both)?;
        fleet.until_condition(self.name, "Attached", "False", Some("NoPods"), SOON).await?;
        self.has_hooks(&both)
    }

    /// What is left when all TokenBudgets are gone: the user's own.
    fn is_as_the_user_has_it(&self) -> Result<()> {
        let container = self.container()?;
        let names: Vec<&str> = container["env"].as_array().into_iter().flatten().map(|v| text(&v["name"])).collect();
        ensure!(names == [STARTUP_HOOKS], "env is {names:?}");
        ensure!(container["args"][0] == "--num_workers=3", "args are {}", container["args"]);
        Ok(())
    }

    async fn replaces_are_a_contest(&self) -> Result<()> {
        let replace = |argument: &str| -> Result<()> {
            let path = self.rig.paths.dir.join("replace.json");
            std::fs::write(&path, self.wish(argument).to_string())?;
            self.rig.kubectl(&["replace", "-f", &path.to_string_lossy()])?;
            Ok(())
        };
        replace("--num_workers=4")?;
        self.until(true).await?;
        replace("--num_workers=5")?;
        Fleet::of(self.rig).until_condition(self.name, "Attached", "False", Some("AttachContested"), SOON).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(self.hooks()?.is_none(), "a contested Deployment was changed again");
        Ok(())
    }

    async fn undo_is_mended(&self) -> Result<()> {
        let deployment = format!("deployment/{}", self.name);
        self.rig.kubectl(&["-n", "llm", "rollout", "undo", &deployment, "--to-revision=1"])?;
        self.until(true).await
    }
}
