//! One container, from its specification to its program: what the parent prepares, the clone, and the steps of the
//! child. Who waits for it and reads its output is `supervisor`'s concern.

mod capability;
mod child;
pub(crate) mod command;
mod environment;
pub(crate) mod forward;
mod handover;
mod inside;
pub(crate) mod join;
pub(crate) mod limits;
pub(crate) mod pids;
pub(crate) mod plan;
pub(crate) mod process;
mod program;
pub(crate) mod reaper;
mod relay;
pub(crate) mod root;
pub(crate) mod start;
pub(crate) mod stop_signal;
pub(crate) mod terminal;
mod user;
