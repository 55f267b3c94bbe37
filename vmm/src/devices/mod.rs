//! The devices of a machine: the small ones here, the virtio ones a folder each.

pub mod generation;
pub mod power;
pub mod serial;
pub mod system_control;
pub mod virtio;
