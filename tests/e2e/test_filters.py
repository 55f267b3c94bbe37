"""Each rule of the system call filters (vmm/src/jail/filters.json) is needed, or says why it stays.

Machines that do all that machines do run with filters that note which of their rules let a call through. Since a filter
kills at anything else, what was noted is needed, which is tried as well: a few rules, chosen at random, are left out, and
the machine dies of it. `BERTH_TEST_SEED` chooses the same ones again."""

import functools
import json
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

import product
import pytest
import test_hostile as hostile
from initrd import initrd
from vmm import INITRD, Machine, Snapshot

RULES = product.ROOT / "vmm/src/jail/filters.json"
# So many of those that were noted, and the one that is too frequent to be: a vCPU runs.
LEFT_OUT = 3
RUNS = "vcpu:ioctl:0"
PATIENCE = 180
CMDLINE = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off berth.guest=1"
# All of the devices, over and over, and a last line that does not end.
WORKS = """\
$b ip addr add 192.0.2.2/24 dev eth0
$b ip link set eth0 up
$b blkdiscard /dev/vda
$b dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null
while :; do
    $b dd if=/dev/zero of=/dev/null bs=32M count=1 2>/dev/null
    echo 1 > /proc/sys/vm/drop_caches
    $b dd if=/dev/vda of=/dev/null bs=4k count=4 2>/dev/null
    $b dd if=/dev/hwrng of=/dev/null bs=64 count=4 2>/dev/null
    $b ping -c 1 -W 1 192.0.2.1 >/dev/null 2>&1
    echo tick
    echo -n "no end: "
done
"""


@dataclass(frozen=True)
class Rule:
    thread: str
    call: str
    # Among those of its call.
    index: int
    comment: str
    # What it says of itself: "unused", "at_times", or nothing; and why.
    mark: str | None
    reason: str | None

    def __str__(self):
        return f"{self.thread}:{self.call}:{self.index}"


def rules():
    """All of them, in the order of the notes."""
    lists = json.loads(RULES.read_text())
    every, found = lists.pop("every"), []
    for thread, own in sorted(lists.items()):
        calls = []
        for rule in every + own:
            marked = None, None
            for mark in ["unused", "at_times"]:
                reasons = rule.get(mark, {})
                # A reason alone is one for every thread that has the rule.
                for threads, reason in (reasons if isinstance(reasons, dict) else {thread: reasons}).items():
                    if thread in threads.split():
                        marked = mark, reason
            call = rule["syscall"]
            comments = [rule["comment"], *(arg.get("comment", "") for arg in rule.get("args", []))]
            found.append(Rule(thread, call, calls.count(call), ", ".join(comments), *marked))
            calls.append(call)
    return found


class Machines:
    """The machines of one exercise, each with its filters on trial."""

    def __init__(self, without=None):
        self._without = without
        self._notes = []
        self._opened = []
        self._started = []

    def start(self, *args, **kwargs):
        if self._without:
            probing = ["--without", str(self._without)]
        else:
            self._notes.append(os.memfd_create("notes"))
            os.ftruncate(self._notes[-1], len(rules()))
            probing = ["--note", self._notes[-1]]
        self._started.append(Machine(*args, jailed=True, probing=probing, **kwargs))
        return self._started[-1]

    def opened(self, descriptor):
        self._opened.append(descriptor)
        return descriptor

    def used(self):
        """The rules that were noted."""
        notes = [os.pread(file, len(rules()), 0) for file in self._notes]
        return {rule for rule, *noted in zip(rules(), *notes) if any(noted)}

    def killed_by_filter(self):
        """Whether the last one was, whose end an exercise may have seen before there is a status of it."""
        return self._started[-1].process.wait(timeout=PATIENCE) == -signal.SIGSYS

    def close(self):
        for machine in self._started:
            machine.close()
        for descriptor in self._notes + self._opened:
            os.close(descriptor)


