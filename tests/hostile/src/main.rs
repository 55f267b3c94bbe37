//! A guest without an operating system that does by hand to its virtio devices what no driver does.
//!
//! `cargo xtask test` builds it as what it is, with nothing below it and `panic = "abort"`; the VMM boots it in the place of
//! a kernel. Its command line says what it does: `attack=KIND` runs all attacks on the devices of a kind, `attack=KIND/NAME`
//! one of them, `without=NAME` leaves one out, and `attack=NAME` one of the ways to end, or to be idle, that are below. It tells the serial port. Built as
//! any other program of the workspace, it is one that says what it is.

#![cfg_attr(panic = "abort", no_std, no_main)]
#![cfg_attr(
    not(panic = "abort"),
    allow(dead_code, reason = "on a host there is nothing to attack")
)]

mod attacks;
#[cfg(panic = "abort")]
mod boot;
mod machine;
mod virtio;

use machine::{StartInfo, say};

/// Called by `boot` with the address of what the VMM says of the machine.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
extern "C" fn guest_main(start_info: u64) -> ! {
    let start_info = StartInfo::read(start_info);
    let mut words = start_info.cmdline().split(' ');
    let without = words.clone().find_map(|word| word.strip_prefix("without="));
    let attack = words.find_map(|word| word.strip_prefix("attack=")).unwrap_or("");
    match attack {
        "power-off" => machine::power_off(),
        "reset" => machine::reset(),
        "triple-fault" => machine::triple_fault(),
        "run-nowhere" => machine::run_nowhere(),
        "unemulated" => machine::unemulated(),
        _ => {}
    }
    if attack == "leave-all-broken" {
        say!("idle with {} broken devices", attacks::leave_all_broken());
        machine::idle();
    }
    let (kind, name) = match attack.split_once('/') {
        Some((kind, name)) => (kind, Some(name)),
        None => (attack, None),
    };
    let count = attacks::run(kind, name, without);
    say!("idle after {count} attacks");
    machine::idle()
}

/// Called by `boot` on the second processor, each time that it is started.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
extern "C" fn second_main() {
    attacks::second_processor();
}

#[cfg(panic = "abort")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("panic {info}");
    machine::power_off()
}

#[cfg(not(panic = "abort"))]
fn main() {
    println!("this is a guest of berth-vmm; `cargo xtask test` builds it as one and boots it");
}
