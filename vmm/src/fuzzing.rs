//! What the fuzz targets (`fuzz/`) drive: devices one step at a time on the caller's thread, without the threads that
//! serve them in a machine. Each entry lies beside the code that it enters. In no release: feature `fuzzing`.

pub use crate::devices::virtio::balloon::fuzzing::BalloonQueues;
pub use crate::devices::virtio::block::fuzzing::BlockQueue;
pub use crate::devices::virtio::net::fuzzing::NetQueues;
pub use crate::devices::virtio::rng::fuzzing::RngQueue;
pub use crate::devices::virtio::vsock::VsockQueues;
