//! berth-runtime: tasks, images, networks, host resources, metering and their state.
//!
//! The way in is [`Runtime`]. What is not here: HTTP, ARNs, AWS's names of errors (they are `berth-api`'s), and the
//! machine itself (`berth-vmm`, a process of its own, of which this crate uses the client).

pub mod cgroup;
pub mod clock;
pub mod faults;
pub mod image;
mod logs;
mod machine;
mod metering;
pub mod model;
pub mod network;
pub mod runtime;
pub mod secrets;
mod state;
mod store;
mod task;

/// What is said over the stream of a command ([`Runtime::execute`]).
pub use berth_protocol as protocol;
pub use berth_vmm::config::HugePages;
pub use berth_vmm::control::{BalloonReport, MemoryStatistics};
pub use machine::{DriveEngine, MOST_HUSKS, MachineOptions, Rates, UserRange};
pub use model::isolation::Isolation;
pub use runtime::{LogMatcher, Overcommit, Ratio, Runtime, RuntimeConfig, RuntimeError};
pub use task::endpoint::EndpointCall;
pub use task::host::{GuestStream, MachineMetrics};
pub use task::usage::Measurement;
