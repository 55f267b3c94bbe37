"""Machines that are written down and go on elsewhere, with a real kernel in them: nothing stands still, runs backwards or
comes twice."""

import os
import re
import select
import time
import zlib
from pathlib import Path

import pytest
from husk import Husk
from initrd import initrd
from vmm import JAIL, Machine, Snapshot

CMDLINE = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off berth.guest=1"
PATIENCE = 120
CLONES = 200
ROUNDS = 20
# How long a husk waits, and then its guest's time is compared.
WAITING, COMPARED = 30, 10

# What time it is, and a number that nobody else may ever get.
TELLS = """\
while :; do
    read uuid < /proc/sys/kernel/random/uuid
    read uptime rest < /proc/uptime
    echo "tick $uptime $uuid"
    $b usleep 20000
done
"""

# On each processor something that never rests, and something that sleeps and tells of it.
BUSY = """\
for cpu in 0 1 2 3; do
    $b taskset -c $cpu $b sh -c 'while :; do :; done' &
    $b taskset -c $cpu $b sh -c 'while :; do read up rest < /proc/uptime; echo "cpu'$cpu' $up"; /bin/busybox usleep 50000; done' &
done
while :; do $b sleep 1000; done
"""


class Lines:
    """The lines of a machine's serial port, whole ones only."""

    def __init__(self, machine):
        self._output = machine.output
        self._rest = b""

    def next(self):
        """The next line's words. A machine that goes on may have been cut short in the middle of its first one."""
        while b"\n" not in self._rest:
            ready = select.select([self._output], [], [], PATIENCE)[0]
            assert ready, f"the guest is silent after {self._rest!r}"
            piece = os.read(self._output, 4096)
            assert piece, f"the machine ended after {self._rest!r}"
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode(errors="replace").split()

    def tick(self):
        while True:
            words = self.next()
            if len(words) == 3 and words[0] == "tick" and len(words[2]) == 36:
                return float(words[1]), words[2]

    def of_each_cpu(self, times, count):
        """Reads until each processor has told its time `count` times; it never runs backwards."""
        told = [0] * len(times)
        deadline = time.monotonic() + PATIENCE
        while min(told) < count:
            words = self.next()
            assert time.monotonic() < deadline, f"of the processors some are silent: {told}"
            if len(words) != 2 or not words[0].startswith("cpu"):
                continue
            cpu, now = int(words[0][3:]), float(words[1])
            assert now >= times[cpu], f"time ran backwards on cpu {cpu}, from {times[cpu]} to {now}"
            times[cpu] = now
            told[cpu] += 1


def checksum(memory):
    value, offset = 0, 0
    while piece := os.pread(memory, 1 << 20, offset):
        value, offset = zlib.crc32(piece, value), offset + len(piece)
    return value


@pytest.fixture
def machine():
    """Starts machines, and ends them with the test."""
    machines = []

    def start(*args, **kwargs):
        machines.append(Machine(*args, **kwargs))
        return machines[-1]

    yield start
    for machine in machines:
        machine.close()


@pytest.fixture
def husk():
    """Starts husks, and ends them with the test."""
    husks = []

    def start(*args, **kwargs):
        husks.append(Husk(*args, **kwargs))
        return husks[-1]

    yield start
    for husk in husks:
        husk.close()


@pytest.fixture
def told(machine, snapshot):
    """A snapshot of a guest that tells its time, and the last time that it told."""
    files = snapshot(128)
    first = machine(CMDLINE, snapshot=files, initrd=initrd("tells", TELLS), serial=True, jailed=True)
    lines = Lines(first)
    for _ in range(3):
        last, _ = lines.tick()
    first.take_snapshot()
    return files, last


@pytest.fixture
def snapshot():
    snapshots = []

    def make(memory_mib):
        snapshots.append(Snapshot(memory_mib))
        return snapshots[-1]

    yield make
    for files in snapshots:
        files.close()


def test_clones_of_one_snapshot_share_nothing_that_must_be_their_own(machine, snapshot):
    files = snapshot(128)
    first = machine(CMDLINE, snapshot=files, initrd=initrd("tells", TELLS), serial=True, jailed=True)
    lines = Lines(first)
    seen, last = set(), 0.0
    for _ in range(5):
        last, uuid = lines.tick()
        seen.add(uuid)
    first.take_snapshot()
    written = checksum(files.memory)

    for clone in range(CLONES):
        running = machine(restore=files, serial=True, jailed=True)
        lines = Lines(running)
        before = last
        for tick in range(2):
            now, uuid = lines.tick()
            assert now >= before, f"clone {clone}: time ran backwards, from {before} to {now}"
            assert uuid not in seen, f"clone {clone}, tick {tick}: {uuid} came before"
            seen.add(uuid)
            before = now
        # It goes on where the snapshot was taken, however long ago that is.
        assert before < last + 30
        running.process.kill()
        running.process.wait()
    # What clones write stays theirs.
    assert checksum(files.memory) == written


