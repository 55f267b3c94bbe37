"""What `cargo xtask bench` measures, in one run, in turn: berth-vmm against `qemu-system-x86_64 -M microvm` on the same
kernel and init, and a task from RunTask to its first output.

Absolute times of an emulated lab mean nothing outside it; ratios of medians do.
"""

import argparse
import json
import mmap
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "e2e"))

import product
from vmm import INITRD, KERNEL, TIMEOUT, Machine, Snapshot

MEMORY_MIB = 256
READY = re.compile(rb"berth-init ready (\d+)\r?\n")
PROBE = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off i8042.noaux berth.guest=1 berth.probe=1"
IDLE = "quiet loglevel=1 panic=-1 pci=off i8042.noaux berth.guest=1"
TRACING = Path("/sys/kernel/tracing")


class Qemu:
    """QEMU's microvm with the same kernel, init and size, as it comes or without what its manual says can be left out."""

    def __init__(self, machine="microvm"):
        self.output, writer = os.pipe()
        command = ["qemu-system-x86_64", "-M", machine]
        command += ["-enable-kvm", "-cpu", "host", "-smp", "1", "-m", f"{MEMORY_MIB}M", "-no-reboot", "-nodefaults"]
        command += ["-no-user-config", "-nographic", "-serial", "stdio", "-device", "virtio-rng-device"]
        command += ["-kernel", KERNEL, "-initrd", INITRD, "-append", PROBE]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer)
        os.close(writer)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=TIMEOUT)
        os.close(self.output)


def until_ready(machine):
    """Milliseconds from the start of the process to the first line of user space, and what the guest's own clock has
    counted up to there."""
    text = b""
    while not (ready := READY.search(text)):
        # Asleep until something comes: a loop here would take the processor from what it measures.
        if not select.select([machine.output], [], [], TIMEOUT)[0]:
            raise RuntimeError(f"no sign of user space; the console says {text[-2500:]!r}")
        piece = os.read(machine.output, 4096)
        if not piece:
            raise RuntimeError(f"the machine ended before user space; the console says {text[-2500:]!r}")
        text += piece
    return (time.monotonic() - machine.started) * 1000, int(ready[1])


# The smallest machine of QEMU's manual (system/i386/microvm), but for the serial port, which tells of the boot.
PEERS = {"qemu": "microvm", "qemu_minimal": "microvm,x-option-roms=off,pit=off,pic=off,rtc=off"}


# What is booted in each round, and whether its files are in the host's page cache.
BOOTS = [
    ("berth", False),
    ("qemu", False),
    ("berth", True),
    ("qemu", True),
    ("jailed", True),
    ("qemu_minimal", True),
]


def write_over_old_guests():
    """The lab's emulator keeps its translations of a guest's code until the memory is written again, and drops them one
    by one then: seconds, charged to whoever gets that memory next. So this process gets it, outside of all measuring."""
    if os.environ.get("BERTH_LAB") != "nested":
        return
    for size, advice in [(512 << 20, mmap.MADV_HUGEPAGE), (96 << 20, mmap.MADV_NOHUGEPAGE)]:
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(advice)
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 0


def forget_files():
    """Takes the files of this host out of its page cache, as they are before the first start on it."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


def boot(kind, cached=True):
    write_over_old_guests()
    if not cached:
        forget_files()
    machine = Qemu(PEERS[kind]) if kind in PEERS else Machine(PROBE, serial=True, jailed=kind == "jailed")
    try:
        return until_ready(machine)
    finally:
        machine.close()


class Exits:
    """Counts KVM exits between two moments, by the kernel's own histograms."""

    EVENTS = {"total": "kvm_exit", "user": "kvm_userspace_exit"}

    def __enter__(self):
        for event in self.EVENTS.values():
            self._write(event, "hist:keys=common_pid")
        return self

    def counts(self):
        counts = {}
        for name, event in self.EVENTS.items():
            text = (TRACING / "events/kvm" / event / "hist").read_text()
            counts[name] = int(re.search(r"Hits: (\d+)", text).group(1))
        return counts

    def __exit__(self, *_):
        for event in self.EVENTS.values():
            self._write(event, "!hist:keys=common_pid")

    def _write(self, event, text):
        (TRACING / "events/kvm" / event / "trigger").write_text(text + "\n")


