"""Machines that are written down and go on elsewhere, with a real kernel in them: nothing stands still, runs backwards or
comes twice."""

import os
import select
import time
import zlib

import pytest
from initrd import initrd
from vmm import Machine, Snapshot

CMDLINE = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off berth.guest=1"
PATIENCE = 120
CLONES = 200
ROUNDS = 20

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
