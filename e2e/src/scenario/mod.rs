//! What users do with TokenBudget, done on a real control plane and measured at the provider.

pub mod checks;
pub mod demo;
mod figures;
mod fleet;
mod rig;

pub use fleet::Fleet;
pub use rig::{Paths, Rig};
