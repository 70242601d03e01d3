//! What users do with TokenBudget, done on a real control plane and measured at the provider.

mod admission;
pub mod bench;
pub mod checks;
pub mod demo;
mod failover;
mod figures;
mod fleet;
mod knobs;
mod manners;
mod newcomers;
mod outsider;
mod replicas;
mod rig;

pub use fleet::Fleet;
pub use rig::{Paths, Rig};
