//! Which container of a pod template is LiteLLM, and how many processes a Deployment can come to.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::env::{Ref, setting};
use super::{Refusal, Setting};

/// The names that LiteLLM's Helm charts, and most manifests, give to the container, best first.
const USUAL_NAMES: [&str; 3] = ["litellm", "gateway", "proxy"];

/// More workers than anybody runs in one pod: a bound for typing errors.
const MOST_WORKERS: u32 = 1024;

/// The container that runs LiteLLM: the one that is wanted, else `litellm`, `gateway` or `proxy`, else the only one.
///
/// # Errors
/// [`Refusal::NoContainer`] and [`Refusal::AmbiguousContainer`].
pub fn choose_container<'a>(deployment: &'a Deployment, wanted: Option<&str>) -> Result<&'a Container, Refusal> {
    let containers = pod_spec(deployment).map_or(&[][..], |spec| spec.containers.as_slice());
    let named = |name: &str| containers.iter().find(|container| container.name == name);
    let names = || containers.iter().map(|container| container.name.clone()).collect();
    if let Some(wanted) = wanted {
        return named(wanted).ok_or_else(|| Refusal::NoContainer {
            deployment: name_of(deployment),
            wanted: Some(wanted.to_owned()),
            containers: names(),
        });
    }
    if let Some(container) = USUAL_NAMES.into_iter().find_map(named) {
        return Ok(container);
    }
    match containers {
        [only] => Ok(only),
        [] => Err(Refusal::NoContainer { deployment: name_of(deployment), wanted: None, containers: Vec::new() }),
        _ => Err(Refusal::AmbiguousContainer { deployment: name_of(deployment), containers: names() }),
    }
}

/// Without the flag, in this order.
const WORKER_VARIABLES: [&str; 2] = ["NUM_WORKERS", "DEFAULT_NUM_WORKERS_LITELLM_PROXY"];

/// How many worker processes the container starts: `--num_workers`, else `NUM_WORKERS`, else
/// `DEFAULT_NUM_WORKERS_LITELLM_PROXY`, else 1. `resolve` reads a key of a Secret or ConfigMap that a variable comes from.
pub fn workers(container: &Container, resolve: impl Fn(&Ref) -> Option<String>) -> u32 {
    let variable = |name: &str| match setting(container, name) {
        Setting::Unsupported(_) => None,
        found => found.resolve(name, &resolve).ok().flatten(),
    };
    let count = |text: &str| text.trim().parse::<u32>().ok().filter(|count| *count > 0);
    let flag = flag_value(container, "--num_workers").and_then(|text| match named(&text) {
        Some(name) => variable(name).and_then(|text| count(&text)),
        None => count(&text),
    });
    flag.or_else(|| WORKER_VARIABLES.iter().find_map(|name| variable(name).and_then(|text| count(&text))))
        .unwrap_or(1)
        .min(MOST_WORKERS)
}

/// What has to be read for [`workers`].
pub fn worker_refs(container: &Container) -> BTreeSet<Ref> {
    let flag = flag_value(container, "--num_workers");
    let names: Vec<&str> = match (&flag, flag.as_deref().and_then(named)) {
        (_, Some(name)) => std::iter::once(name).chain(WORKER_VARIABLES).collect(),
        (Some(_), None) => Vec::new(),
        (None, None) => WORKER_VARIABLES.to_vec(),
    };
    names.into_iter().flat_map(|name| setting(container, name).refs().cloned().collect::<Vec<_>>()).collect()
}

/// The variable that an argument names: the kubelet expands $(NAME), and a shell ${NAME} or $NAME.
fn named(text: &str) -> Option<&str> {
    text.starts_with('$').then(|| text.trim_start_matches('$').trim_matches(|c| "(){}".contains(c)))
}

/// The last value of a flag in command and arguments, also inside a shell's command line.
fn flag_value(container: &Container, flag: &str) -> Option<String> {
    let all = container.command.iter().flatten().chain(container.args.iter().flatten());
    let words: Vec<&str> =
        all.flat_map(|word| word.split_whitespace()).map(|word| word.trim_matches(|c| "\"'".contains(c))).collect();
    words.iter().enumerate().rev().find_map(|(at, word)| {
        let rest = word.strip_prefix(flag)?;
        if rest.is_empty() {
            words.get(at + 1).map(|next| (*next).to_owned())
        } else {
            rest.strip_prefix('=').map(|value| value.trim_matches(|c| "\"'".contains(c)).to_owned())
        }
    })
}

/// How many pods a rollout of the Deployment may have above `replicas`.
///
/// Pods that are being deleted are not counted by Kubernetes, and run on beside these until their grace period ends.
#[must_use]
pub fn surge(deployment: &Deployment, replicas: u32) -> u32 {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
        return 0;
    }
    let percent =
        |percent: u64| u32::try_from((u64::from(replicas).saturating_mul(percent)).div_ceil(100)).unwrap_or(u32::MAX);
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    match rolling.and_then(|rolling| rolling.max_surge.as_ref()) {
        Some(IntOrString::Int(count)) => u32::try_from(*count).unwrap_or(0),
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse().map_or_else(|_| percent(25), percent),
        None => percent(25),
    }
}

