//! Leader election by a Lease: of all replicas of the operator, one writes.
//!
//! [`decide`] and [`Elector`] are pure: what to do next, from what was seen and when, by this machine's own clocks. [`run`]
//! does it. Nobody compares clocks with another machine: a candidate waits a lease's length, by its own clock, since it
//! first saw the version of the Lease that is still there; a leader stops a third of that earlier.
//!
//! A [`LeaderToken`] ends by itself. A pass begins with one, and is dropped where it stands when it has ended
//! ([`Leadership::lost`]).
//!
//! What a token cannot give: when somebody deletes the Lease and a replica starts in the next ten seconds, two may be valid
//! for so long. The ledger's epoch refuses the older one's writes.

mod decide;
mod elector;
mod moment;
mod run;

pub use decide::{Decision, Observed, Record, Timings, decide};
pub use elector::{Elector, LeaderToken, Step, Write, Written};
pub use moment::Moment;
pub use run::{Config, Leadership, Standby, run, unique_identity};

/// Name of the Lease where nobody names another; the chart gives it the name of its release.
pub const LEASE_NAME: &str = "tokenbudget";
