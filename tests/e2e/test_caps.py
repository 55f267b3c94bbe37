"""A task gets what it paid for and no more, and what it does to itself stays inside."""

import os
import time
from pathlib import Path

import host
import pytest
from tasks import container, eni, task_id

WINDOW_SECONDS = 5
GIB = 1 << 30


@pytest.fixture
def neighbours(images, tasks):
    """A web server, and a task that asks it again and again and says so."""
    server = tasks.start(images.web)
    address = eni(server)["privateIPv4Address"]
    asking = f"n=0; while :; do webserver get {address}:80 / && n=$((n+1)) && echo answer $n; sleep 0.5; done"
    client = tasks.start(images.web, asking)
    tasks.wait_for_output(client, "answer 1\n")
    return Neighbours(tasks, client)


class Neighbours:
    def __init__(self, tasks, client):
        self.tasks, self.client = tasks, client

    def answers(self):
        return self.tasks.output(self.client).count(b"answer ")

    def assert_served(self):
        """Two more answers come from now on."""
        before, deadline = self.answers(), time.monotonic() + 120
        while self.answers() < before + 2:
            assert time.monotonic() < deadline, "the neighbour is not served any more"
            time.sleep(0.5)


def share_of_one_cpu(task):
    began, used = time.monotonic(), host.cpu_usage_us(task_id(task))
    time.sleep(WINDOW_SECONDS)
    used = host.cpu_usage_us(task_id(task)) - used
    return used / 1e6 / (time.monotonic() - began)


def test_quarter_of_a_cpu_is_a_quarter(images, tasks):
    spin = "echo busy; while :; do :; done & while :; do :; done"
    task = tasks.start(images.busybox, spin, cpu="256", memory="512", stopTimeout=2)
    tasks.wait_for_output(task, "busy")
    time.sleep(2)
    share = share_of_one_cpu(task)
    assert 0.23 <= share <= 0.27, f"a task of 256 CPU units used {share:.1%} of one CPU"


def test_idle_task_uses_next_to_nothing(images, tasks):
    task = tasks.start(images.busybox, "echo idle; sleep 3600", stopTimeout=2)
    tasks.wait_for_output(task, "idle")
    time.sleep(3)
    share = share_of_one_cpu(task)
    # On metal below 0.1 %; the emulator makes every exit dear.
    assert share < 0.05, f"an idle task used {share:.1%} of one CPU"


def test_container_beyond_its_memory_is_killed_inside(running, images, tasks, neighbours):
    kills_on_host = _oom_kills()
    task = tasks.finish(images.web, ["webserver", "eat", "700"], cpu="256", memory="512")
    assert container(task).get("exitCode") == 137, task
    assert container(task)["reason"].startswith("OutOfMemoryError"), task
    assert task["stopCode"] == "EssentialContainerExited"
    assert b"done" not in tasks.output(task, follow=True)
    assert _oom_kills() == kills_on_host, "the host had to kill something"
    neighbours.assert_served()


def test_most_of_the_memory_paid_for_can_be_used(images, tasks):
    task = tasks.finish(images.web, ["webserver", "eat", "480"], cpu="256", memory="512")
    assert container(task)["exitCode"] == 0, tasks.output(task)
    assert b"done" in tasks.output(task, follow=True)


def test_fork_bomb_stays_in_its_task(running, images, tasks, neighbours):
    task = tasks.start(images.busybox, "echo armed; f() { f | f & }; f; while :; do sleep 1; done", stopTimeout=2)
    tasks.wait_for_output(task, "armed")
    time.sleep(10)
    neighbours.assert_served()
    processes = host.group_of(host.machine_of(task_id(task))) / "pids.current"
    # The machine's own threads; those of the guest are not the host's.
    assert not processes.exists() or int(processes.read_text()) < 32
    tasks.stop(task)
    neighbours.assert_served()


def test_full_disk_stays_in_its_task(running, images, tasks, neighbours):
    free = _free(running.data_dir)
    fill = (
        "n=0; for size in 4G 1G 256M 64M 16M 4M 1M 64K 4K; do"
        " while fallocate -l $size /fill.$n 2>/dev/null; do n=$((n+1)); done; done;"
        " if dd if=/dev/zero of=/last bs=1M count=4 2>/dev/null; then echo room; else echo full; fi; sleep 3600"
    )
    task = tasks.start(images.busybox, fill, stopTimeout=2)
    output = tasks.wait_for_output(task, "\n")
    assert output == "full\n"
    neighbours.assert_served()
    assert free - _free(running.data_dir) < 3 * GIB, "reserving space in the guest took it from the host"


def _oom_kills():
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            # Kills by the guests' kernels are not in it: this is the host's.
            return int(line.split()[1])
    raise AssertionError("no oom_kill in /proc/vmstat")


def _free(path):
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
