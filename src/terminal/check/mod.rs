//! `tokenbudget check`: what the API server and the operator would say to manifests, without either.

mod fleet;
mod overlap;
mod report;
mod rules;
mod schema;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::Deployment;
use kube::{CustomResourceExt, ResourceExt};

use self::overlap::{Overlap, overlap};
use self::report::{Checked, Finding, Report, SafeShare, Severity};
use super::manifests::{self, Document};
use crate::api::{AttachPolicy, TargetRef, TokenBudget};
use crate::litellm::{
    RedisSource, Setting, Wanted, admission, asks_for_agent, attachment, choose_container, image_of_unknown_directory,
};
use crate::output::Format;
use crate::plan::FleetSize;

const EXAMPLES: &str = "\
It holds TokenBudgets to the schema and the rules of the CustomResourceDefinition, names fields
that there are not, and finds two TokenBudgets that claim the same LiteLLM deployment. Where the
Deployments and their autoscalers (HorizontalPodAutoscaler, ScaledObject) are in the files too, it
looks whether the agent can be attached, and says what the safe share is.

Examples:
  kubectl tokenbudget check tokenbudget.yaml litellm.yaml

  # What Helm or kustomize makes, in a pipeline
  helm template llm litellm-helm -n llm | kubectl tokenbudget check - tokenbudget.yaml -n llm

  # The safe shares, for a program
  kubectl tokenbudget check *.yaml -o json | jq '.budgets[].limits'

Exits with 0 when all is well, 1 on problems, 2 when a file cannot be read.";

/// A TokenBudget's names are used as this group's.
const GROUP: &str = "tokenbudget.dev";

/// Options of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    /// Files of YAML or JSON, `-` for the standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// The namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,

    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

impl Check {
    /// Checks and prints; answers the exit code: 0 all is well, 1 there are problems, 2 a file cannot be read.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn run(&self, out: &mut impl Write, errors: &mut impl Write) -> anyhow::Result<u8> {
        let (mut documents, mut unreadable) = (Vec::new(), false);
        for path in &self.files {
            match manifests::read(path) {
                Ok(found) => documents.extend(found),
                Err(error) => {
                    unreadable = true;
                    writeln!(errors, "{error}")?;
                }
            }
        }
        let report = check(&documents, &self.namespace);
        let text = match self.output {
            Format::Text => report.text(),
            Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        out.write_all(text.as_bytes())?;
        Ok(if unreadable { 2 } else { u8::from(report.has_problems()) })
    }
}

/// Checks manifests; `namespace` is that of objects that name none.
#[must_use]
pub fn check(documents: &[Document], namespace: &str) -> Report {
    let mut report = Report::default();
    let mut sound: Vec<(&Document, TokenBudget)> = Vec::new();
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for document in documents.iter().filter(|document| document.group() == GROUP || document.kind() == "TokenBudget") {
        let before = report.findings.len();
        for schema::Fault { field, message } in object_faults(document) {
            report.findings.push(finding(Severity::Problem, document, namespace, &field, message));
        }
        if let Some(other) = seen.insert(object(document, namespace), &document.file) {
            let message = format!("is there twice, the first time in {other}: the last one applied would count");
            report.findings.push(finding(Severity::Problem, document, namespace, "metadata.name", message));
        }
        if report.findings.len() == before {
            match serde_json::from_value::<TokenBudget>(schema::without_nulls(&document.value)) {
                Ok(mut budget) => {
                    budget.metadata.namespace.get_or_insert_with(|| namespace.to_owned());
                    sound.push((document, budget));
                }
                Err(error) => {
                    let message = error.to_string();
                    report.findings.push(finding(Severity::Problem, document, namespace, "", message));
                }
            }
        }
    }
    for (place, (document, budget)) in sound.iter().enumerate() {
        let around = Around { documents, namespace };
        let checked = around.budget(document, budget, &mut report.findings);
        report.budgets.push(checked);
        for (_, other) in sound.iter().take(place).filter(|(_, other)| other.namespace() == budget.namespace()) {
            let found = overlap(other, budget, |target| around.container(budget, target));
            report.findings.extend(found.map(|found| overlapping(found, document, namespace, other)));
        }
    }
    report
}

