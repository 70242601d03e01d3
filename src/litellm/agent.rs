//! The agent: one Python file, carried by this program and put into a ConfigMap in each namespace that needs it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::digest::digest;
use crate::ledger::call_script;

/// Name of the agent's file, in the ConfigMap and in the container.
pub const AGENT_FILE: &str = "tokenbudget_agent.py";

/// Name of the ConfigMap with the agent. It does not change with the version: a digest in it would make every upgrade of
/// the operator a rollout of LiteLLM, and would break `kubectl rollout undo`.
pub const AGENT_CONFIG_MAP: &str = "tokenbudget-agent";

/// Annotation with the agent's version on its ConfigMap.
pub const VERSION_ANNOTATION: &str = "tokenbudget.dev/agent-version";

/// Annotation with the SHA-256 of the agent's file, on its ConfigMap, and on pod templates for `agentUpdatePolicy:
/// RollingUpdate`; members report the first 12 digits of the one that they run.
pub const DIGEST_ANNOTATION: &str = "tokenbudget.dev/agent-digest";

/// The agent, with a place for the script of its one ledger call.
const TEMPLATE: &str = include_str!("../../agent/tokenbudget_agent.py");
const PLACE: &str = "@CALL_LUA@";

/// The source of the agent, complete.
#[must_use]
pub fn agent_source() -> String {
    TEMPLATE.replacen(PLACE, call_script(), 1)
}

/// SHA-256 of [`agent_source`], in hex.
#[must_use]
pub fn agent_digest() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| digest(&agent_source(), 64))
}

/// The version that the agent reports.
#[must_use]
pub fn agent_version() -> &'static str {
    let line = TEMPLATE.lines().find_map(|line| line.strip_prefix("AGENT_VERSION"));
    line.and_then(|rest| rest.split(['"', '\'']).nth(1)).unwrap_or("unknown")
}

/// The ConfigMap with the agent, as it is to be applied in a namespace.
#[must_use]
pub fn agent_config_map(namespace: &str) -> ConfigMap {
    let one = |key: &str, value: String| Some(BTreeMap::from([(key.to_owned(), value)]));
    let source = agent_source();
    let annotations =
        [(VERSION_ANNOTATION, agent_version().to_owned()), (DIGEST_ANNOTATION, agent_digest().to_owned())];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(AGENT_CONFIG_MAP.to_owned()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value)).into()),
            labels: one("app.kubernetes.io/managed-by", "tokenbudget".to_owned()),
            ..ObjectMeta::default()
        },
        data: one(AGENT_FILE, source),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_in_its_place() {
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1, "the agent has one place for the script");
        let source = agent_source();
        assert!(source.contains(call_script()) && !source.contains(PLACE));
        assert!(!call_script().contains("\"\"\"") && !call_script().contains("'''"), "it stands in a Python string");
    }

    #[test]
    fn the_config_map_fits_and_names_the_version_and_the_file() {
        let map = agent_config_map("llm");
        assert!(agent_source().len() < 900_000, "a ConfigMap holds at most 1 MiB");
        let annotations = map.metadata.annotations.unwrap();
        assert_eq!(annotations[VERSION_ANNOTATION], env!("CARGO_PKG_VERSION"));
        assert_eq!(annotations[DIGEST_ANNOTATION].len(), 64);
        assert_eq!(map.metadata.namespace.as_deref(), Some("llm"));
    }
}
