//! The Helm chart, rendered by Helm itself, and what it says of the operator's metrics.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod admission;
mod helm;
mod install;
mod metrics;
mod monitoring;
mod network;
mod operator;
mod uninstall;
