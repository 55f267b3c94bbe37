"""Memory that a guest uses no more is the host's again, and what it is asked for; and what a guest says of its memory."""

import os
import select
import time
from pathlib import Path

import host
import pytest
from initrd import initrd
from tasks import task_id
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


# Most of what a guest has beside its kernel.
TOUCHED_MIB = 160
# What it says of its memory while it has as much free as it can, and whether its memory was enough.
TOUCHES = f"""\
$b mkdir /t
$b mount -t tmpfs -o size=95% t /t
while :; do
    $b dd if=/dev/zero of=/t/x bs=1M count={TOUCHED_MIB} 2>/dev/null || echo failed
    echo full
    $b rm /t/x
    echo free
    $b sleep 10
    said=
    while read name kib rest; do
        case $name in MemTotal:|MemFree:|MemAvailable:) said="$said $kib" ;; esac
    done < /proc/meminfo
    echo "meminfo$said"
    $b sleep 25
done
"""
# What a guest that has freed all of it is asked for.
TARGET_MIB = 96
# Of what is asked for; the rest may be what the guest has never touched.
FALLEN_MIB = 64
# More than the guest has beside what it uses: TOUCHED_MIB and this are more than MEMORY_MIB.
LARGE_TARGET_MIB = 120
# Between the guest's asking its kernel and the host's asking the guest.
TOLERANCE = 16 << 20


class Lines:
    """What a guest says, line by line."""

    def __init__(self, machine):
        self._output, self._rest = machine.output, b""

    def wait_for(self, word):
        """The words of the next line that begins with it, and all first words before."""
        before = []
        while True:
            while b"\n" not in self._rest:
                assert select.select([self._output], [], [], PATIENCE)[0], f"the guest is silent after {before}"
                piece = os.read(self._output, 4096)
                assert piece, f"the machine ended after {before}"
                self._rest += piece
            line, self._rest = self._rest.split(b"\n", 1)
            words = line.decode(errors="replace").split()
            if words[:1] == [word]:
                return words, before
            before += words[:1]


def balloon(machine, wait_ms=10_000):
    return machine.request("balloon", wait_ms=wait_ms)


def wait_until_in_balloon(machine, mib):
    deadline = time.monotonic() + PATIENCE
    while (report := balloon(machine, 0))["actual_bytes"] != mib << 20:
        assert time.monotonic() < deadline, f"{mib} MiB are asked for, and it says {report}"
        time.sleep(0.1)
    assert report["target_bytes"] == mib << 20


def check_statistics(machine, meminfo):
    report = balloon(machine)
    total, free, available = (int(kib) << 10 for kib in meminfo[1:])
    said = report["statistics"]
    assert report["statistics_age_ms"] < 10_000, report
    assert said["total_bytes"] == total
    assert abs(said["free_bytes"] - free) < TOLERANCE, (said, free)
    assert abs(said["available_bytes"] - available) < TOLERANCE, (said, available)
    assert said["oom_kills"] == 0 and said["minor_faults"] > 0


def check_start(metrics):
    """That the phases of a start are parts of it, and that page faults are counted."""
    phases = [metrics[f"start_{phase}_us"] for phase in ("jail", "vm", "state", "devices")]
    assert min(phases) > 0 and sum(phases) <= metrics["start_us"], metrics
    assert metrics["page_faults_minor"] > 100, metrics


@pytest.fixture
def touching():
    machine = Machine(
        CMDLINE, initrd=initrd("touches", TOUCHES), serial=True, balloon=True, jailed=True, memory_mib=MEMORY_MIB
    )
    yield machine
    machine.close()


def test_what_a_guest_is_asked_for_it_gives_and_gets_back(touching):
    lines = Lines(touching)
    lines.wait_for("full")
    full = resident_mib(touching)
    lines.wait_for("free")
    touching.request("set_balloon", target_mib=TARGET_MIB)
    wait_until_in_balloon(touching, TARGET_MIB)
    fallen = full - resident_mib(touching)
    print(f"of {full:.0f} MiB, {TARGET_MIB} were asked for, and {fallen:.0f} were given back")
    assert fallen > FALLEN_MIB
    meminfo, _ = lines.wait_for("meminfo")
    check_statistics(touching, meminfo)
    without = int(meminfo[2])

    touching.request("set_balloon", target_mib=0)
    wait_until_in_balloon(touching, 0)
    _, said = lines.wait_for("full")
    assert "failed" not in said
    assert resident_mib(touching) > full - FALLEN_MIB / 2
    meminfo, _ = lines.wait_for("meminfo")
    check_statistics(touching, meminfo)
    assert int(meminfo[2]) - without > FALLEN_MIB << 10


def test_a_guest_in_need_takes_its_memory_back_before_it_kills_anything(touching):
    lines = Lines(touching)
    lines.wait_for("free")
    touching.request("set_balloon", target_mib=LARGE_TARGET_MIB)
    wait_until_in_balloon(touching, LARGE_TARGET_MIB)
    _, said = lines.wait_for("full")
    report = balloon(touching)
    assert "failed" not in said
    assert report["statistics"]["oom_kills"] == 0, report
    assert report["actual_bytes"] < LARGE_TARGET_MIB << 20 == report["target_bytes"], report


