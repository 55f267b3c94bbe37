"""A guest that does to its devices what no driver does (tests/hostile): its own machine may end of it, and nothing else."""

import collections
import fcntl
import itertools
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import product
import pytest
from initrd import initrd
from vmm import Machine

MEMORY_MIB = 64
DISK_MIB = 20
PATIENCE = 120
# What a machine may hold at its worst moment, its guest's memory included, of which the attacks touch a part.
MOST_RESIDENT_MIB = MEMORY_MIB
# Files that a machine has open: what it was handed, what its devices need. Connections of the guest are over by then.
MOST_FILES = 64
# Processor time in a second in which the guest does nothing.
MOST_IDLE_SECONDS = 0.25

# Two processors that write to registers as fast as they can bring the emulated lab's own kernel down (lab/README.md).
GENTLY = " without=two-drivers" if os.environ.get("BERTH_LAB") == "nested" else ""

NEIGHBOUR = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off berth.guest=1"
TICKS = """\
while :; do
    read uptime rest < /proc/uptime
    echo "tick $uptime"
    $b usleep 200000
done
"""


class Lines:
    """The lines of a machine's serial port."""

    def __init__(self, machine):
        self._output = machine.output
        self._rest = b""

    def next(self):
        """The next line, or none after the last one."""
        while b"\n" not in self._rest:
            assert select.select([self._output], [], [], PATIENCE)[0], f"the guest is silent after {self._rest!r}"
            piece = os.read(self._output, 1 << 16)
            if not piece:
                return None
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode(errors="replace")

    def skip(self):
        """Forgets what has been said so far."""
        while select.select([self._output], [], [], 0)[0] and os.read(self._output, 1 << 16):
            pass
        self._rest = b""


class Neighbour:
    """An ordinary guest beside the hostile ones."""

    def __init__(self):
        self.machine = Machine(NEIGHBOUR, initrd=initrd("neighbour", TICKS), serial=True, jailed=True)
        self._lines = Lines(self.machine)

    def check_that_it_goes_on(self):
        """Its clock moves, seen twice from now on."""
        self._lines.skip()
        seen = []
        while len(seen) < 2:
            line = self._lines.next()
            assert line is not None, "the neighbour's machine has ended"
            words = line.split()
            # The first line may have begun before.
            if len(words) == 2 and words[0] == "tick":
                seen.append(float(words[1]))
        assert seen[0] < seen[1]
        assert self.machine.process.poll() is None


@pytest.fixture(scope="module")
def neighbour():
    neighbour = Neighbour()
    neighbour.check_that_it_goes_on()
    yield neighbour
    neighbour.machine.close()


def tap(name):
    """A tap that is up, as a machine takes it."""
    TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    subprocess.run(["ip", "link", "set", name, "up"], check=True, timeout=60)
    return descriptor


def send_frames(name, stop):
    """Frames to the guest, short and long ones in turn, until told to stop."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as frames:
        frames.bind((name, 0))
        for count in iter(int, 1):
            if stop.wait(0.005):
                return
            try:
                frames.send(b"\xff" * 12 + b"\x88\xb5" + bytes((count % 7) * 200))
            except OSError:
                # The guest takes none at the moment.
                pass


def disk():
    descriptor = os.memfd_create("disk")
    os.ftruncate(descriptor, DISK_MIB << 20)
    return descriptor


class Hostile:
    """A machine with one device of each kind at least, whose guest attacks some of them."""

    def __init__(self, attack, engine):
        self._descriptors = [disk(), disk(), tap("hostile0")]
        writable, read_only, net = self._descriptors
        self.machine = Machine(
            f"attack={attack}{GENTLY}",
            kernel=product.HOSTILE,
            initrd=None,
            memory_mib=MEMORY_MIB,
            vcpus=2,
            serial=True,
            vsock=True,
            balloon=True,
            drives=[(writable, False), (read_only, True)],
            nets=[net],
            jailed=True,
            engine=engine,
        )
        self.lines = Lines(self.machine)
        self._stop = threading.Event()
        self._frames = threading.Thread(target=send_frames, args=("hostile0", self._stop))
        self._frames.start()

    def stop_frames(self):
        self._stop.set()
        self._frames.join()

    def close(self):
        self.stop_frames()
        self.machine.close()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def wait_for_its_end(self):
        """Its exit status and report: it must have written one, so it ended by its own will."""
        status = self.machine.process.wait(timeout=PATIENCE)
        assert status in (0, 1), f"the machine ended with {status}"
        return status, self.machine.report()

    def status(self, field):
        status = Path(f"/proc/{self.machine.process.pid}/status").read_text()
        return next(line.split(":")[1].split()[0] for line in status.splitlines() if line.startswith(field + ":"))

    def cpu_seconds(self):
        """Processor time so far, of the vCPUs and of all other threads."""
        spent = {True: 0, False: 0}
        for stat in Path(f"/proc/{self.machine.process.pid}/task").glob("*/stat"):
            name, fields = stat.read_text().split("(", 1)[1].rsplit(")", 1)
            user, system = (int(ticks) for ticks in fields.split()[11:13])
            spent[name.startswith("vcpu")] += (user + system) / os.sysconf("SC_CLK_TCK")
        return spent[True], spent[False]

    def check_that_it_rests(self):
        self.stop_frames()
        before = sum(self.cpu_seconds())
        time.sleep(1)
        spent = sum(self.cpu_seconds()) - before
        assert spent < MOST_IDLE_SECONDS, f"it works {spent:.2f} s in a second for a guest that does nothing"


@pytest.fixture
def hostile():
    machines = []

    def start(attack, engine="auto"):
        machines.append(Hostile(attack, engine))
        return machines[-1]

    yield start
    for machine in machines:
        machine.close()


def talk(machine):
    """Takes the guest's connections, and writes to each more than it can hold, until the machine ends."""
    kept = collections.deque(maxlen=64)
    for connection in machine.connections():
        connection.setblocking(False)
        try:
            connection.send(bytes(1 << 18))
        except OSError:
            # The guest has ended it already.
            pass
        kept.append(connection)


