//! The agent's side of the rules: what one LiteLLM process does. Pure; the clocks are passed in.

mod book;
mod denied;
mod drift;
mod ring;

pub use book::{Book, Clocks, HOLD, Sent};
pub use denied::Denied;
pub use drift::Drift;
pub use ring::{Charge, Ring, SLOT, WINDOW};
