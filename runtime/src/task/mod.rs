//! A task's life: a pure state machine (`lifecycle`), and what carries it out (`supervisor`, `session`).

pub mod host;
pub(crate) mod lifecycle;
mod session;
pub(crate) mod spec;
pub(crate) mod supervisor;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;
