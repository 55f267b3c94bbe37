"""Of what a guest's memory is made: how long a machine takes to boot on it, what it holds of the host, and how fast its guest
touches it for the first time."""

import os
import select
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

from boots import IDLE
from initrd import initrd
from quiet import say, write_over_old_guests
from vmm import TIMEOUT, Machine, Snapshot

MEMORY_MIB = 256
TOUCHED_MIB = 128
SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
CMDLINE = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off berth.guest=1"
# By its own clock, in hundredths of a second: a file in memory, of new pages.
TOUCHES = f"""\
$b mkdir /t
$b mount -t tmpfs -o size=95% t /t
read before rest < /proc/uptime
$b dd if=/dev/zero of=/t/x bs=1M count={TOUCHED_MIB} 2>/dev/null
read after rest < /proc/uptime
echo "touched $before $after"
$b sleep 1000
"""


@contextmanager
def shmem_advised():
    """Memfds may have huge pages as well, if they are asked for, as on a host whose operator wants it."""
    before = SHMEM_ENABLED.read_text().split("[")[1].split("]")[0]
    SHMEM_ENABLED.write_text("advise")
    try:
        yield
    finally:
        SHMEM_ENABLED.write_text(before)


@contextmanager
def machine(kind, huge_pages, cmdline, **options):
    write_over_old_guests()
    files = Snapshot(MEMORY_MIB) if kind == "memfd" else None
    options |= {"jailed": True, "balloon": True, "huge_pages": huge_pages, "snapshot": files, "memory_mib": MEMORY_MIB}
    machine = Machine(cmdline, **options)
    try:
        yield machine
    finally:
        machine.close()
        if files:
            files.close()


def resident(machine):
    """MiB that the process holds, and that are huge pages."""
    fields = {}
    for line in Path(f"/proc/{machine.process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kib, _ = line.split()
        fields[name] = int(kib) / 1024
    return fields["Rss:"], fields["AnonHugePages:"] + fields["ShmemPmdMapped:"]


def touch(kind, huge_pages):
    """Seconds by the guest's own clock."""
    with machine(kind, huge_pages, CMDLINE, serial=True, initrd=initrd("bench-touches", TOUCHES)) as guest:
        text = b""
        while b"\n" not in text:
            if not select.select([guest.output], [], [], TIMEOUT)[0]:
                raise RuntimeError(f"the guest is silent after {text!r}")
            text += os.read(guest.output, 4096)
        _, before, after = text.split()
        return float(after) - float(before)


def rows(rounds):
    measured = {}
    with shmem_advised():
        for number in range(rounds):
            for kind in ("anonymous", "memfd"):
                for huge_pages in ("never", "always"):
                    with machine(kind, huge_pages, IDLE, vsock=True) as guest:
                        boot = guest.wait_for_connection()
                        time.sleep(1)
                        held, huge = resident(guest)
                    touched = touch(kind, huge_pages)
                    name = f"memory_{kind}_{'huge' if huge_pages == 'always' else 'small'}"
                    measured.setdefault(name, []).append((boot, held, huge, touched * 1000))
                    say(
                        f"round {number + 1} of {rounds}, {name}: boot {boot:.0f} ms, {held:.1f} MiB held, {huge:.0f} of them huge,"
                        f" {TOUCHED_MIB} MiB touched in {touched * 1000:.0f} ms"
                    )
    rows = []
    for name, values in measured.items():
        boots, held, huge, touched = (statistics.median(column) for column in zip(*values))
        rows += [(f"{name}_boot_ms", boots, "ms"), (f"{name}_resident_mib", held, "MiB")]
        rows += [(f"{name}_resident_huge_mib", huge, "MiB"), (f"{name}_touch_ms", touched, "ms")]
    return rows
