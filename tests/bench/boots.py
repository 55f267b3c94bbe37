"""Cold boots: berth-vmm against `qemu-system-x86_64 -M microvm` on the same kernel and init, the KVM exits of a boot, and what
the VMM holds beside its guest."""

import os
import re
import select
import statistics
import subprocess
import time
from pathlib import Path

from quiet import forget_files, say, write_over_old_guests
from vmm import INITRD, KERNEL, TIMEOUT, Machine

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


# What is booted in turn: from files in the host's page cache, and from files that are not. These rounds come last: to
# forget files is to forget those of the other machines as well.
CACHED = ["berth", "qemu", "jailed", "qemu_minimal"]
NOT_CACHED = ["berth", "qemu"]


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


def in_turn(kinds, rounds, cached):
    """The wall clock and the guest's own of each boot, in milliseconds, by kind."""
    measured = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind in kinds:
            wall, clock = boot(kind, cached)
            measured[kind].append((wall, clock))
            files = "cached" if cached else "not cached"
            say(f"cold boot {number + 1} of {rounds}, {kind}, files {files}: {wall:.0f} ms, {clock} ms by the guest's clock")
    return {kind: [statistics.median(column) for column in zip(*boots)] for kind, boots in measured.items()}


def rows(rounds):
    for kind in CACHED:
        say(f"a first boot, {kind}, which brings its files into the page cache: {boot(kind)[0]:.0f} ms, not counted")
    cached = in_turn(CACHED, rounds, cached=True)
    not_cached = in_turn(NOT_CACHED, rounds, cached=False)
    cold, clock = cached["berth"]
    qemu, qemu_clock = cached["qemu"]
    jailed, minimal = cached["jailed"][0], cached["qemu_minimal"][0]
    uncached, uncached_qemu = not_cached["berth"][0], not_cached["qemu"][0]
    total, user = exits_per_boot(3)
    resident, anonymous = resident_outside_guest()
    return [
        ("cold_boot_vs_qemu", cold / qemu, "ratio"),
        ("cold_boot_vs_qemu_minimal", cold / minimal, "ratio"),
        ("jailed_boot_vs_qemu", jailed / qemu, "ratio"),
        ("cold_boot_ms", cold, "ms"),
        ("jailed_boot_ms", jailed, "ms"),
        ("cold_boot_qemu_ms", qemu, "ms"),
        ("cold_boot_qemu_minimal_ms", minimal, "ms"),
        ("uncached_boot_vs_qemu", uncached / uncached_qemu, "ratio"),
        ("uncached_boot_ms", uncached, "ms"),
        ("uncached_boot_qemu_ms", uncached_qemu, "ms"),
        ("guest_uptime_at_init_ms", clock, "ms"),
        ("guest_uptime_at_init_qemu_ms", qemu_clock, "ms"),
        ("kvm_exits_per_boot", total, "exits"),
        ("kvm_exits_to_user_per_boot", user, "exits"),
        ("vmm_rss_outside_guest_mib", resident, "MiB"),
        ("vmm_rss_anonymous_mib", anonymous, "MiB"),
    ]
