//! x86-64: PVH boot without firmware, hardware-reduced ACPI, an in-kernel interrupt controller and no PIT.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod state;
pub mod vcpu;
pub mod vm;

pub use layout::{MAX_CMDLINE_BYTES, MAX_VIRTIO_DEVICES};
