//! One container, from its specification to its program: what the parent prepares, the clone, and the steps of the
//! child. Who waits for it and reads its output is `supervisor`'s concern.

mod capability;
mod child;
mod environment;
mod inside;
pub(crate) mod join;
mod program;
pub(crate) mod reaper;
pub(crate) mod root;
pub(crate) mod start;
pub(crate) mod stop_signal;
mod user;