fn overlapping(found: Overlap, document: &Document, namespace: &str, other: &TokenBudget) -> Finding {
    let other = other.name_any();
    let (severity, message) = match found {
        Overlap::Certain { deployment, what } => (
            Severity::Problem,
            format!(
                "cannot be kept beside TokenBudget {other} on Deployment {deployment} ({what}): the younger of them gets \
                 Accepted=False and does nothing; make one of both, or part them"
            ),
        ),
        Overlap::Possible { deployment, what } => (
            Severity::Note,
            format!(
                "may claim the same LiteLLM deployments of Deployment {deployment} as TokenBudget {other} ({what}): a request \
                 that both claim is charged to both"
            ),
        ),
    };
    finding(severity, document, namespace, "spec", message)
}

fn object(document: &Document, namespace: &str) -> String {
    let name = if document.name().is_empty() { "(no name)" } else { document.name() };
    format!("{} {}/{name}", document.kind(), namespace_of(document, namespace))
}

fn namespace_of<'a>(document: &'a Document, namespace: &'a str) -> &'a str {
    Some(document.text("/metadata/namespace")).filter(|own| !own.is_empty()).unwrap_or(namespace)
}

fn finding(severity: Severity, document: &Document, namespace: &str, field: &str, message: String) -> Finding {
    let (file, object) = (document.file.clone(), object(document, namespace));
    Finding { severity, file, object, field: field.to_owned(), message }
}

/// What is wrong with a TokenBudget by itself.
fn object_faults(document: &Document) -> Vec<schema::Fault> {
    let fault = |field: &str, message: String| schema::Fault { field: field.to_owned(), message };
    let crd = serde_json::to_value(TokenBudget::crd()).unwrap_or_default();
    let version = &crd["spec"]["versions"][0];
    let wanted = format!("{GROUP}/{}", version["name"].as_str().unwrap_or_default());
    if document.kind() != "TokenBudget" {
        return vec![fault("kind", format!("must be TokenBudget, the only kind of {GROUP}"))];
    }
    if document.text("/apiVersion") != wanted {
        return vec![fault("apiVersion", format!("must be {wanted}, and is {:?}", document.text("/apiVersion")))];
    }
    let value = schema::without_nulls(&document.value);
    let mut found = Vec::new();
    let top = ["apiVersion", "kind", "metadata", "spec", "status"];
    for name in value.as_object().into_iter().flat_map(|map| map.keys()).filter(|name| !top.contains(&name.as_str())) {
        found.push(fault(name, schema::unknown(name, top.into_iter())));
    }
    if !is_subdomain(document.name()) {
        let message =
            "must be a name of lower case letters, digits, - and . that begins and ends with a letter or digit";
        found.push(fault("metadata.name", message.to_owned()));
    }
    let schema = &version["schema"]["openAPIV3Schema"];
    match value.get("spec") {
        Some(spec) => found.extend(schema::faults(&schema["properties"]["spec"], "spec", spec)),
        None => found.push(fault("spec", "missing: say in targetRefs which Deployments spend".to_owned())),
    }
    if found.is_empty() {
        let broken = rules::broken(&schema["x-kubernetes-validations"], &value);
        found.extend(broken.into_iter().map(|message| fault("", message)));
    }
    found
}

/// Whether the text is an RFC 1123 subdomain, as names are.
fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// The other objects of the files.
struct Around<'a> {
    documents: &'a [Document],
    namespace: &'a str,
}

