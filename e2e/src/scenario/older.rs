//! A cluster that is too old for `attach: Admission`: a real API server that does not serve the kind of the chart's policy.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::checks::{manifest, until_attached, untouched};
use super::fleet::{Fleet, message};
use super::knobs::set;
use super::paths::Paths;
use super::rig::Rig;

/// What makes the API server one that lacks the kind, as one before Kubernetes 1.36 does.
const WITHOUT_POLICIES: [&str; 2] = [
    "--runtime-config=admissionregistration.k8s.io/v1/mutatingadmissionpolicies=false,\
     admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings=false",
    "--disable-admission-plugins=MutatingAdmissionPolicy",
];

const NAME: &str = "older";
const SOON: Duration = Duration::from_secs(20);

/// Starts such a cluster, with the operator in it.
///
/// # Errors
/// As [`Rig::up`].
pub async fn up(paths: &Paths) -> Result<Rig> {
    Rig::up_with(paths, &WITHOUT_POLICIES, |rig| rig.helm_install(&[])).await
}

/// The condition says that the cluster is too old, and the way out that it names is one.
///
/// # Errors
/// The first that is not as it should be.
pub async fn run(rig: &Rig) -> Result<()> {
    let served = rig.kubectl(&["api-resources", "--api-group=admissionregistration.k8s.io", "-o", "name"])?;
    ensure!(
        served.contains("validatingadmissionpolicies") && !served.contains("mutatingadmissionpolicies"),
        "this check is void: the API server serves {served}"
    );
    let fleet = Fleet::of(rig);
    rig.apply("plain.yaml")?;
    rig.redis_secret(NAME, &rig.redis_url)?;
    let spec = format!(
        "targetRefs: [{{name: pair, container: one}}]\n  attach: Admission\n  \
         redis: {{urlSecretRef: {{name: {NAME}, key: url}}}}\n  \
         limits: [{{name: a, models: [{{modelName: m}}], tokensPerMinute: 600}}]"
    );
    rig.apply_text(&manifest(NAME, &spec))?;
    fleet.until_condition(NAME, "Attached", "False", Some("AdmissionUnavailable"), SOON).await?;
    let said = message(&fleet.get("tokenbudget", NAME)?, "Attached");
    ensure!(said.contains("upgrade to Kubernetes 1.36") && said.contains("use attach: Automatic"), "{said}");
    untouched(&fleet, "pair")?;
    set(rig, NAME, r#"{"attach": "Automatic"}"#)?;
    let took = until_attached(&fleet, "pair").await?;
    println!(
        "check: on a cluster that is too old attach: Admission says: {said}; Automatic attaches after {:.1} s",
        took.as_secs_f32()
    );
    Ok(())
}
