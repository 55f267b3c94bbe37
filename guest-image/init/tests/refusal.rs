//! berth-init must never take over a machine that is not a Berth guest.

#![expect(clippy::unwrap_used, reason = "a failure to run anything is a failed test")]
use std::process::{Command, Output};

fn refusal(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let message = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{message}");
    message
}

fn init() -> &'static str {
    env!("CARGO_BIN_EXE_berth-init")
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mounts").unwrap()
}

#[test]
fn it_refuses_to_be_an_ordinary_process() {
    let message = refusal(&mut Command::new(init()));
    assert!(
        message.contains("only as process 1 of a Berth guest"),
        "{message}"
    );
}

#[test]
fn it_refuses_to_be_process_1_of_anything_but_a_guest() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a pid namespace takes root");
        return;
    }
    let before = mounts();
    // No mount namespace of its own: a mount would be seen here.
    let message = refusal(Command::new("unshare").args(["--pid", "--fork", "--", init()]));
    assert!(
        message.contains("berth.guest=1 is not on the kernel command line"),
        "{message}"
    );
    assert_eq!(mounts(), before);
}

#[test]
fn the_holder_of_a_namespace_refuses_to_be_an_ordinary_process() {
    use std::os::unix::process::CommandExt;
    let before = mounts();
    let message = refusal(Command::new(init()).arg0("berth-pids"));
    assert!(
        message.contains("only as process 1 of a Berth guest"),
        "{message}"
    );
    assert_eq!(mounts(), before);
}

#[test]
fn the_reaper_refuses_to_be_an_ordinary_process() {
    use std::os::unix::process::CommandExt;
    let output = Command::new(init())
        .arg0("berth-reaper")
        .arg("2")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
}
