"""Tasks whose machines waited for them: each is as any other, and nothing is lost where none waits or is left."""

import os
import shutil
import signal
import time
from pathlib import Path

import host
import product
import pytest
import test_jail as jail
from tasks import eni, task_id
from test_templates import SAYS, SHAPE, SIZE, is_clone, words

# As many as there are for a template.
EACH = 2
PATIENCE = 120


def from_husk(daemon, task):
    """Whether the task's machine waited for it."""
    return any("a husk goes on" in line and task_id(task) in line for line in daemon.said().splitlines())


def waiting():
    """The machines that wait; each is in a group of its own."""
    groups = host.husks()
    assert all(len(processes) == 1 for processes in groups.values()), groups
    return sorted(process for processes in groups.values() for process in processes)


def wait_until_gone(processes):
    deadline = time.monotonic() + PATIENCE
    while left := [process for process in processes if process in host.machines()]:
        assert time.monotonic() < deadline, f"{left} are left"
        time.sleep(0.1)


@pytest.fixture
def ready(images, daemon_with, daemon, tasks):
    """A definition of whose shape husks wait, made by a daemon with more options."""

    def start(command, *options):
        daemon_with(*options)
        definition = tasks.define(images.busybox, command, **SIZE)
        tasks.stop(tasks.wait(tasks.run(definition), "RUNNING"))
        daemon.wait_for_template(SHAPE)
        return definition

    return start


def test_tasks_that_a_husk_waited_for_are_each_themselves(ready, daemon, tasks):
    definition = ready(SAYS)
    daemon.wait_for_husks(EACH)
    husks, seen = waiting(), []
    assert len(husks) == EACH
    started, groups = [], []
    for task in tasks.run(definition, count=EACH):
        task = tasks.wait(task, "RUNNING")
        started.append(task)
        said = words(tasks, task)
        assert from_husk(daemon, task) and is_clone(task)
        assert said["mac"] == eni(task)["macAddress"]
        assert abs(said["now"] - task["startedAt"].timestamp()) < 5
        machine = host.machine_of(task_id(task))
        assert machine in husks
        group = host.group_of(machine)
        assert (group / "cpu.max").read_text() == "50000 100000\n"
        assert (group / "pids.max").read_text() == "128\n"
        assert int((group / "memory.max").read_text()) > 1 << 30
        folder = daemon.data_dir / "machines" / task_id(task)
        assert next(jail.statuses(machine))["Uid"].split() == [(folder / "user").read_text().strip()] * 4
        assert os.readlink(f"/proc/{machine}/fd/2") == str((folder / "vmm.log").resolve())
        seen.append((said, machine))
        groups.append(group)
    for what in ["boot id", "uuid", "mac"]:
        assert len({said[what] for said, _ in seen}) == EACH
    machines = [machine for _, machine in seen]
    jail.test_every_thread_of_a_machine_is_confined(machines)
    jail.test_each_machine_is_a_user_of_its_own(machines)
    jail.test_a_machine_is_in_no_namespace_of_the_host_and_sees_no_file(machines)
    jail.test_a_machine_dumps_no_core(machines)
    # Others wait in their place, and they end with the daemon.
    daemon.wait_for_husks(2 * EACH)
    husks = waiting()
    assert len(husks) == EACH and not set(husks) & set(machines)
    assert daemon.stop() == 0
    assert host.husks() == {}
    wait_until_gone(husks)
    assert set(machines) <= set(host.machines())
    # The next daemon finds these by the groups that they waited in, and leaves nothing of them in the end.
    daemon.start()
    for task in started:
        assert tasks.describe(task)["lastStatus"] == "RUNNING"
        used = daemon.wire.berth("GetMachineMetrics", task=task_id(task))["metrics"]
        assert used["cpuUsageUs"] > 0 and used["memoryBytes"] > 1 << 20, used
    assert all(group.exists() for group in groups)
    tasks.stop(*started)
    assert not any(group.exists() for group in groups)


def test_husks_that_were_killed_cost_a_task_nothing(ready, daemon, tasks):
    definition = ready("echo up; sleep 3600")
    daemon.wait_for_husks(EACH)
    for husk in waiting():
        os.kill(husk, signal.SIGKILL)
    task = tasks.wait(tasks.run(definition), "RUNNING")
    tasks.wait_for_output(task, "up")
    assert is_clone(task) and not from_husk(daemon, task)
    daemon.wait_for_husks(2 * EACH)
    assert len(waiting()) == EACH
    task = tasks.wait(tasks.run(definition), "RUNNING")
    tasks.wait_for_output(task, "up")
    assert from_husk(daemon, task)


def test_husks_end_with_a_daemon_that_is_killed(ready, daemon, tasks):
    ready("echo up; sleep 3600")
    daemon.wait_for_husks(EACH)
    husks = waiting()
    daemon.kill()
    wait_until_gone(husks)
    daemon.start()
    assert host.husks() == {}


def test_no_machine_waits_where_none_is_to(ready, daemon, tasks):
    definition = ready("echo up; sleep 3600", "--waiting-machines=0")
    for _ in range(2):
        task = tasks.wait(tasks.run(definition), "RUNNING")
        tasks.wait_for_output(task, "up")
        assert is_clone(task) and not from_husk(daemon, task)
        tasks.stop(task)
    assert host.husks() == {} and "a husk waits" not in daemon.said()


def test_husks_of_what_has_changed_end(ready, daemon, tasks, tmp_path):
    initrd = tmp_path / "initrd.cpio"
    shutil.copy(product.GUEST / "initrd.cpio", initrd)
    daemon.arguments = daemon.arguments_without("initrd") + [f"--initrd={initrd}"]
    definition = ready("echo up; sleep 3600")
    daemon.wait_for_husks(EACH)
    husks = waiting()
    os.utime(initrd)
    task = tasks.wait(tasks.run(definition), "RUNNING")
    tasks.wait_for_output(task, "up")
    assert not is_clone(task)
    wait_until_gone(husks)