class Curious:
    """Asks the guest again and again for its statistics, and wants more and less of its memory."""

    def __init__(self, machine):
        self._machine = machine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers = []
        self._thread.start()

    def _run(self):
        with self._machine.client() as client:
            for count in itertools.count():
                if self._stop.wait(0.02):
                    return
                target = {"command": "set_balloon", "target_mib": 0 if count % 2 else MEMORY_MIB}
                for request in (target, {"command": "balloon", "wait_ms": 20}):
                    client.send(json.dumps({"id": count, **request}).encode())
                    self.answers.append(json.loads(client.recv(1 << 16)))

    def stop(self):
        self._stop.set()
        self._thread.join()

    def check_that_it_was_answered(self):
        reports = [answer for answer in self.answers if answer["outcome"] == "balloon"]
        assert reports and len(self.answers) == 2 * len(reports)
        # A machine as small as this keeps all that it has.
        assert {report["target_bytes"] for report in reports} == {0}
        assert {answer["outcome"] for answer in self.answers} == {"balloon", "done", "error"}
        assert max(report["actual_bytes"] for report in reports) <= MEMORY_MIB << 20
        assert any(report["statistics"] for report in reports), "the guest was not asked"


@pytest.mark.parametrize(
    "kind",
    [
        "block",
        "block by io_uring",
        "net",
        "vsock",
        "vsock with a talkative host",
        "entropy",
        "balloon",
        "balloon with a curious host",
    ],
)
def test_a_device_withstands_its_driver(hostile, neighbour, kind):
    kind, _, how = kind.partition(" ")
    talkative, curious = "talkative" in how, None
    guest = hostile(kind, "io_uring" if how == "by io_uring" else "in_order")
    if talkative:
        threading.Thread(target=talk, args=(guest.machine,), daemon=True).start()
    elif "curious" in how:
        curious = Curious(guest.machine)
    done, attack = [], None
    while not (line := guest.lines.next() or "the end").startswith("idle"):
        word, _, rest = line.partition(" ")
        if word == "attack":
            attack = rest
        elif word == "done":
            done.append(rest)
        else:
            if curious:
                curious.stop()
            end = guest.wait_for_its_end() if line == "the end" else "not there yet"
            pytest.fail(f"{kind}, attack {attack}: the guest said {line!r}, the end of its machine is {end}")
    if curious:
        curious.stop()
        curious.check_that_it_was_answered()
    assert line == f"idle after {len(done)} attacks" and len(done) > 20

    assert guest.machine.request("info")["memory_mib"] == MEMORY_MIB
    metrics = guest.machine.request("metrics")
    # The attacks were felt.
    assert metrics["device_errors"] > 20
    assert (metrics["vsock_rx_bytes"] > 0) == talkative
    if os.environ.get("BERTH_LAB") == "nested":
        assert metrics["block_io_uring_drives"] == (2 if how == "by io_uring" else 0)
    assert int(guest.status("VmHWM")) < MOST_RESIDENT_MIB << 10
    assert len(os.listdir(f"/proc/{guest.machine.process.pid}/fd")) < MOST_FILES
    # What the guest has the devices do costs the guest more.
    vcpus, others = guest.cpu_seconds()
    assert others < vcpus
    guest.check_that_it_rests()
    neighbour.check_that_it_goes_on()
    guest.machine.request("stop")
    assert guest.wait_for_its_end() == (0, {"reason": "stopped", "detail": None})


def test_devices_with_broken_queues_rest(hostile, neighbour):
    guest = hostile("leave-all-broken")
    # Two drives, network, vsock, entropy, balloon.
    assert guest.lines.next() == "idle with 6 broken devices"
    guest.check_that_it_rests()
    neighbour.check_that_it_goes_on()
    guest.machine.request("stop")
    assert guest.wait_for_its_end() == (0, {"reason": "stopped", "detail": None})


@pytest.mark.parametrize(
    "way, status, reason",
    [
        ("power-off", 0, "power_off"),
        ("reset", 0, "reset"),
        ("triple-fault", 0, "triple_fault"),
        ("run-nowhere", 1, "error"),
        ("unemulated", 1, "error"),
    ],
)
def test_a_guest_ends_its_own_machine_only(hostile, neighbour, way, status, reason):
    guest = hostile(way)
    ended, report = guest.wait_for_its_end()
    assert (ended, report["reason"]) == (status, reason)
    assert bool(report["detail"]) == (reason == "error")
    neighbour.check_that_it_goes_on()
