//! A task's life: a pure state machine (`lifecycle`), and what carries it out (`supervisor`, `following`, `session`).

pub(crate) mod endpoint;
mod environment;
mod following;
pub mod host;
pub(crate) mod lifecycle;
mod pull;
mod read_buffer;
pub(crate) mod secrets;
pub(crate) mod session;
#[cfg(test)]
pub(crate) mod simulated;
pub(crate) mod spec;
pub(crate) mod supervisor;
#[cfg(test)]
mod tests;
pub(crate) mod usage;
mod volume;
