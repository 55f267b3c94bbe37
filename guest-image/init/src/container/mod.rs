//! One container, from its specification to its program: what the parent prepares, the clone, and the steps of the
//! child. Who waits for it and reads its output is `supervisor`'s concern.

mod capability;
mod child;
pub(crate) mod command;
mod environment;
mod inside;
pub(crate) mod join;
mod process;
mod program;
pub(crate) mod reaper;
mod relay;
pub(crate) mod root;
pub(crate) mod start;
pub(crate) mod stop_signal;
mod user;
