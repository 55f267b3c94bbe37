//! What the fuzz targets share: an input read as a list of steps, and a hostile driver's view of guest memory and queues.

pub mod driver;
pub mod input;
pub mod transport;

pub use driver::{Guest, Rings};
pub use input::Input;
