//! TokenBudget: one provider quota, shared by every LiteLLM process of a fleet.
//!
//! `api`, `plan` and `litellm` are pure. `ledger`, `controller`, `leader` and `ops` do the IO around them.

pub mod api;
pub mod app;
mod causes;
pub mod cli;
pub mod controller;
mod digest;
pub mod leader;
pub mod ledger;
pub mod litellm;
pub mod ops;
pub mod output;
pub mod plan;
pub mod plot;
pub mod simulate;
pub mod terminal;
pub mod uninstall;
