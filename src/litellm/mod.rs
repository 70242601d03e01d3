//! How LiteLLM runs in a Deployment, and how the agent gets into it. Pure: no client, no clock.
//!
//! - [`choose_container`], [`workers`], [`surge`]: which container is LiteLLM, and how many processes it can come to.
//! - [`attachment`], [`detachment`], [`difference`]: the server-side apply that adds the agent, the one that takes it out,
//!   and what of it is there.
//! - [`admission`]: what the chart's admission policy reads, where the pod template is not touched.
//! - [`Setting`], [`RedisSource`]: environment variables of a container, and the Redis that they name.
//! - [`counters`]: what LiteLLM itself counts in Redis.
//! - [`agent_source`], [`agent_config_map`]: the agent itself.

mod admission;
mod agent;
mod attach;
mod container;
pub mod counters;
mod entries;
mod env;
mod redis_source;
#[cfg(test)]
mod test_support;

pub use admission::{ATTACH_LABEL, ATTACH_VALUE, admission, asks_for_agent, is_attached_by_us};
pub use agent::{
    AGENT_CONFIG_MAP, AGENT_FILE, DIGEST_ANNOTATION, VERSION_ANNOTATION, agent_config_map, agent_digest, agent_source,
    agent_version,
};
pub use attach::{
    Attachment, Detachment, Inherited, Refusal, Wanted, attachment, detachment, image_of_unknown_directory,
    policy_config_map_name, startup_hooks,
};
pub use container::{choose_container, surge, worker_refs, workers};
pub use entries::{Difference, Entry, attached_container, difference, holds_entries, is_attached};
pub use env::{Missing, Piece, Ref, Setting, setting};
pub use redis_source::RedisSource;

/// The variable that names what LiteLLM runs at the start of every worker process.
pub const STARTUP_HOOKS: &str = "LITELLM_WORKER_STARTUP_HOOKS";

/// Our entry in [`STARTUP_HOOKS`].
pub const AGENT_HOOK: &str = "tokenbudget_agent:start";

/// Key of the CA's certificate in the Secret that holds the ledger's URL, if it is signed by no public one.
pub const CA_KEY: &str = "ca.crt";

/// Label of the pods that were made with the agent in their template.
pub const ATTACHED_LABEL: &str = "tokenbudget.dev/agent";

/// Value of [`ATTACHED_LABEL`].
pub const ATTACHED_VALUE: &str = "attached";

/// Whether a value of [`STARTUP_HOOKS`] loads the agent.
#[must_use]
pub fn names_agent(hooks: &str) -> bool {
    hooks.split(',').any(|hook| hook.trim() == AGENT_HOOK)
}
