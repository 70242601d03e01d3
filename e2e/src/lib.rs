//! The rig that judges TokenBudget.
//!
//! Four independent parts, each usable in-process by a scenario:
//!
//! * [`provider`]: speaks the OpenAI API and writes down, to the 100 ms, every
//!   token it admitted. It is the only witness a claim may rest on.
//! * [`load`]: open-loop load on the Ready pods of a Deployment (or on URLs).
//! * [`judge`]: pure arithmetic over what was offered and what was admitted;
//!   `tokenbudget simulate` judges by the same.
//! * [`plot`]: draws the last-60-seconds curve against the budget as SVG.
//!
//! [`request`] and [`size`] are shared by provider and load, so that the load
//! knows what a refused request *would* have cost.
//!
//! Units: times are Unix milliseconds, token counts are prompt plus answer.

pub mod clock;
pub mod load;
pub mod provider;
pub mod request;
pub mod scenario;

pub use tokenbudget::plot;
pub use tokenbudget::simulate::{judge, size};
