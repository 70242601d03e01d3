//! `attach: Admission`: the agent comes into new pods by the chart's policy, and the Deployment is the user's alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};
use tokenbudget::api::{FIELD_MANAGER, SecretKeyRef};
use tokenbudget::litellm::{AGENT_HOOK, ATTACH_LABEL, ATTACH_VALUE, ATTACHED_LABEL, STARTUP_HOOKS, Wanted, attachment};

use super::checks::{delete_within, manifest};
use super::fleet::{Fleet, message, name_of, until};
use super::killed;
use super::knobs::set;
use super::rig::Rig;

/// How soon the operator answers a change.
const SOON: Duration = Duration::from_secs(20);

/// How long a pod takes at most until its LiteLLM serves.
const BOOT: Duration = Duration::from_secs(300);

/// A hook that the user has; Python brings it.
const USERS_HOOK: &str = "gc:collect";

/// The Secret with the ledger's URL, which a TokenBudget names.
const LEDGER: (&str, &str) = ("gitops-ledger", "url");

/// The ConfigMap that says how many workers LiteLLM starts, and its key.
const WORKERS: (&str, &str) = ("gitops-workers", "count");

/// Tokens per minute: a part of it is the safe share.
const BUDGET: i64 = 600;

/// Fail, as Ignore would hide a mistake in the policy.
const POLICY: [&str; 2] = ["admission.enabled=true", "admission.failurePolicy=Fail"];

/// Runs all of it, and leaves the chart with its policy.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let user = User { rig, fleet: Fleet::of(rig), name: "gitops" };
    rig.redis_secret(LEDGER.0, &rig.redis_url)?;
    rig.kubectl(&["-n", "llm", "create", "configmap", WORKERS.0, &format!("--from-literal={}=2", WORKERS.1)])?;
    user.apply(false, 0)?;
    user.budget("Admission")?;
    let off = user.until_said("AdmissionUnavailable").await?;
    ensure!(off.contains("set admission.enabled"), "{off}");
    println!("check: attach: Admission without the chart's policy: {off}");
    rig.helm_install(&POLICY)?;
    let unasked = user.until_said("LabelMissing").await?;
    ensure!(unasked.contains(&format!("{ATTACH_LABEL}: {ATTACH_VALUE}")), "{unasked}");
    user.apply(false, 1)?;
    user.has_no_agent(&user.until_pod(|_| true).await?)?;

    user.apply(true, 1)?;
    let before = user.deployment()?;
    let pod = user.until_pod(|pod| !pod["metadata"]["labels"][ATTACH_LABEL].is_null()).await?;
    user.has_agent(&pod)?;
    let took = user.until_enforcing(&name_of(&pod)).await?;
    user.fleet.until_condition(user.name, "Attached", "True", Some("AllPodsAttached"), BOOT).await?;
    user.is_untouched_since(&before)?;
    // One pod and one of a rollout, with two workers each.
    until("the safe share is that of four processes", SOON, || {
        Ok(user.fleet.get("tokenbudget", user.name)?["status"]["limits"][0]["safeShare"] == BUDGET / 4)
    })
    .await?;
    println!(
        "check: a pod that asks by label enforces {:.0} s later, its own hook kept; nothing wrote the Deployment",
        took.as_secs_f32()
    );

    killed::a_worker(rig, &user.fleet, user.name, &name_of(&pod)).await?;

    delete_within(rig, user.name, Duration::from_secs(30))?;
    rig.kubectl(&["-n", "llm", "delete", "pod", &name_of(&pod), "--wait=false"])?;
    user.has_no_agent(&user.until_pod(|other| name_of(other) != name_of(&pod)).await?)?;
    user.is_untouched_since(&before)?;
    rig.kubectl(&["-n", "llm", "delete", "deployment", user.name])?;
    println!("check: the next pod after the TokenBudget's end is as its template has it");
    from_automatic(rig).await
}