def ended(machine, status=0):
    """Its own word of how it ended."""
    assert machine.process.wait(timeout=PATIENCE) == status
    return machine.report()["reason"]


def wait_for_metrics(machine, reached):
    deadline = time.monotonic() + PATIENCE
    while not reached(metrics := machine.request("metrics")):
        assert time.monotonic() < deadline, metrics
        time.sleep(0.1)


def tick(lines):
    """Once, from now on."""
    lines.skip()
    while not (line := lines.next() or "the end").rstrip().endswith("tick"):
        assert line != "the end", "the guest has ended"


def limit_everything(machine, limits):
    for device in [{"drive": "disk0"}, {"net_rx": 0}, {"net_tx": 0}, "entropy", "serial"]:
        machine.request("set_limits", device=device, limits=limits)


def linux_and_its_clone(machines):
    """A guest that uses all of its devices, with limits and without, is paused, written down, and goes on as a clone, of huge
    pages and of others, with its drive's requests carried out the one way and the other."""
    files = Snapshot(128)
    machines.opened(files.memory), machines.opened(files.state)
    drives, nets = [(machines.opened(hostile.disk()), False)], [machines.opened(hostile.tap("filters0"))]
    subprocess.run(["ip", "addr", "add", "192.0.2.1/24", "dev", "filters0"], check=True, timeout=60)
    devices = {"drives": drives, "nets": nets, "serial": True, "balloon": True, "vsock": True}
    first = machines.start(CMDLINE, initrd=initrd("works", WORKS), snapshot=files, **devices)
    lines = hostile.Lines(first)
    tick(lines)
    assert first.request("info")["memory_mib"] == 128
    limit_everything(first, {"ops": {"per_second": 1, "burst": 1}, "bytes": None})
    throttled = ["block_throttled", "net_tx_throttled", "entropy_throttled"]
    wait_for_metrics(first, lambda metrics: all(metrics[name] for name in throttled))
    limit_everything(first, None)
    tick(lines)
    first.request("pause")
    first.request("resume")
    tick(lines)
    wait_for_metrics(first, lambda metrics: metrics["balloon_released_bytes"])
    # The host asks for a connection to where nobody listens.
    refused = first.ask("vsock_connect", port=1)
    assert refused["outcome"] == "error", refused
    first.take_snapshot()

    for how in [{"huge_pages": "always", "engine": "io_uring"}, {"huge_pages": "never", "engine": "in_order"}]:
        clone = machines.start(restore=files, **devices, **how)
        lines = hostile.Lines(clone)
        tick(lines)
        wait_for_metrics(clone, lambda metrics: metrics["balloon_released_bytes"])
        clone.request("nmi")
        tick(lines)
        clone.request("stop")
        assert ended(clone) == "stopped"


def init_and_its_host(machines):
    """The guest's own init connects to the host, which answers, and leaves."""
    machine = machines.start(CMDLINE, initrd=INITRD, vsock=True)
    connections = machine.connections()
    connection = next(connections)
    connection.settimeout(PATIENCE)
    assert connection.recv(1 << 16)
    connection.send(b"nothing that it understands")
    while connection.recv(1 << 16):
        pass
    connection.close()
    connections.close()
    # It comes again.
    machine.wait_for_connection()
    machine.request("stop")
    assert ended(machine) == "stopped"


def attacked(attack, machines, snapshot=False, talkative=False):
    """A device that is put to the limits of what it does."""
    kwargs = {"memory_mib": hostile.MEMORY_MIB}
    if snapshot:
        kwargs["snapshot"] = files = Snapshot(hostile.MEMORY_MIB)
        machines.opened(files.memory), machines.opened(files.state)
    machine = machines.start(
        f"attack={attack}",
        kernel=product.HOSTILE,
        initrd=None,
        vcpus=2,
        serial=True,
        vsock=True,
        balloon=True,
        drives=[(machines.opened(hostile.disk()), False)],
        **kwargs,
    )
    if talkative:
        threading.Thread(target=hostile.talk, args=(machine,), daemon=True).start()
    lines = hostile.Lines(machine)
    while not (line := lines.next() or "the end").startswith("idle"):
        assert line.split()[0] in ["attack", "done"], line
    machine.request("stop")
    assert ended(machine) == "stopped"


