"""What breaks under a task ends that task, soon and with the reason; nothing else is touched."""

import os
import signal
import subprocess
import time

import host
import images as oci
import product
import pytest
from initrd import initrd
from registry import Registry, free_port
from tasks import START_SECONDS, Tasks, container, task_id

# From the death of a machine to STOPPED.
NOTICE_SECONDS = 2
# As the daemon says it of a machine whose guest is no more.
PANIC = "the guest kernel panicked or was reset"
SHELL = "#!/bin/busybox sh\n"
# Beside the containers' own time, how long a guest may take to stop before it is ended, and what a slow host takes beside that.
STOP_MARGIN, SLOW_SECONDS = 10, 30
GIB = 1 << 30


def assert_never_ran(task, *cause):
    """The pull failed, and the reason names the cause."""
    reason = task["stoppedReason"]
    assert reason.startswith("CannotPullContainerError"), reason
    assert any(text in reason.lower() for text in cause), reason
    assert task["stopCode"] == "TaskFailedToStart"
    assert "startedAt" not in task
    assert "exitCode" not in container(task)


@pytest.fixture
def victim(images, tasks):
    """A running task, about to lose its machine, and one beside it."""
    definition = tasks.define(images.busybox, "echo up; sleep 3600", stopTimeout=2)
    victim, other = (tasks.wait(task, "RUNNING") for task in tasks.run(definition, count=2))
    tasks.wait_for_output(victim, "up")
    yield victim
    assert tasks.describe(other)["lastStatus"] == "RUNNING"


def assert_stopped_soon(tasks, victim, died_at):
    ended = tasks.wait(victim, "STOPPED", seconds=60)
    assert ended["stoppedReason"]
    assert ended["stoppedAt"].timestamp() - died_at <= NOTICE_SECONDS, ended
    assert task_id(victim) not in host.cgroups() and task_id(victim) not in map(host.task_of, host.machines())
    return ended


def test_task_stops_when_its_machine_is_killed(tasks, victim):
    machine = host.machine_of(task_id(victim))
    died_at = time.time()
    os.kill(machine, signal.SIGKILL)
    assert_stopped_soon(tasks, victim, died_at)


def test_task_stops_when_its_kernel_panics(running, tasks, victim):
    died_at = time.time()
    running.panic_guest(task_id(victim))
    ended = assert_stopped_soon(tasks, victim, died_at)
    assert PANIC in ended["stoppedReason"]


@pytest.mark.parametrize("moment", ["machine-noted", "hand-over-marked", "handed-over"])
def test_guest_that_dies_before_its_containers_are_heard_of_ends_its_task_and_nothing_else(running, images, tasks, moment):
    """The daemon's own death holds the moment: before the guest's hello, before it is given its task, before it tells of it."""
    definition = tasks.define(images.busybox, "sleep 3600", stopTimeout=2)
    before = host.snapshot(running.data_dir)
    running.stop()
    running.start(f"{moment}=kill")
    task = Tasks(running, tasks.network).run(definition)
    running.process.wait(timeout=START_SECONDS)
    running.panic_guest(task_id(task), once_it_speaks=moment == "machine-noted")
    running.start()
    tasks = Tasks(running, tasks.network)
    ended = tasks.wait(task, "STOPPED")
    assert PANIC in ended["stoppedReason"], ended
    assert "exitCode" not in container(ended)
    (line,) = running.wire.berth("GetBill", task=task_id(task))["lines"]
    assert not line["open"]
    assert line["closedAt"] == pytest.approx(ended["executionStoppedAt"].timestamp(), abs=0.002)
    assert host.wait_for_no_difference(before, running.data_dir) == []
    assert container(tasks.finish(images.busybox, "exit 5"))["exitCode"] == 5


def test_guest_that_dies_between_its_containers_starts_fails_the_start(running, images, tasks):
    main = {
        "name": "main",
        "image": images.busybox,
        "command": ["sleep", "3600"],
        "dependsOn": [{"containerName": "first", "condition": "SUCCESS"}],
    }
    first = {"name": "first", "image": images.busybox, "essential": False, "command": ["sleep", "3600"]}
    definition = tasks.ecs.register_task_definition(
        family="half-started",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="1024",
        memory="2048",
        containerDefinitions=[main, first],
    )["taskDefinition"]["taskDefinitionArn"]
    task = tasks.run(definition)
    deadline = time.monotonic() + START_SECONDS
    while [one["lastStatus"] for one in tasks.describe(task)["containers"]] != ["PENDING", "RUNNING"]:
        assert time.monotonic() < deadline, running.tail()
        time.sleep(0.2)
    died_at = time.time()
    running.panic_guest(task_id(task))
    ended = assert_stopped_soon(tasks, task, died_at)
    assert PANIC in ended["stoppedReason"] and ended["stopCode"] == "TaskFailedToStart", ended
    assert "startedAt" not in ended
    assert not any("exitCode" in one for one in ended["containers"]), ended


