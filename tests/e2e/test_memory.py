"""Memory that a guest uses no more is the host's again."""

import os
import select
import time

import pytest
from initrd import initrd
from vmm import Machine, Snapshot

CMDLINE = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off berth.guest=1"
MEMORY_MIB = 256
USED_MIB = 96
# Of what the guest had: its kernel keeps some for itself, and reports nothing smaller than a huge page.
RETURNED_MIB = 64
PATIENCE = 120

USES_AND_FREES = f"""\
$b mkdir /t
$b mount -t tmpfs t /t
while :; do
    $b dd if=/dev/zero of=/t/x bs=1M count={USED_MIB} 2>/dev/null
    echo full
    $b sleep 3
    $b rm /t/x
    echo free
    $b sleep 15
done
"""


def wait_for(machine, word):
    text = b""
    while word not in text.split():
        assert select.select([machine.output], [], [], PATIENCE)[0], f"the guest is silent after {text!r}"
        piece = os.read(machine.output, 4096)
        assert piece, f"the machine ended after {text!r}"
        text += piece


def resident_mib(machine):
    with open(f"/proc/{machine.process.pid}/smaps_rollup") as rollup:
        (kib,) = (line.split()[1] for line in rollup if line.startswith("Rss:"))
    return int(kib) / 1024


def check_that_it_comes_back(machine, held_mib):
    """`held_mib` says how much the host holds for the machine."""
    wait_for(machine, b"full")
    full = held_mib()
    assert full > USED_MIB
    wait_for(machine, b"free")
    deadline = time.monotonic() + PATIENCE
    while held_mib() > full - RETURNED_MIB:
        assert time.monotonic() < deadline, f"of {full:.0f} MiB the host still holds {held_mib():.0f}"
        time.sleep(0.2)
    assert machine.request("metrics")["balloon_released_bytes"] >= RETURNED_MIB << 20


@pytest.fixture
def script():
    return initrd("uses-and-frees", USES_AND_FREES)


def test_a_guest_that_frees_memory_gives_it_back(script):
    machine = Machine(CMDLINE, initrd=script, serial=True, balloon=True, jailed=True, memory_mib=MEMORY_MIB)
    try:
        for _ in range(2):
            check_that_it_comes_back(machine, lambda: resident_mib(machine))
    finally:
        machine.close()


def test_a_snapshot_is_as_large_as_what_is_used_and_its_clones_give_back_theirs(script):
    files = Snapshot(MEMORY_MIB)
    options = {"serial": True, "balloon": True, "jailed": True}
    machines = [Machine(CMDLINE, initrd=script, snapshot=files, **options)]
    try:
        check_that_it_comes_back(machines[0], lambda: os.fstat(files.memory).st_blocks / 2048)
        machines[0].take_snapshot()
        machines.append(Machine(restore=files, **options))
        for _ in range(2):
            check_that_it_comes_back(machines[1], lambda: resident_mib(machines[1]))
    finally:
        for machine in machines:
            machine.close()
        files.close()
