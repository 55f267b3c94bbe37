"""What a running task's machine is to the host: nobody, nowhere, able to do what its work needs."""

import os
from pathlib import Path

import host
import pytest
from tasks import task_id

NAMESPACES = ("mnt", "net", "ipc", "uts", "pid", "cgroup")
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def statuses(machine):
    """Of each thread, by field."""
    for status in Path(f"/proc/{machine}/task").glob("*/status"):
        yield dict(line.split(":", 1) for line in status.read_text().splitlines())


@pytest.fixture
def machines(images, tasks):
    """The machines of two running tasks."""
    definition = tasks.define(images.busybox, "echo up; sleep 3600", stopTimeout=2)
    running = [tasks.wait(task, "RUNNING") for task in tasks.run(definition, count=2)]
    for task in running:
        tasks.wait_for_output(task, "up")
    return [host.machine_of(task_id(task)) for task in running]


def test_every_thread_of_a_machine_is_confined(machines):
    for machine in machines:
        seen = list(statuses(machine))
        # The main one, a vCPU, two drives, network, vsock, entropy, balloon.
        assert len(seen) >= 8
        for status in seen:
            assert status["Seccomp"].strip() == "2", status
            assert status["NoNewPrivs"].strip() == "1", status
            assert {status[name].strip() for name in CAPABILITIES} == {"0" * 16}, status
            assert status["Groups"].strip() == "", status


def test_each_machine_is_a_user_of_its_own(machines):
    users = []
    for machine in machines:
        ids = {(status["Uid"], status["Gid"]) for status in statuses(machine)}
        assert len(ids) == 1
        uid, gid = ({int(number) for number in numbers.split()} for numbers in ids.pop())
        assert uid == gid and len(uid) == 1
        users += uid
    assert len(set(users)) == len(machines)
    assert min(users) >= 2_000_000_000


def test_a_machine_is_in_no_namespace_of_the_host_and_sees_no_file(machines):
    for machine in machines:
        for name in NAMESPACES:
            assert os.readlink(f"/proc/{machine}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name
        assert next(statuses(machine))["NSpid"].split()[-1] == "1"
        assert os.listdir(f"/proc/{machine}/root") == []
        mounts = Path(f"/proc/{machine}/mountinfo").read_text().splitlines()
        assert len(mounts) == 1 and " ro," in mounts[0], mounts
        links = Path(f"/proc/{machine}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in links] == ["lo"]
        assert Path(f"/proc/{machine}/environ").read_bytes() == b""


def test_a_machine_dumps_no_core(machines):
    for machine in machines:
        limits = Path(f"/proc/{machine}/limits").read_text()
        assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]