def test_four_busy_processors_go_on_twenty_times(machine, snapshot):
    files = snapshot(256)
    running = machine(CMDLINE, snapshot=files, initrd=initrd("busy", BUSY), serial=True, vcpus=4)
    times = [0.0] * 4
    Lines(running).of_each_cpu(times, 2)
    for _ in range(ROUNDS):
        running.take_snapshot()
        running = machine(restore=files, snapshot=files, serial=True, vcpus=4)
        Lines(running).of_each_cpu(times, 2)


def test_a_paused_machine_stands_still_and_its_clock_does_not_run_backwards(machine):
    running = machine(CMDLINE, initrd=initrd("tells", TELLS), serial=True)
    lines = Lines(running)
    for _ in range(3):
        running.request("pause")
        time.sleep(0.1)
        while select.select([running.output], [], [], 0)[0]:
            os.read(running.output, 1 << 16)
        assert not select.select([running.output], [], [], 1)[0], "a paused machine speaks"
        running.request("resume")
        lines = Lines(running)
        before = 0.0
        for _ in range(3):
            now, _ = lines.tick()
            assert now >= before
            before = now


def test_no_time_passes_in_a_husk_that_waits(husk, told):
    files, last = told
    waiting = husk(files)
    time.sleep(WAITING)
    waiting.go_on()
    lines = Lines(waiting)
    first, _ = lines.tick()
    passed = time.monotonic() - waiting.started
    # It may have told one more time before it was written down.
    assert last <= first < last + passed + 1
    now, begun = first, time.monotonic()
    while time.monotonic() < begun + COMPARED:
        before, (now, _) = now, lines.tick()
        assert now >= before, f"time ran backwards, from {before} to {now}"
    assert abs((now - first) - (time.monotonic() - begun)) < COMPARED / 10
    assert waiting.said() == ("", "")


def test_a_husk_that_nobody_wants_ends_quietly(husk, told):
    files, _ = told
    waiting = husk(files)
    waiting.parent.close()
    assert waiting.process.wait(timeout=PATIENCE) == 0
    assert waiting.said() == ("", "")


def test_a_husk_is_in_its_jail_and_shuts_it_when_it_goes_on(husk, told):
    files, _ = told
    waiting = husk(files)
    seen = Path(f"/proc/{waiting.process.pid}")

    def status(name):
        return {re.search(rf"{name}:\s+(.*)", (task / "status").read_text())[1] for task in (seen / "task").iterdir()}

    users = {"\t".join([str(JAIL["uid"])] * 4)}
    for _ in range(2):
        assert status("Uid") == users and status("NoNewPrivs") == {"1"} and status("CapEff") == {"0" * 16}
        assert os.listdir(seen / "root") == []
        if status("Seccomp") == {"0"}:
            waiting.go_on()
            Lines(waiting).tick()
    assert status("Seccomp") == {"2"}
    # Of the files that it has none is larger than a state may be.
    assert re.search(r"Max file size\s+(\d+)\s+(\d+)", (seen / "limits").read_text()).groups() == ("4194304",) * 2


def test_what_a_husk_cannot_be_it_refuses_and_says_why(husk, told):
    files, _ = told
    pipe, _writer = os.pipe()
    drive = {"id": "disk0", "fd": 4, "read_only": True}
    refused = {
        "unknown field `kvm_fd`": ({"kvm_fd": 4}, [pipe]),
        "descriptor 4 of 4 is named": ({"drives": [drive]}, []),
        "descriptor 1 of 4 is named": ({"drives": [{**drive, "fd": 1}]}, []),
        "1 of the descriptors are not named": ({}, [pipe]),
        "drive id \"\" is not": ({"drives": [{**drive, "id": ""}]}, [pipe]),
        "the drive \"disk0\" is descriptor": ({"drives": [drive]}, [pipe]),
        "control_fd is descriptor": ({"control_fd": 4, "drives": [{**drive, "fd": 1}]}, [pipe]),
        "the snapshot's machine has 1 virtio devices, and this one 2": ({"balloon": True}, []),
    }
    for why, (changes, more) in refused.items():
        waiting = husk(files)
        waiting.go_on(more, **changes)
        assert waiting.process.wait(timeout=PATIENCE) == 1, why
        assert why in "".join(waiting.said()), waiting.said()
    # What fails behind the hand-over is in the report as well.
    assert why in waiting.report()["detail"]
    os.close(pipe)
    os.close(_writer)