def test_guest_that_dies_while_it_stops_is_not_waited_for(running, images, tasks):
    line = "trap 'echo asked' TERM; echo up; while :; do sleep 1; done"
    task = tasks.start(images.busybox, line, stopTimeout=120)
    tasks.wait_for_output(task, "up")
    tasks.ecs.stop_task(task=task["taskArn"], reason="enough")
    tasks.wait_for_output(task, "asked")
    died_at = time.time()
    running.panic_guest(task_id(task))
    ended = assert_stopped_soon(tasks, task, died_at)
    assert (ended["stopCode"], ended["stoppedReason"]) == ("UserInitiated", "enough")
    assert PANIC in container(ended)["reason"] and "exitCode" not in container(ended), ended


@pytest.fixture
def guests_with(running):
    """Gives guests another init, a script of busybox; after the test the usual one."""
    usual = running.arguments

    def restart(name, script):
        assert running.stop() == 0
        running.arguments = [*running.arguments_without("initrd"), f"--initrd={initrd(name, script, SHELL)}"]
        running.start()

    yield restart
    assert running.stop() == 0
    running.arguments = usual
    running.start()


def test_init_that_dies_before_its_hello_fails_the_start(guests_with, images, tasks):
    guests_with("dies", "exit 1")
    ended = tasks.finish(images.busybox, "exit 5")
    assert PANIC in ended["stoppedReason"] and ended["stopCode"] == "TaskFailedToStart", ended
    assert "exitCode" not in container(ended)


def test_init_that_never_says_hello_is_stopped_all_the_same(guests_with, images, tasks):
    guests_with("mute", "while :; do /bin/busybox sleep 3600; done")
    task = tasks.run(tasks.define(images.busybox, "exit 5", stopTimeout=2))
    # Its machine runs: nothing is heard of it that could be waited for.
    while not (host.CGROUP / task_id(task)).exists() or tasks.describe(task)["lastStatus"] != "ACTIVATING":
        time.sleep(0.2)
    asked_at = time.monotonic()
    (ended,) = tasks.stop(task)
    assert time.monotonic() - asked_at < 2 + STOP_MARGIN + SLOW_SECONDS
    assert ended["stopCode"] == "UserInitiated" and "exitCode" not in container(ended), ended


def test_registry_that_is_down_is_named(tasks):
    address = f"127.0.0.1:{free_port()}"
    assert_never_ran(tasks.finish(f"{address}/busybox:latest"), address)


def test_registry_that_goes_down_is_no_matter_for_an_image_that_is_here(running, tasks):
    registry = Registry().start()
    running.stop()
    try:
        own = oci.Images(registry)
        running.arguments.append(f"--insecure-registry={registry.host}")
        running.start()
        image = own.busybox.replace(":latest", f"@{own.digests['busybox']}")
        assert container(tasks.finish(image, "true"))["exitCode"] == 0
        registry.stop()
        assert container(tasks.finish(image, "true"))["exitCode"] == 0
    finally:
        registry.stop()


def test_unknown_image_is_named(images, tasks):
    task = tasks.finish(f"{images.registry.host}/no-such-image:latest")
    assert_never_ran(task, "manifest unknown", "not found")
    assert "no-such-image" in task["stoppedReason"]


def test_blob_with_a_wrong_digest_is_refused(images, registry, tasks):
    layer = oci.Entries().file("data", os.urandom(4096)).layer()
    image = images.hostile("wrong-digest", layer)
    blob = registry.blob(oci.sha256(layer.blob))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    assert_never_ran(tasks.finish(image), "digest")


def test_layer_that_climbs_out_is_refused(images, tasks):
    target = product.SCRATCH / "escaped-by-dots"
    assert_never_ran(tasks.finish(images.hostile("dots", oci.dotdot_layer(target))), "..")
    assert not target.exists()


def test_layer_that_steals_a_file_of_the_host_is_refused(images, tasks):
    secret = product.SCRATCH / "secret"
    secret.write_text("secret")
    assert_never_ran(tasks.finish(images.hostile("hardlink", oci.hardlink_layer(secret))), "stolen", "link")
    assert secret.stat().st_nlink == 1


def test_layer_that_writes_through_a_link_stays_in_its_image(images, tasks):
    target = product.SCRATCH / "escaped-by-link"
    target.mkdir()
    # Within the image the link leads to the image's own folder of that name: that is where the file may be.
    task = tasks.finish(images.hostile("symlink", oci.symlink_layer(target)), f"cat {target}/escaped")
    assert list(target.iterdir()) == []
    if "exitCode" in container(task):
        assert tasks.output(task, follow=True) == b"escaped"
    else:
        assert_never_ran(task, "way-out", "link")


def test_layer_that_unpacks_beyond_the_disk_is_refused(running, images, tasks):
    image = images.hostile("bomb", oci.bomb_layer(30 * GIB))
    before = _used(running.data_dir)
    assert_never_ran(tasks.finish(image), "larger than", "disk")
    assert _used(running.data_dir) - before < GIB


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param("mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3", id="absent"),
        pytest.param("mount --bind /dev/null /dev/kvm", id="no-kvm-device"),
    ],
)
def test_host_without_kvm_is_told_in_one_sentence(mask):
    data = product.SCRATCH / "never-made"
    serve = f"{mask} && exec {product.BERTH} serve --data-dir {data} --listen 127.0.0.1:0"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", serve],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("berth: ") and "/dev/kvm" in line
    assert not data.exists()


def _used(path):
    stat = os.statvfs(path)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize
