//! The devices of a machine: the two small ones here, the virtio ones a folder each.

pub mod power;
pub mod serial;
pub mod virtio;
