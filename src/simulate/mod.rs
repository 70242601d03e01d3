//! The protocol in virtual time: processes, ledger, operator and what goes wrong, seeded and repeatable. It proves the rules
//! (`tests/simulation.rs`) and sizes a fleet (`tokenbudget simulate`).

pub mod baseline;
pub mod choice;
pub mod cli;
pub mod compare;
pub mod demand;
pub mod fault;
pub mod judge;
pub mod member;
mod operator;
pub mod process;
pub mod report;
pub mod scenarios;
mod server;
pub mod setup;
pub mod size;
mod watch;
mod world;

pub use process::Manners;
pub use world::{Config, Run, World};
