//! What a person at a terminal asks of this program: `kubectl tokenbudget top`, `attach`, `check`, `completion`.
//!
//! `screen`, `paste` and `check` (but for its reading of files) are pure. `cluster` and `top` do the IO.

mod attach;
mod check;
mod cluster;
mod completion;
mod manifests;
mod paint;
mod paste;
mod screen;
mod top;

pub use attach::Attach;
pub use check::Check;
pub use completion::Completion;
pub use top::Top;