def exits_per_boot(rounds):
    if not (TRACING / "events/kvm").is_dir():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=False)
    totals, users = [], []
    for _ in range(rounds):
        with Exits() as exits:
            boot("berth")
            counts = exits.counts()
        say(f"KVM exits of a boot: {counts['total']}, {counts['user']} of them to user space")
        totals.append(counts["total"])
        users.append(counts["user"])
    return statistics.median(totals), statistics.median(users)


def resident_outside_guest():
    """MiB of an idle machine that are not the guest's memory: all, and the anonymous part."""
    machine = Machine(IDLE, vsock=True, jailed=True)
    try:
        time.sleep(8)
        resident = anonymous = 0
        smaps = Path(f"/proc/{machine.process.pid}/smaps").read_text()
        for mapping in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps)[1:]:
            fields = dict(re.findall(r"(?m)^(\w+):\s+(\d+) kB", mapping))
            if int(fields["Size"]) >= MEMORY_MIB * 1024:
                continue
            resident += int(fields["Rss"])
            anonymous += int(fields["Anonymous"])
        return resident / 1024, anonymous / 1024
    finally:
        machine.close()


# Memory of the machines that are written down, in MiB.
SNAPSHOTS = [128, MEMORY_MIB, 2048]


def snapshots():
    """Idle machines written down, each where its init waits for a task, and the milliseconds that it took. What a first clone
    finds for itself is prepared for the others, as a template's trial does for its tasks."""
    taken = {}
    for memory_mib in SNAPSHOTS:
        write_over_old_guests()
        files = Snapshot(memory_mib)
        machine = Machine(IDLE, snapshot=files, vsock=True, jailed=True)
        try:
            machine.wait_for_connection()
            time.sleep(1)
            taken[memory_mib] = files, machine.take_snapshot()
        finally:
            machine.close()
        trial = Machine(restore=files, vsock=True, jailed=True)
        try:
            trial.wait_for_connection()
            files.learn(trial)
        finally:
            trial.close()
        say(f"snapshot of an idle machine of {memory_mib} MiB: {taken[memory_mib][1]:.0f} ms")
    return taken


def restore(files):
    """Milliseconds from the start of the process to the restored guest's first words to the host."""
    machine = Machine(restore=files, vsock=True, jailed=True)
    try:
        return machine.wait_for_connection()
    finally:
        machine.close()


def resident(process, what):
    """MiB of a process by the kernel's own account (smaps_rollup): `Pss`, `Rss`, `Anonymous`."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(re.search(rf"(?m)^{what}:\s+(\d+) kB", rollup)[1]) / 1024


def shared_among(files, count):
    """Proportional share of memory of each of `count` idle clones of one snapshot, in MiB."""
    machines = [Machine(restore=files, vsock=True, jailed=True) for _ in range(count)]
    try:
        for machine in machines:
            machine.wait_for_connection()
        time.sleep(5)
        return statistics.mean(resident(machine.process, "Pss") for machine in machines)
    finally:
        for machine in machines:
            machine.close()


def run_task_to_output(rounds, *options):
    """Milliseconds from RunTask to the container's first output, the image being there, by a daemon with these options."""
    import images
    from daemon import Daemon
    from registry import Registry
    from tasks import Tasks

    registry = Registry().start()
    data = Path(tempfile.mkdtemp(dir=product.SCRATCH))
    daemon = Daemon(data / "data", [registry.host], options).start()
    try:
        folder = data / "image"
        images.write_layout(folder, [images.busybox_layer()], {"Cmd": ["sh"]})
        registry.push(folder, "busybox")
        subnets = daemon.wire.berth("DescribeNetworks")["subnets"]
        tasks = Tasks(daemon, {"subnets": [subnets[0]["subnetId"]]})
        definition = tasks.define(f"{registry.host}/busybox:latest", "echo first")
        times = []
        for number in range(rounds + 1):
            if number == 1 and not options:
                # The first has pulled the image, and has set off the making of a template.
                daemon.wait_for_template()
            write_over_old_guests()
            start = time.monotonic()
            task = tasks.run(definition)
            assert tasks.output(task, follow=True) == b"first\n"
            times.append((time.monotonic() - start) * 1000)
            say(f"RunTask to the first output: {times[-1]:.0f} ms")
            tasks.wait(task, "STOPPED")
        return times[1:]
    finally:
        daemon.stop()
        registry.stop()


