//! A task's life: a pure state machine (`lifecycle`), and what carries it out (`supervisor`, `session`).

pub mod host;
pub(crate) mod lifecycle;
pub(crate) mod secrets;
pub(crate) mod session;
#[cfg(test)]
pub(crate) mod simulated;
pub(crate) mod spec;
pub(crate) mod supervisor;
#[cfg(test)]
mod tests;