def guest_ends(machines):
    machine = machines.start("attack=power-off", kernel=product.HOSTILE, initrd=None, memory_mib=64, serial=True)
    assert ended(machine) == "power_off"


def bad_client(machines):
    """A client that says what is no request is left alone."""
    machine = machines.start("attack=none", kernel=product.HOSTILE, initrd=None, memory_mib=64, serial=True)
    machine.request("info")
    with machine.client() as client:
        client.send(b"what?")
        assert client.recv(1 << 16) == b""
    machine.request("stop")
    assert ended(machine) == "stopped"


EXERCISES = {
    "a guest and its clone": linux_and_its_clone,
    "a guest's init": init_and_its_host,
    "zeroes": functools.partial(attacked, "block/endless-work"),
    "connections": functools.partial(attacked, "vsock/too-many-connections", talkative=True),
    "a talkative host": functools.partial(attacked, "vsock/forged-credit", talkative=True),
    "memory that is given back": functools.partial(attacked, "balloon/all-memory"),
    "memory of a file that is given back": functools.partial(attacked, "balloon/all-memory", snapshot=True),
    "a guest that ends": guest_ends,
    "a bad client": bad_client,
}


@functools.cache
def used(name):
    """The rules that an exercise uses. It is done once."""
    assert product.PROBING.is_file(), f"{product.PROBING} is missing; run the suite with `cargo xtask test --e2e`"
    machines, started = Machines(), time.monotonic()
    try:
        EXERCISES[name](machines)
        noted = machines.used()
    finally:
        machines.close()
    print(f"{name}: {len(noted)} rules in {time.monotonic() - started:.1f} s", flush=True)
    return noted


@pytest.mark.parametrize("name", EXERCISES)
def test_a_machine_does_its_exercise_while_its_filters_take_notes(name):
    assert used(name)


def test_each_rule_is_needed_or_says_why_it_stays():
    needed = set().union(*map(used, EXERCISES), (rule for rule in rules() if str(rule) == RUNS))
    for rule in rules():
        print(f"{'used' if rule in needed else 'not used'}: {rule} ({rule.comment}) {rule.mark or ''}")
    idle = [str(rule) for rule in rules() if rule not in needed and not rule.mark]
    stale = [f"{rule}: {rule.reason}" for rule in rules() if rule in needed and rule.mark == "unused"]
    assert not idle, f"rules that nothing uses, and that do not say why they stay: {idle}"
    assert not stale, f"rules that are said to be unused, and are not: {stale}"


def dies(name, rule):
    """Whether a machine dies of its filters in an exercise without a rule. Any other failure is not of the rule."""
    print(f"{name} without {rule}", flush=True)
    machines = Machines(without=rule)
    try:
        EXERCISES[name](machines)
        return False
    except Exception as failure:
        assert machines.killed_by_filter(), f"{name} without {rule}: {failure!r}"
        return True
    finally:
        machines.close()


def test_a_machine_dies_of_a_rule_that_is_left_out():
    seed = int(os.environ.get("BERTH_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"BERTH_TEST_SEED={seed}")
    chance = random.Random(seed)
    needed = sorted((rule for rule in set().union(*map(used, EXERCISES)) if not rule.mark), key=str)
    (runs,) = (rule for rule in rules() if str(rule) == RUNS)
    assert "KVM_RUN" in runs.comment
    assert dies("a guest that ends", runs)
    for rule in chance.sample(needed, LEFT_OUT):
        # Not every exercise uses it each time.
        names = [name for name in EXERCISES if rule in used(name)]
        chance.shuffle(names)
        assert any(dies(name, rule) for name in names), f"nothing dies without {rule}"