def say(text):
    """Progress, for the eyes only."""
    print(text, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    times, clocks = {}, {}
    for number in range(options.rounds):
        for kind, cached in BOOTS:
            wall, clock = boot(kind, cached)
            times.setdefault((kind, cached), []).append(wall)
            clocks.setdefault((kind, cached), []).append(clock)
            files = "cached" if cached else "not cached"
            say(f"cold boot {number + 1} of {options.rounds}, {kind}, files {files}: {wall:.0f} ms, {clock} ms by the guest's clock")
    times = {key: statistics.median(measured) for key, measured in times.items()}
    clocks = {key: statistics.median(measured) for key, measured in clocks.items()}
    cold, qemu, minimal = times["berth", True], times["qemu", True], times["qemu_minimal", True]
    uncached, uncached_qemu = times["berth", False], times["qemu", False]
    total, user = exits_per_boot(3)
    resident, anonymous = resident_outside_guest()
    taken = snapshots()
    restored = {memory_mib: [] for memory_mib in SNAPSHOTS}
    for number in range(options.rounds):
        for memory_mib, (files, _) in taken.items():
            restored[memory_mib].append(restore(files))
            say(f"restore {number + 1} of {options.rounds}, {memory_mib} MiB: {restored[memory_mib][-1]:.0f} ms")
    restored = {memory_mib: statistics.median(times) for memory_mib, times in restored.items()}
    idle = taken[MEMORY_MIB][0]
    alone, of_ten = shared_among(idle, 1), shared_among(idle, 10)
    cold_output = statistics.median(run_task_to_output(options.rounds, "--isolation", "strict"))
    clone_output = statistics.median(run_task_to_output(options.rounds))
    rows = [
        ("cold_boot_vs_qemu", cold / qemu, "ratio"),
        ("cold_boot_vs_qemu_minimal", cold / minimal, "ratio"),
        ("jailed_boot_vs_qemu", times["jailed", True] / qemu, "ratio"),
        ("cold_boot_ms", cold, "ms"),
        ("jailed_boot_ms", times["jailed", True], "ms"),
        ("cold_boot_qemu_ms", qemu, "ms"),
        ("cold_boot_qemu_minimal_ms", minimal, "ms"),
        ("uncached_boot_vs_qemu", uncached / uncached_qemu, "ratio"),
        ("uncached_boot_ms", uncached, "ms"),
        ("uncached_boot_qemu_ms", uncached_qemu, "ms"),
        ("guest_uptime_at_init_ms", clocks["berth", True], "ms"),
        ("guest_uptime_at_init_qemu_ms", clocks["qemu", True], "ms"),
        ("kvm_exits_per_boot", total, "exits"),
        ("kvm_exits_to_user_per_boot", user, "exits"),
        ("vmm_rss_outside_guest_mib", resident, "MiB"),
        ("vmm_rss_anonymous_mib", anonymous, "MiB"),
        ("restore_vs_cold_boot", restored[MEMORY_MIB] / cold, "ratio"),
        *((f"restore_{memory_mib}_mib_ms", took, "ms") for memory_mib, took in restored.items()),
        ("restore_2048_vs_128_mib", restored[2048] / restored[128], "ratio"),
        *((f"snapshot_{memory_mib}_mib_ms", took, "ms") for memory_mib, (_, took) in taken.items()),
        ("clone_pss_mib", alone, "MiB"),
        ("clone_pss_of_ten_mib", of_ten, "MiB"),
        ("run_task_to_first_output_ms", cold_output, "ms"),
        ("template_start_ms", clone_output, "ms"),
        ("template_start_vs_cold_start", clone_output / cold_output, "ratio"),
        ("run_task_to_first_output_vs_qemu_boot", cold_output / qemu, "ratio"),
    ]
    rows = [{"name": name, "value": round(value, 3), "unit": unit} for name, value, unit in rows]
    for row in rows:
        print(f"{row['name']:40} {row['value']:>12} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    shutil.rmtree(product.SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    main()
