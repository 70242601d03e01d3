//! What users do with TokenBudget, done on a real control plane and measured at the provider.

mod admission;
mod audit;
pub mod bench;
pub mod chaos;
pub mod checks;
pub mod compare;
pub mod demo;
mod exposition;
mod failover;
mod figures;
mod fleet;
pub mod footprint;
mod killed;
mod knobs;
mod logs;
mod manners;
mod manual;
mod newcomers;
mod observed;
mod operator;
mod outsider;
mod paths;
mod redis;
mod refusals;
mod releases;
mod replicas;
mod rig;
mod rights;
pub mod scale;
mod schema;
mod shapes;
pub mod uninstall;
pub mod upgrade;

pub use fleet::Fleet;
pub use paths::Paths;
pub use rig::Rig;
