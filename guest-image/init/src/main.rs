//! `berth-init`: PID 1 of a Berth guest and supervisor of the containers of its task.
//!
//! Here are the refusals and the choice of what to be; the machine itself is prepared in `guest`, one container is
//! made in `container`, and `supervisor` is the loop between the containers and the host. It knows nothing of ECS or of
//! images' origins: it carries out what the task's specification says, whether or not the host listens, and reports.

#![cfg_attr(not(test), no_main)]
// Under test the entry is the test runner's, and nothing calls what only the entry leads to.
#![cfg_attr(test, allow(dead_code))]

mod container;
mod guest;
mod supervisor;
mod wait;

use std::io::Write;

use berth_protocol::GUEST_MARKER;

use crate::guest::cmdline::CommandLine;

/// Word on the kernel command line that asks for the time of boot and nothing else.
const PROBE_WORD: &str = "berth.probe=1";

/// The C entry, in place of Rust's own start code: that opens `/dev/null` for closed standard descriptors, and
/// aborts a PID 1 that has neither a console nor a `/dev` yet, which is the ordinary guest.
// SAFETY: this is the only `main` of the binary, with the signature that the C runtime calls.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    run()
}

fn run() -> i32 {
    let mut args = std::env::args();
    let name = args.next();
    match name.as_deref() {
        Some(container::reaper::NAME) => return container::reaper::run(args.next().as_deref()),
        Some(container::pids::STARTER_NAME) => return container::pids::start(),
        Some(container::join::NAME) => return container::join::main(),
        Some(container::command::NAME) => return container::command::main(),
        Some(container::forward::NAME) => return container::forward::main(),
        _ => {}
    }
    match admitted() {
        // The first process of another namespace of the guest, which has mounts of its own.
        Ok(_) if name.as_deref() == Some(container::pids::HOLDER_NAME) => container::pids::hold(),
        Ok(command_line) if command_line.has(PROBE_WORD) => guest::power::report_boot_and_power_off(),
        Ok(_) => supervisor::run(),
        Err(refusal) => {
            // Without a standard error there is nobody to tell, and the exit code says it again.
            let _ = writeln!(std::io::stderr(), "berth-init: {refusal}");
            1
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("refusing to run as process {0}: only as process 1 of a Berth guest")]
    NotFirst(u32),
    #[error("refusing to run: cannot read the kernel command line: {0}")]
    CommandLine(std::io::Error),
    #[error("refusing to run: {GUEST_MARKER} is not on the kernel command line, so this is no Berth guest")]
    NoMarker,
}

/// Whether this process may take the machine over. Touches no mount that anybody else can see.
fn admitted() -> Result<CommandLine, Refusal> {
    let pid = std::process::id();
    if pid != 1 {
        return Err(Refusal::NotFirst(pid));
    }
    let command_line = CommandLine::read().map_err(Refusal::CommandLine)?;
    if command_line.has(GUEST_MARKER) {
        Ok(command_line)
    } else {
        Err(Refusal::NoMarker)
    }
}
