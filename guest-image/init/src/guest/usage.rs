//! What the machine and its containers have used so far: the kernel's counters, read and added up. A counter that the kernel
//! does not have is 0.

use std::fs;
use std::path::Path;

use berth_protocol::message::{ContainerUsage, NetworkUsage};

use crate::guest::drives::SCRATCH;
use crate::guest::network;

/// Of `/proc/stat`: `USER_HZ` is 100 on every architecture.
const US_PER_TICK: u64 = 10_000;

/// Time of all processors together, in microseconds (proc_stat(5)).
pub(crate) fn system_cpu_us() -> u64 {
    system_ticks(&read(Path::new("/proc/stat"))).saturating_mul(US_PER_TICK)
}

/// Bytes used on the writable drive, and all that it has.
pub(crate) fn disk_bytes() -> (u64, u64) {
    let Ok(stat) = nix::sys::statvfs::statvfs(SCRATCH) else {
        return (0, 0);
    };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let used = stat.blocks().saturating_sub(stat.blocks_free());
    (bytes(used), bytes(stat.blocks()))
}

/// Of the interface that reaches the VPC.
pub(crate) fn network() -> NetworkUsage {
    let Ok(name) = network::first_interface() else {
        return NetworkUsage::default();
    };
    let folder = format!("/sys/class/net/{name}/statistics");
    let counter = |name: &str| number(&read(&Path::new(&folder).join(name)));
    NetworkUsage {
        rx_bytes: counter("rx_bytes"),
        rx_packets: counter("rx_packets"),
        rx_errors: counter("rx_errors"),
        rx_dropped: counter("rx_dropped"),
        tx_bytes: counter("tx_bytes"),
        tx_packets: counter("tx_packets"),
        tx_errors: counter("tx_errors"),
        tx_dropped: counter("tx_dropped"),
    }
}

/// Of the control group of a container.
pub(crate) fn container(name: &str, cgroup: &Path) -> ContainerUsage {
    let file = |file: &str| read(&cgroup.join(file));
    let (cpu, memory, io) = (file("cpu.stat"), file("memory.stat"), file("io.stat"));
    ContainerUsage {
        name: name.to_owned(),
        cpu_us: member(&cpu, "usage_usec"),
        cpu_user_us: member(&cpu, "user_usec"),
        cpu_system_us: member(&cpu, "system_usec"),
        memory_bytes: number(&file("memory.current")),
        inactive_file_bytes: member(&memory, "inactive_file"),
        memory_peak_bytes: number(&file("memory.peak")),
        pids: number(&file("pids.current")),
        read_bytes: sum_of_drives(&io, "rbytes"),
        read_ops: sum_of_drives(&io, "rios"),
        write_bytes: sum_of_drives(&io, "wbytes"),
        write_ops: sum_of_drives(&io, "wios"),
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Of lines such as `user_usec 12`.
fn member(text: &str, name: &str) -> u64 {
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.next().map_or(0, number)
}

/// Of lines such as `254:0 rbytes=1 wbytes=2 rios=3`, over all drives.
fn sum_of_drives(text: &str, name: &str) -> u64 {
    text.split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .map(number)
        .fold(0, u64::saturating_add)
}

/// Of the first line: user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's already.
fn system_ticks(proc_stat: &str) -> u64 {
    let first = proc_stat.lines().next().unwrap_or_default();
    let ticks = first.split_ascii_whitespace().skip(1).take(8).map(number);
    ticks.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "usage_usec 30\nuser_usec 20\nsystem_usec 10\ncore_sched.force_idle_usec 0\n";
        assert_eq!(member(text, "usage_usec"), 30);
        assert_eq!(member(text, "user_usec"), 20);
        assert_eq!(member(text, "user"), 0);
        assert_eq!(member("", "usage_usec"), 0);
    }

    #[test]
    fn drives_are_added_up() {
        let text = "254:0 rbytes=100 wbytes=1 rios=3 wios=4 dbytes=0 dios=0\n254:16 rbytes=23 wbytes=0 rios=1 wios=0\n";
        assert_eq!(sum_of_drives(text, "rbytes"), 123);
        assert_eq!(sum_of_drives(text, "rios"), 4);
        assert_eq!(sum_of_drives(text, "wios"), 4);
    }

    #[test]
    fn idle_time_counts_and_that_of_guests_does_not_twice() {
        let text = "cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(system_ticks(text), 36);
        assert_eq!(system_ticks(""), 0);
    }

    #[test]
    fn this_machine_has_counters() {
        assert!(system_cpu_us() > 0);
    }
}