impl Around<'_> {
    /// The fleet of a TokenBudget, and what its Deployments say to it.
    fn budget(&self, document: &Document, budget: &TokenBudget, findings: &mut Vec<Finding>) -> Checked {
        let mut say = |severity, place: usize, field: &str, message: String| {
            let field = format!("spec.targetRefs[{place}]{field}");
            findings.push(finding(severity, document, self.namespace, &field, message));
        };
        let (mut targets, mut words, mut whole) = (Vec::new(), Vec::new(), true);
        for (place, reference) in budget.spec.target_refs.iter().enumerate() {
            let name = &reference.name;
            let deployment = match self.deployment(budget, name) {
                Some(Ok(deployment)) => deployment,
                Some(Err(why)) => {
                    say(Severity::Problem, place, "", format!("Deployment {name} cannot be read: {why}"));
                    whole = false;
                    continue;
                }
                None => {
                    let message = format!("Deployment {name} is not in these files, so the safe share is not known");
                    say(Severity::Note, place, ".name", message);
                    whole = false;
                    continue;
                }
            };
            let most = fleet::most_replicas(self.of_namespace(budget), name);
            match fleet::target(reference, &deployment, most) {
                Ok(target) => {
                    words.push(format!("Deployment {name}: {}", fleet::words(&target)));
                    targets.push(target);
                }
                Err(refusal) => {
                    say(Severity::Problem, place, ".container", refusal.to_string());
                    whole = false;
                    continue;
                }
            }
            let wanted = Wanted { container: reference.container.clone(), ..Wanted::default() };
            let attached = match budget.spec.attach {
                AttachPolicy::Automatic => attachment(&deployment, &wanted).map(|_| ()),
                AttachPolicy::Admission => admission(&deployment, &wanted).and_then(|_| asks_for_agent(&deployment)),
                AttachPolicy::Manual => Ok(()),
            };
            if let Err(refusal) = attached {
                say(Severity::Problem, place, "", refusal.to_string());
            }
            let container = choose_container(&deployment, reference.container.as_deref());
            if let Some(image) = container.ok().and_then(image_of_unknown_directory) {
                let message = format!(
                    "the agent is mounted in /app, where LiteLLM's own images start; set workingDir of the container if {image} \
                     starts elsewhere, or its pods will not find it"
                );
                say(Severity::Note, place, "", message);
            }
            if budget.spec.redis.is_none() && names_no_redis(&deployment, reference.container.as_deref()) {
                let message = format!(
                    "Deployment {name} sets neither REDIS_URL nor REDIS_HOST nor REDIS_SENTINEL_NODES: name the ledger's Redis in \
                     spec.redis.urlSecretRef, unless the operator has a default"
                );
                say(Severity::Note, place, "", message);
            }
        }
        let size = whole.then(|| FleetSize::of(&targets));
        let limits = safe_shares(budget, size);
        for limit in limits.iter().filter(|limit| limit.safe_share == Some(0)) {
            let message = format!(
                "limit {}: {} {} are fewer than the fleet's {} processes, so the safe share is 0: without Redis no process \
                 admits anything; lower maxReplicas or the workers",
                limit.name,
                limit.budget,
                limit.unit,
                size.unwrap_or_default().most_processes
            );
            findings.push(finding(Severity::Note, document, self.namespace, "spec.limits", message));
        }
        Checked {
            file: document.file.clone(),
            object: object(document, self.namespace),
            most_processes: size.map(|size| size.most_processes),
            fleet: words,
            limits,
        }
    }

    fn of_namespace(&self, budget: &TokenBudget) -> impl Iterator<Item = &Document> {
        let namespace = budget.namespace().unwrap_or_default();
        self.documents.iter().filter(move |document| namespace_of(document, self.namespace) == namespace)
    }

    /// Which container of its Deployment a target means, as far as the files say.
    fn container(&self, budget: &TokenBudget, target: &TargetRef) -> Option<String> {
        let deployment = self.deployment(budget, &target.name)?.ok()?;
        Some(choose_container(&deployment, target.container.as_deref()).ok()?.name.clone())
    }

    fn deployment(&self, budget: &TokenBudget, name: &str) -> Option<Result<Deployment, String>> {
        self.of_namespace(budget).filter(|document| document.name() == name).find_map(Document::deployment)
    }
}

fn names_no_redis(deployment: &Deployment, container: Option<&str>) -> bool {
    choose_container(deployment, container).is_ok_and(|container| {
        let redis = RedisSource::of(container);
        [redis.url, redis.host, redis.sentinels].iter().all(|setting| *setting == Setting::Absent)
    })
}

fn safe_shares(budget: &TokenBudget, size: Option<FleetSize>) -> Vec<SafeShare> {
    let spec = &budget.spec;
    let rows = spec.limits.iter().flat_map(|limit| {
        let units = [("tokens", limit.tokens_per_minute), ("requests", limit.requests_per_minute)];
        units.into_iter().filter_map(|(unit, budget)| {
            let budget = spec.without_headroom(u64::try_from(budget?).ok()?);
            let safe_share = size.map(|size| fleet::safe_share(budget, size));
            Some(SafeShare { name: limit.name.clone(), unit, budget, safe_share })
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests;