/// What the operator had put into a pod template goes when the policy takes over.
async fn from_automatic(rig: &Rig) -> Result<()> {
    let user = User { rig, fleet: Fleet::of(rig), name: "converted" };
    let mut wish = user.wish(true, 0);
    wish["spec"]["template"]["spec"]["containers"][0]["env"] = json!([]);
    user.apply_wish(&wish)?;
    user.budget("Automatic")?;
    user.until_template(true).await?;
    set(rig, user.name, r#"{"attach": "Admission"}"#)?;
    user.until_template(false).await?;
    user.fleet.until_condition(user.name, "Attached", "False", Some("NoPods"), SOON).await?;
    delete_within(rig, user.name, Duration::from_secs(30))?;
    rig.kubectl(&["-n", "llm", "delete", "deployment", user.name])?;
    println!("check: from attach: Automatic to Admission: the pod template is the user's again");
    Ok(())
}

/// Somebody whose Deployment comes from git.
struct User<'a> {
    rig: &'a Rig,
    fleet: Fleet<'a>,
    name: &'a str,
}

impl User<'_> {
    fn wish(&self, asks: bool, replicas: u32) -> Value {
        let mut wish = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": self.name, "namespace": "llm"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": self.name}}, "template": {
                "metadata": {"labels": {"app": self.name}},
                "spec": {
                    "containers": [{
                        "name": "litellm", "image": "ghcr.io/berriai/litellm:v1.106.2",
                        // uvicorn ends workers that it does not hear for 5 s, and six processes boot on few cores here.
                        "args": [
                            "--config", "/etc/litellm/config.yaml", "--port", "4000", "--timeout_worker_healthcheck", "60",
                        ],
                        "env": [
                            {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                            {"name": STARTUP_HOOKS, "value": USERS_HOOK},
                            {"name": "NUM_WORKERS", "valueFrom": {"configMapKeyRef": {"name": WORKERS.0, "key": WORKERS.1}}},
                        ],
                        "envFrom": [{"configMapRef": {"name": "local"}}, {"secretRef": {"name": "litellm"}}],
                        "readinessProbe": {
                            "httpGet": {"path": "/health/readiness", "port": 4000}, "periodSeconds": 2, "timeoutSeconds": 5,
                        },
                        "volumeMounts": [{"name": "config", "mountPath": "/etc/litellm"}],
                    }],
                    "volumes": [{"name": "config", "configMap": {"name": "plain-config"}}],
                },
            }},
        });
        if asks {
            wish["spec"]["template"]["metadata"]["labels"][ATTACH_LABEL] = json!(ATTACH_VALUE);
        }
        wish
    }

    fn apply(&self, asks: bool, replicas: u32) -> Result<()> {
        self.apply_wish(&self.wish(asks, replicas))
    }

    fn apply_wish(&self, wish: &Value) -> Result<()> {
        self.rig.apply_text(&wish.to_string())
    }

    fn budget(&self, attach: &str) -> Result<()> {
        let spec = format!(
            "targetRefs: [{{name: {}}}]\n  attach: {attach}\n  redis: {{urlSecretRef: {{name: {}, key: {}}}}}\n  \
             limits: [{{name: a, models: [{{modelName: gpt-4o}}], tokensPerMinute: {BUDGET}}}]",
            self.name, LEDGER.0, LEDGER.1
        );
        self.rig.apply_text(&manifest(self.name, &spec))
    }

    fn deployment(&self) -> Result<Value> {
        let path = ["-n", "llm", "get", "deployment", self.name, "--show-managed-fields", "-o", "json"];
        Ok(serde_json::from_str(&self.rig.kubectl(&path)?)?)
    }

    /// Waits until Attached is False for this reason, and answers with its message.
    async fn until_said(&self, reason: &str) -> Result<String> {
        self.fleet.until_condition(self.name, "Attached", "False", Some(reason), Duration::from_secs(60)).await?;
        Ok(message(&self.fleet.get("tokenbudget", self.name)?, "Attached"))
    }

    /// Waits for a pod of the Deployment that is like this.
    async fn until_pod(&self, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let started = Instant::now();
        let label = format!("app={}", self.name);
        loop {
            let list: Value =
                serde_json::from_str(&self.rig.kubectl(&["-n", "llm", "get", "pods", "-l", &label, "-o", "json"])?)?;
            let pods = list["items"].as_array().cloned().unwrap_or_default();
            if let Some(pod) = pods.into_iter().find(|pod| is_it(pod)) {
                return Ok(pod);
            }
            ensure!(started.elapsed() < SOON, "Deployment {} has no such pod after {SOON:?}", self.name);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    #[allow(clippy::unused_self, reason = "reads better beside has_agent")]
    fn has_no_agent(&self, pod: &Value) -> Result<()> {
        let labels = &pod["metadata"]["labels"];
        ensure!(labels[ATTACHED_LABEL].is_null(), "pod {} is labelled: {labels}", name_of(pod));
        // The node is called tokenbudget, too.
        for entries in [&pod["spec"]["containers"], &pod["spec"]["volumes"]] {
            ensure!(!entries.to_string().contains("tokenbudget"), "pod {} has our entries: {entries}", name_of(pod));
        }
        Ok(())
    }

    /// The pod has what the operator's own patch would have put into the template, and the user's hook before ours.
    fn has_agent(&self, pod: &Value) -> Result<()> {
        let mut bare: Deployment = serde_json::from_value(self.wish(true, 1))?;
        for container in bare.spec.iter_mut().flat_map(|s| s.template.spec.iter_mut()).flat_map(|s| &mut s.containers) {
            container.env = None;
        }
        let redis_secret = Some(SecretKeyRef { name: LEDGER.0.to_owned(), key: LEDGER.1.to_owned() });
        let patch = attachment(&bare, &Wanted { redis_secret, ..Wanted::default() })?.patch;
        let wanted = &patch["spec"]["template"];
        let [spec, wanted_spec] = [&pod["spec"], &wanted["spec"]];
        let [container, wanted_container] = [&spec["containers"][0], &wanted_spec["containers"][0]];
        for (list, wanted, key) in [
            (&container["env"], &wanted_container["env"], "name"),
            (&container["volumeMounts"], &wanted_container["volumeMounts"], "mountPath"),
            (&spec["volumes"], &wanted_spec["volumes"], "name"),
        ] {
            for entry in wanted.as_array().context("the patch has no list")? {
                let mut same = list.as_array().into_iter().flatten().filter(|found| found[key] == entry[key]);
                let found = same.next().with_context(|| format!("{entry} is not in pod {}: {list}", name_of(pod)))?;
                ensure!(same.next().is_none(), "{} is twice in pod {}", entry[key], name_of(pod));
                if entry["name"] == STARTUP_HOOKS {
                    let both = format!("{USERS_HOOK},{AGENT_HOOK}");
                    ensure!(found["value"] == both.as_str(), "the hooks are {}", found["value"]);
                } else {
                    ensure!(covers(entry, found), "wanted {entry}, found {found}");
                }
            }
        }
        let labels = wanted["metadata"]["labels"].as_object().context("the patch has no labels")?;
        for (name, value) in labels {
            ensure!(pod["metadata"]["labels"][name] == *value, "label {name} is {}", pod["metadata"]["labels"][name]);
        }
        Ok(())
    }

    /// Waits until the pod's process has applied the policy.
    async fn until_enforcing(&self, pod: &str) -> Result<Duration> {
        until(&format!("pod {pod} enforces"), BOOT, || {
            let rows = self.fleet.get("tokenbudget", self.name)?["status"]["pods"].clone();
            let mut rows = rows.as_array().into_iter().flatten();
            Ok(rows.any(|row| row["pod"] == pod && row["state"] == "Enforcing"))
        })
        .await
    }

    /// The Deployment is as the user wrote it, and no field of it is the operator's.
    fn is_untouched_since(&self, before: &Value) -> Result<()> {
        let now = self.deployment()?;
        ensure!(now["metadata"]["generation"] == before["metadata"]["generation"], "the Deployment was written");
        ensure!(now["spec"] == before["spec"], "the Deployment's spec is another");
        let managers = now["metadata"]["managedFields"].to_string();
        ensure!(managers.contains("f:template"), "there are no managed fields to look at");
        ensure!(
            !managers.contains(&format!("\"manager\":\"{FIELD_MANAGER}\"")),
            "the operator owns fields: {managers}"
        );
        Ok(())
    }

    /// Waits until the pod template has the operator's entries, or has none.
    async fn until_template(&self, attached: bool) -> Result<()> {
        until(&format!("Deployment {}: attached is {attached}", self.name), SOON, || {
            Ok(self.deployment()?["spec"]["template"].to_string().contains(AGENT_HOOK) == attached)
        })
        .await?;
        Ok(())
    }
}

/// Whether all of `wanted` is in `found`: the server adds defaults.
fn covers(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(key, value)| found.get(key).is_some_and(|found| covers(value, found)))
        }
        _ => wanted == found,
    }
}
