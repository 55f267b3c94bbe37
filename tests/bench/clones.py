"""Machines that are written down, and their clones: how long each takes, and what idle clones share."""

import re
import statistics
import time
from pathlib import Path

from boots import IDLE, MEMORY_MIB
from quiet import say, summary, write_over_old_guests
from vmm import Machine, Snapshot

# Memory of the machines that are written down, in MiB.
SNAPSHOTS = [128, MEMORY_MIB, 2048]
# Seconds that each is left alone before, as the daemon does with a template.
SETTLING = 4


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
            time.sleep(SETTLING)
            taken[memory_mib] = files, machine.take_snapshot()
        finally:
            machine.close()
        trial = Machine(restore=files, page_by_page=True, vsock=True, jailed=True)
        try:
            trial.wait_for_connection()
            files.learn(trial)
        finally:
            trial.close()
        say(f"snapshot of an idle machine of {memory_mib} MiB: {taken[memory_mib][1]:.0f} ms")
    return taken


def restore(files, jailed=True):
    """Milliseconds from the start of the process to the restored guest's first words to the host."""
    machine = Machine(restore=files, vsock=True, jailed=jailed)
    try:
        return machine.wait_for_connection()
    finally:
        machine.close()


def resident(pid, what):
    """MiB of a process by the kernel's own account (smaps_rollup): `Pss`, `Rss`, `Anonymous`."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(rf"(?m)^{what}:\s+(\d+) kB", rollup)[1]) / 1024


def shared_among(files, count):
    """Proportional share of memory of each of `count` idle clones of one snapshot, in MiB."""
    machines = [Machine(restore=files, vsock=True, jailed=True) for _ in range(count)]
    try:
        for machine in machines:
            machine.wait_for_connection()
        time.sleep(5)
        return statistics.mean(resident(machine.process.pid, "Pss") for machine in machines)
    finally:
        for machine in machines:
            machine.close()


def rows(rounds):
    taken = snapshots()
    restored = {memory_mib: [] for memory_mib in SNAPSHOTS}
    unjailed = []
    for number in range(rounds):
        for memory_mib, (files, _) in taken.items():
            restored[memory_mib].append(restore(files))
            say(f"restore {number + 1} of {rounds}, {memory_mib} MiB: {restored[memory_mib][-1]:.0f} ms")
        unjailed.append(restore(taken[MEMORY_MIB][0], jailed=False))
        say(f"restore {number + 1} of {rounds}, {MEMORY_MIB} MiB, without a jail: {unjailed[-1]:.0f} ms")
    idle = taken[MEMORY_MIB][0]
    alone, of_ten = shared_among(idle, 1), shared_among(idle, 10)
    medians = {memory_mib: statistics.median(times) for memory_mib, times in restored.items()}
    return [
        *(row for memory_mib, times in restored.items() for row in summary(f"restore_{memory_mib}_mib", times)),
        *summary(f"unjailed_restore_{MEMORY_MIB}_mib", unjailed),
        ("restore_2048_vs_128_mib", medians[2048] / medians[128], "ratio"),
        *((f"snapshot_{memory_mib}_mib_ms", took, "ms") for memory_mib, (_, took) in taken.items()),
        ("clone_pss_mib", alone, "MiB"),
        ("clone_pss_of_ten_mib", of_ten, "MiB"),
    ]
