//! The agent: one Python file, made of the parts in `agent/src`, carried by this program and put into a ConfigMap in each namespace that needs it.

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

/// The agent in parts, in the order in which they are joined.
const PARTS: [&str; 23] = [
    include_str!("../../agent/src/constants.py"),
    include_str!("../../agent/src/shapes.py"),
    include_str!("../../agent/src/clock.py"),
    include_str!("../../agent/src/ring.py"),
    include_str!("../../agent/src/drift.py"),
    include_str!("../../agent/src/counts.py"),
    include_str!("../../agent/src/book.py"),
    include_str!("../../agent/src/governor.py"),
    include_str!("../../agent/src/estimates.py"),
    include_str!("../../agent/src/told.py"),
    include_str!("../../agent/src/request.py"),
    include_str!("../../agent/src/calls.py"),
    include_str!("../../agent/src/refusal.py"),
    include_str!("../../agent/src/waiting.py"),
    include_str!("../../agent/src/agent.py"),
    include_str!("../../agent/src/siblings.py"),
    include_str!("../../agent/src/address.py"),
    include_str!("../../agent/src/ledger.py"),
    include_str!("../../agent/src/narrowing.py"),
    include_str!("../../agent/src/local_counters.py"),
    include_str!("../../agent/src/adapter.py"),
    include_str!("../../agent/src/hooks.py"),
    include_str!("../../agent/src/start.py"),
];

/// In the first part: the place for the script of the agent's one ledger call.
const PLACE: &str = "@CALL_LUA@";

/// The source of the agent, complete: its parts without what one imports from another, one namespace. Python's `from
/// __future__` may only stand at the beginning.
#[must_use]
pub fn agent_source() -> String {
    let [first, others @ ..] = PARTS;
    let mut source = first.replacen(PLACE, call_script(), 1);
    for part in others {
        source.push_str("\n\n");
        let mut imports = false;
        for line in part.split_inclusive('\n') {
            let begins = line.starts_with("from .") || line.starts_with("from __future__");
            if begins || imports {
                imports = if begins { line.ends_with("(\n") } else { line != ")\n" };
            } else {
                source.push_str(line);
            }
        }
    }
    source
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
    let line = PARTS[0].lines().find_map(|line| line.strip_prefix("AGENT_VERSION"));
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
        assert_eq!(PARTS.concat().matches(PLACE).count(), 1, "the agent has one place for the script");
        let source = agent_source();
        assert!(source.contains(call_script()) && !source.contains(PLACE));
        assert!(!call_script().contains("\"\"\"") && !call_script().contains("'''"), "it stands in a Python string");
    }

    #[test]
    fn every_part_is_joined() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/src");
        let files = std::fs::read_dir(root).unwrap().map(|file| file.unwrap().path());
        let parts = files.filter(|file| file.extension().is_some_and(|ending| ending == "py"));
        assert_eq!(parts.count(), PARTS.len() + 1, "each but __init__.py is named in PARTS");
    }

    /// The agent's own tests have it from `agent/tests/support/rendering.py`.
    #[test]
    fn its_tests_run_the_same_text() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/agent/tests/support");
        let print = "import sys, rendering; sys.stdout.write(rendering.rendered())";
        let python = std::process::Command::new("python3").args(["-c", print]).current_dir(folder).output().unwrap();
        assert_eq!(String::from_utf8(python.stderr).unwrap(), "");
        let theirs = String::from_utf8(python.stdout).unwrap();
        let other = agent_source()
            .lines()
            .zip(theirs.lines())
            .find(|(ours, theirs)| ours != theirs)
            .map(|(ours, _)| ours.to_owned());
        assert_eq!(other, None, "rendering.py joins another text");
        assert_eq!(agent_source().len(), theirs.len());
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
