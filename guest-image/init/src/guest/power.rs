//! The end of the machine, and the probe that ends it at once.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};

use crate::guest::clock::uptime_ms;
use crate::guest::drives::writable_mounts;

/// How long the last mount namespaces may take to let go of a writable drive.
const RELEASE_TRIES: u32 = 50;
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// Flushes and releases the writable drives and powers the machine off.
pub(crate) fn power_off() -> ! {
    nix::unistd::sync();
    for mounted in writable_mounts() {
        release(&mounted);
    }
    loop {
        // The call does not return on success; if the platform cannot power off, PID 1 must stay nevertheless.
        let _ = reboot(RebootMode::RB_POWER_OFF);
        let _ = reboot(RebootMode::RB_AUTOBOOT);
        thread::sleep(Duration::from_secs(1));
    }
}

/// A line for whoever reads the kernel log; there is nobody else to tell.
pub(crate) fn log(message: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record.
        let _ = log.write_all(format!("<3>berth-init: {message}\n").as_bytes());
    }
}

/// Prints the time since boot on the console and powers off: what is measured is the boot and nothing after it.
pub(crate) fn report_boot_and_power_off() -> ! {
    let uptime = uptime_ms();
    if let Some(mut console) = open_console() {
        let _ = writeln!(console, "berth-init ready {uptime}");
        // Powering off does not wait for the serial port.
        let _ = nix::sys::termios::tcdrain(&console);
    }
    power_off()
}

fn open_console() -> Option<File> {
    let open = || OpenOptions::new().write(true).open("/dev/console").ok();
    open().or_else(|| {
        let _ = std::fs::create_dir("/dev");
        mount(
            Some("devtmpfs"),
            "/dev",
            Some("devtmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .ok()?;
        open()
    })
}

/// The mount namespaces of dead containers are taken down asynchronously, so the drive may be busy a little longer.
fn release(mounted: &Path) {
    for _ in 0..RELEASE_TRIES {
        match umount2(mounted, MntFlags::empty()) {
            Err(Errno::EBUSY) => thread::sleep(RELEASE_PAUSE),
            _ => return,
        }
    }
    log(&format!("{} stayed busy and was only flushed", mounted.display()));
}
