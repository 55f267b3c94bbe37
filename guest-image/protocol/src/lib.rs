//! The frames that a Berth host and `berth-init` (PID 1 of the guest) exchange over one vsock stream. No I/O here.
//!
//! The guest connects to host port [`HOST_PORT`] when it is ready, and again whenever that connection breaks. The
//! first frame of each side is a `Hello`. Everything either side has to know after a reconnect is in the two
//! `Hello`s: the guest says what its containers are doing, the host says up to which byte it has stored each output
//! stream, and the guest sends the rest again.
//!
//! Both sides treat the other as hostile: lengths are bounded before use, unknown kinds are errors.

pub mod exec;
pub mod frame;
pub mod message;

/// Version of this protocol; both sides say it first, and must agree.
pub const PROTOCOL_VERSION: u32 = 4;
/// The vsock port of the host to which the guest connects.
pub const HOST_PORT: u32 = 1024;
/// The vsock port of the guest to which the host connects for each command that it runs in a container ([`exec`]).
pub const EXEC_PORT: u32 = 1025;
/// The vsock port of the host to which the guest connects for each connection that a container makes to the task's
/// endpoints (169.254.170.2, port 80). From then on only bytes pass: HTTP, of which the guest knows nothing.
pub const ENDPOINT_PORT: u32 = 1026;
/// Word on the kernel command line that marks a Berth guest; `berth-init` refuses to run without it.
pub const GUEST_MARKER: &str = "berth.guest=1";
/// Largest frame body in bytes.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// Largest payload of one output frame in bytes.
pub const MAX_OUTPUT_BYTES: usize = 64 * 1024;
/// How many bytes of one output stream the guest keeps until the host has acknowledged them.
pub const OUTPUT_WINDOW_BYTES: usize = 1024 * 1024;
