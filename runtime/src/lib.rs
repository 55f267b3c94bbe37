//! berth-runtime: tasks, images, networks, host resources, metering and their state.
//!
//! The way in is [`Runtime`]. What is not here: HTTP, ARNs, AWS's names of errors (they are `berth-api`'s), and the
//! machine itself (`berth-vmm`, a process of its own, of which this crate uses the client).

pub mod clock;
pub mod model;
pub mod runtime;

pub use runtime::{Runtime, RuntimeConfig, RuntimeError};