def test_too_large_a_target_is_refused_and_a_paused_guest_is_not_asked(touching):
    Lines(touching).wait_for("full")
    with touching.client() as client:
        client.send(b'{"id": 1, "command": "set_balloon", "target_mib": 193}')
        answer = client.recv(4096).decode()
    assert "193 MiB is too much for the balloon: of 256 MiB the guest keeps 64" in answer
    assert balloon(touching)["target_bytes"] == 0
    touching.request("pause")
    before = time.monotonic()
    assert balloon(touching)["statistics_age_ms"] is not None
    assert time.monotonic() - before < 9
    touching.request("resume")


def test_a_balloon_goes_on_where_a_snapshot_was_taken():
    files = Snapshot(MEMORY_MIB)
    options = {"serial": True, "balloon": True, "jailed": True}
    machines = [Machine(CMDLINE, initrd=initrd("touches", TOUCHES), snapshot=files, **options)]
    try:
        Lines(machines[0]).wait_for("free")
        machines[0].request("set_balloon", target_mib=TARGET_MIB)
        wait_until_in_balloon(machines[0], TARGET_MIB)
        assert balloon(machines[0])["statistics"]
        machines[0].take_snapshot()
        machines.append(Machine(restore=files, **options))
        check_start(machines[1].request("metrics"))
        report = balloon(machines[1])
        assert (report["target_bytes"], report["actual_bytes"]) == (TARGET_MIB << 20, TARGET_MIB << 20)
        assert report["statistics"]["oom_kills"] == 0
        machines[1].request("set_balloon", target_mib=0)
        wait_until_in_balloon(machines[1], 0)
        _, said = Lines(machines[1]).wait_for("full")
        assert "failed" not in said
    finally:
        for machine in machines:
            machine.close()
        files.close()


def test_a_tasks_metrics_have_what_its_guest_says_and_nothing_is_taken_from_it(running, images, tasks):
    task = tasks.start(images.busybox, "echo up; sleep 3600", stopTimeout=2)
    tasks.wait_for_output(task, "up")
    metrics = running.wire.berth("GetMachineMetrics", task=task_id(task))["metrics"]
    assert (metrics["balloonTargetBytes"], metrics["balloonBytes"]) == (0, 0)
    assert 0 < metrics["guestFreeBytes"] <= metrics["guestTotalBytes"]
    assert metrics["guestOomKills"] == 0 and metrics["guestAgeMs"] < 10_000
    phases = [metrics[f"start{phase}Us"] for phase in ("Jail", "Vm", "State", "Devices")]
    assert min(phases) > 0 and sum(phases) <= metrics["startUs"], metrics
    assert metrics["pageFaultsMinor"] > 100, metrics
    said = running.berth("metrics", task_id(task), check=True).stdout.decode()
    for name in ("guestAvailableBytes", "balloonTargetBytes", "startJailUs", "pageFaultsMajor"):
        assert name in said


# How much of a guest's memory is huge pages at least, once it has touched TOUCHED_MIB.
HUGE_MIB = 64
SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@pytest.fixture
def shmem_advised():
    """Memfds may have huge pages, where they are asked for."""
    before = SHMEM_ENABLED.read_text().split("[")[1].split("]")[0]
    SHMEM_ENABLED.write_text("advise")
    yield
    SHMEM_ENABLED.write_text(before)


def huge_mib(pid):
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return sum(int(rollup[rollup.index(name) + 1]) for name in ("AnonHugePages:", "ShmemPmdMapped:")) / 1024


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
@pytest.mark.parametrize("huge_pages", ["never", "always"])
def test_memory_is_of_the_pages_that_were_asked_for(shmem_advised, kind, huge_pages):
    files = Snapshot(MEMORY_MIB) if kind == "memfd" else None
    options = {"serial": True, "balloon": True, "jailed": True, "huge_pages": huge_pages}
    machine = Machine(CMDLINE, initrd=initrd("touches", TOUCHES), snapshot=files, memory_mib=MEMORY_MIB, **options)
    try:
        lines = Lines(machine)
        lines.wait_for("full")
        huge = huge_mib(machine.process.pid)
        print(f"{huge:.0f} of {resident_mib(machine):.0f} MiB are huge pages")
        assert huge > HUGE_MIB if huge_pages == "always" else huge == 0
        # Of huge pages too the host gets back what it asks for, and the guest what it needs.
        lines.wait_for("free")
        machine.request("set_balloon", target_mib=TARGET_MIB)
        wait_until_in_balloon(machine, TARGET_MIB)
        machine.request("set_balloon", target_mib=0)
        wait_until_in_balloon(machine, 0)
    finally:
        machine.close()
        if files:
            files.close()


def test_the_daemon_asks_for_huge_pages_for_its_tasks(daemon, running, images, tasks):
    arguments = daemon.arguments
    daemon.stop()
    daemon.arguments = [*arguments, "--huge-pages=always"]
    daemon.start()
    try:
        task = tasks.start(images.busybox, "echo up; sleep 3600", stopTimeout=2)
        smaps = Path(f"/proc/{host.machine_of(task_id(task))}/smaps").read_text()
        flags = [line.split() for line in smaps.splitlines() if line.startswith("VmFlags:")]
        assert any("hg" in words for words in flags)
    finally:
        daemon.stop()
        daemon.arguments = arguments
        daemon.start()