/// The pod template's spec.
pub(super) fn pod_spec(deployment: &Deployment) -> Option<&PodSpec> {
    deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref())
}

/// The Deployment's name, for messages.
pub(super) fn name_of(deployment: &Deployment) -> String {
    deployment.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{componentized, container, litellm_helm, sidecars};
    use super::*;

    #[test]
    fn the_charts_containers_are_found() {
        assert_eq!(choose_container(&litellm_helm(), None).unwrap().name, "litellm");
        assert_eq!(choose_container(&componentized(), None).unwrap().name, "gateway");
        assert_eq!(choose_container(&componentized(), Some("collector")).unwrap().name, "collector");
    }

    #[test]
    fn several_unknown_containers_are_refused_and_listed() {
        let text = choose_container(&sidecars(), None).unwrap_err().to_string();
        assert!(text.contains("llm, envoy") && text.contains("targetRefs[].container"), "{text}");
        let text = choose_container(&sidecars(), Some("litellm")).unwrap_err().to_string();
        assert!(text.contains("no container litellm") && text.contains("llm, envoy"), "{text}");
    }

    #[test]
    fn an_only_container_needs_no_name() {
        let mut deployment = sidecars();
        deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers.truncate(1);
        assert_eq!(choose_container(&deployment, None).unwrap().name, "llm");
    }

    #[test]
    fn workers_are_read_from_arguments_then_environment() {
        let count = |yaml: &str| workers(&container(yaml), |_| Some("6".to_owned()));
        assert_eq!(count("{name: a}"), 1);
        assert_eq!(count("{name: a, args: [--num_workers, '4']}"), 4);
        assert_eq!(count("{name: a, args: [--num_workers=8]}"), 8);
        assert_eq!(count("{name: a, command: [sh, -c, 'exec litellm --port 4000 --num_workers 3']}"), 3);
        assert_eq!(count("{name: a, env: [{name: NUM_WORKERS, value: '5'}]}"), 5);
        assert_eq!(count("{name: a, args: [--num_workers, '2'], env: [{name: NUM_WORKERS, value: '5'}]}"), 2);
        assert_eq!(count("{name: a, args: [--num_workers, $(W)], env: [{name: W, value: '7'}]}"), 7);
        assert_eq!(count("{name: a, args: [--num_workers, $(W)], envFrom: [{configMapRef: {name: c}}]}"), 6);
        assert_eq!(count("{name: a, args: [--num_workers, many]}"), 1);
        assert_eq!(count("{name: a, args: [--num_workers, '0']}"), 1);
        assert_eq!(workers(choose_container(&componentized(), None).unwrap(), |_| None), 2);
        assert_eq!(workers(choose_container(&litellm_helm(), None).unwrap(), |_| None), 4);
    }

    #[test]
    fn only_what_can_say_the_workers_is_read() {
        let refs = |yaml: &str| worker_refs(&container(yaml)).iter().map(Ref::to_string).collect::<Vec<_>>();
        let none: [&str; 0] = [];
        assert_eq!(refs("{name: a, env: [{name: NUM_WORKERS, value: '2'}]}"), none);
        assert_eq!(refs("{name: a, args: [--num_workers, '2'], envFrom: [{configMapRef: {name: c}}]}"), none);
        let from_map =
            "{name: a, args: [--num_workers, $(W)], env: [{name: W, valueFrom: {configMapKeyRef: {name: c, key: w}}}]}";
        assert_eq!(refs(from_map), ["key w of ConfigMap c"]);
        assert_eq!(
            refs("{name: a, envFrom: [{secretRef: {name: s}}]}"),
            ["key DEFAULT_NUM_WORKERS_LITELLM_PROXY of Secret s", "key NUM_WORKERS of Secret s"]
        );
    }

    #[test]
    fn surge_rounds_up() {
        let with = |yaml: &str| {
            let mut deployment = litellm_helm();
            deployment.spec.as_mut().unwrap().strategy = serde_saphyr::from_str(yaml).unwrap();
            deployment
        };
        assert_eq!(surge(&litellm_helm(), 5), 2);
        assert_eq!(surge(&with("{type: RollingUpdate, rollingUpdate: {maxSurge: 3}}"), 5), 3);
        assert_eq!(surge(&with("{type: RollingUpdate, rollingUpdate: {maxSurge: 10%}}"), 5), 1);
        assert_eq!(surge(&with("{type: RollingUpdate, rollingUpdate: {maxSurge: 100%}}"), 5), 5);
        assert_eq!(surge(&with("{type: Recreate}"), 5), 0);
    }
}
