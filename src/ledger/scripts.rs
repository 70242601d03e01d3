//! The Lua texts, each with the part that it shares put before it.

const CALL: &str = concat!(include_str!("scripts/common.lua"), include_str!("scripts/call.lua"));
pub(super) const CLAIM: &str = concat!(include_str!("scripts/common.lua"), include_str!("scripts/claim.lua"));
pub(super) const PUBLISH: &str =
    concat!(include_str!("scripts/common.lua"), include_str!("scripts/fence.lua"), include_str!("scripts/publish.lua"));
pub(super) const PLAN: &str =
    concat!(include_str!("scripts/common.lua"), include_str!("scripts/fence.lua"), include_str!("scripts/plan.lua"));
pub(super) const CLOSE: &str =
    concat!(include_str!("scripts/common.lua"), include_str!("scripts/fence.lua"), include_str!("scripts/close.lua"));

/// The whole text of the agent's call, as the agent has to send it.
pub const fn call_script() -> &'static str {
    CALL
}
