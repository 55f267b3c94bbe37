//! berth-vmm: one process, one microVM.
//!
//! What is here: the machine (`arch`, `devices`, `machine`, `snapshot`), its configuration (`config`), its control protocol
//! (`control`) and the client side of that protocol (`client`), which the runtime uses.
//! What is not here: containers, images, tasks, networks. A machine knows only the descriptors it was handed.

pub mod arch;
pub mod bus;
pub mod client;
pub mod config;
pub mod control;
pub mod devices;
pub mod ending;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod handed;
pub mod husk;
pub mod jail;
pub mod limits;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod positioned;
pub mod snapshot;
pub mod vcpu;
