//! The jail: what is left to the process once a guest runs in it. Entered before the machine is built, closed around
//! each thread before the guest's first instruction.
//!
//! [`Jail::enter`] leaves the host's namespaces, file system and privileges behind; [`Jail::confine`] puts the system
//! call filter of one kind of thread (`filters.json`) around the calling thread. A process id namespace of its own is
//! the parent's to give, since a process is born into one.

mod enter;
mod filters;
#[cfg(feature = "jail-probes")]
pub mod probes;
#[cfg(any(test, feature = "jail-probes"))]
mod rules;
#[cfg(feature = "jail-probes")]
pub mod trial;

use std::io;

use nix::errno::Errno;

use crate::config::JailConfig;
pub use filters::Thread;

#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("cannot {doing} for the jail: {source}")]
    Enter { doing: &'static str, source: Errno },
    #[error("cannot install the system call filter: {0}")]
    Filter(#[from] seccompiler::Error),
}

/// Proof that the process is in its jail, or that it was not asked to be.
#[derive(Clone, Copy, Debug)]
pub struct Jail {
    filters: bool,
    #[cfg(feature = "jail-probes")]
    trial: Option<&'static trial::Trial>,
}

impl Jail {
    /// No jail at all: for a machine whose configuration has none.
    pub const NONE: Self = Self::with(false);

    /// Filters without walls, for tests of what a filter allows.
    #[cfg(test)]
    pub(crate) const FILTERS_ALONE: Self = Self::with(true);

    const fn with(filters: bool) -> Self {
        Self {
            filters,
            #[cfg(feature = "jail-probes")]
            trial: None,
        }
    }

    /// Enters the jail. Only for a process with one thread: what is given up, is given up by the calling one.
    pub fn enter(config: &JailConfig) -> Result<Self, JailError> {
        enter::enter(config)?;
        Ok(Self::with(true))
    }

    /// Keeps every file from growing beyond this size in bytes, for good. The jail is not whole before.
    pub fn limit_files(self, largest: u64) -> Result<Self, JailError> {
        if self.filters {
            enter::limit_files(largest)?;
        }
        Ok(self)
    }

    /// From here on the calling thread can do what threads of its kind do, and anything else ends the process.
    pub fn confine(self, thread: Thread) -> Result<(), JailError> {
        #[cfg(feature = "jail-probes")]
        if let Some(trial) = self.trial {
            return trial.confine(thread);
        }
        if self.filters {
            filters::install(thread)?;
        }
        Ok(())
    }

    /// As [`Jail::confine`], for a thread that must not go on without.
    pub fn confine_or_abort(self, thread: Thread) {
        if let Err(error) = self.confine(thread) {
            eprintln!("berth-vmm: a {thread:?} thread {error}");
            std::process::abort();
        }
    }

    /// The same jail with its walls but without its filters, so that a probe finds the wall behind the filter.
    #[cfg(feature = "jail-probes")]
    #[must_use]
    pub fn without_filters(self) -> Self {
        Self::with(false)
    }

    /// The same jail, with its filters on trial.
    #[cfg(feature = "jail-probes")]
    #[must_use]
    pub fn on_trial(self, trial: &'static trial::Trial) -> Self {
        Self {
            trial: Some(trial),
            ..self
        }
    }
}

impl From<JailError> for io::Error {
    fn from(error: JailError) -> Self {
        Self::other(error)
    }
}
