//! How a machine ends: the first reason given counts, everybody who must know of it can wait for it, and it is written
//! down.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::EventFd;

use crate::config::{ExitReason, ExitReport};

/// The end of a machine, shared by all its threads.
pub struct Ending {
    report: OnceLock<ExitReport>,
    event: EventFd,
}

impl Ending {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            report: OnceLock::new(),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Ends the machine, unless something else did before.
    pub fn end(&self, reason: ExitReason, detail: Option<String>) {
        if self.report.set(ExitReport { reason, detail }).is_ok() {
            // An eventfd takes 2^64 - 1 writes before one fails; this is the only one.
            let _ = self.event.write(1);
        }
    }

    /// Why the machine ended, if it has.
    pub fn report(&self) -> Option<&ExitReport> {
        self.report.get()
    }

    /// Readable once the machine has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// Writes a report to the file that the parent gave for it, and to the disk.
pub fn write_report(file: &File, report: &ExitReport) -> io::Result<()> {
    let json = serde_json::to_vec(report)?;
    file.set_len(0)?;
    file.write_all_at(&json, 0)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_replaces_what_was_in_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[b'x'; 1000]).unwrap();
        let report = ExitReport {
            reason: ExitReason::Error,
            detail: Some("why".into()),
        };
        write_report(&file, &report).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert_eq!(serde_json::from_reader::<_, ExitReport>(file).unwrap(), report);
    }

    #[test]
    fn the_first_reason_counts() {
        let ending = Ending::new().unwrap();
        assert!(ending.report().is_none() && ending.event().read().is_err());
        ending.end(ExitReason::PowerOff, None);
        ending.end(ExitReason::Error, Some("later".into()));
        assert_eq!(
            ending.report(),
            Some(&ExitReport {
                reason: ExitReason::PowerOff,
                detail: None
            })
        );
        assert_eq!(ending.event().read().unwrap(), 1);
    }
}
