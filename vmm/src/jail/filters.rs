//! The filters, compiled by the build script from `filters.json`.

use seccompiler::{BpfProgram, apply_filter, sock_filter};

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// The kinds of threads, each with a list of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Serves the control socket, starts and ends everything.
    Main,
    /// Runs the guest.
    Vcpu,
    Balloon,
    Block,
    Net,
    Rng,
    Vsock,
}

impl Thread {
    pub(super) fn filter(self) -> &'static [sock_filter] {
        match self {
            Self::Main => &MAIN,
            Self::Vcpu => &VCPU,
            Self::Balloon => &BALLOON,
            Self::Block => &BLOCK,
            Self::Net => &NET,
            Self::Rng => &RNG,
            Self::Vsock => &VSOCK,
        }
    }
}

/// Puts the filter around the calling thread, for good.
pub(super) fn install(thread: Thread) -> seccompiler::Result<()> {
    let program = BpfProgram::from(thread.filter());
    apply_filter(&program)
}
