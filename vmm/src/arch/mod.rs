//! All that depends on the processor: memory layout, boot protocol, tables, vCPU registers. One module per
//! architecture, with the same names in each; the rest of the crate knows only those names.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
