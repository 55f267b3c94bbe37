"""The daemon dies at each of its fault points in turn, or finds its disk full there: the next one makes it good."""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import time
from pathlib import Path

import botocore.exceptions
import host
import images as oci
import pytest
import product
import test_volumes as volumes
from tasks import ROLE, START_SECONDS, STOP_SECONDS, Tasks, container, task_id
from test_templates import is_clone

# The names of points that not every task comes by begin so; they have tests of their own.
APART = ("secrets-", "volume-", "template-", "husk-")
OF_A_DELETION = ["volume-deletion-stored", "volume-disk-removed"]
DEATH = re.compile(r'a fault point kills the daemon point="([a-z-]+)"')
# From a fault to the end of the process.
DEATH_SECONDS = 60


@pytest.fixture(autouse=True)
def unarmed(running, tasks):
    """The next test's daemon has no fault armed."""
    yield
    if running.is_alive():
        running.kill()


def serve_with(faults):
    """What the daemon says that is started with these faults and does not start."""
    return subprocess.run(
        [product.BERTH, "serve", "--data-dir", product.SCRATCH / "never-made", "--listen", "127.0.0.1:0"],
        env={**os.environ, "BERTH_FAULTS": faults},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def points(prefix=""):
    """The names of all fault points that begin so, as the daemon itself has them."""
    names = re.search(r"the points are ([a-z -]+)", serve_with("?=kill").stderr)[1].split()
    return [name for name in names if name.startswith(prefix)]


def start_until_death(running, faults):
    """Starts the daemon; says whether it lived to serve. A daemon may come by a point before it does."""
    try:
        running.start(faults)
    except RuntimeError:
        if running.process.returncode != -signal.SIGKILL or not DEATH.search(running.said()):
            raise
        return False
    return True


def death(running, seconds=DEATH_SECONDS):
    """At which point the daemon died."""
    assert running.process.wait(timeout=seconds) == -signal.SIGKILL, running.tail()
    return DEATH.search(running.said())[1]


def crash_through(running, tasks, definition, left, **options):
    """One task, under daemons each of which dies at the first point of `left` that no other died at before: the points in
    their order, and the stopped task. Whoever asks does not notice: the client token makes it one request."""
    token, reached = secrets.token_hex(16), []
    running.stop()
    while True:
        armed = [point for point in left if point not in reached]
        if start_until_death(running, ",".join(f"{point}=kill" for point in armed)):
            tasks = Tasks(running, tasks.network)
            try:
                task = tasks.run(definition, clientToken=token, **options)
                return reached, tasks.wait(task, "STOPPED")
            except (botocore.exceptions.BotoCoreError, OSError):
                pass
        reached.append(death(running))


def assert_whole(running, task, output, before):
    """The task ended by itself, is billed once and for its time, and nothing of it is left."""
    assert container(task)["exitCode"] == 5, task
    assert task["stopCode"] == "EssentialContainerExited"
    bill = running.wire.berth("GetBill", task=task_id(task))
    (line,) = bill["lines"]
    assert not line["open"] and line["openedAt"] == pytest.approx(task["pullStartedAt"].timestamp(), abs=0.002)
    assert line["closedAt"] == pytest.approx(task["executionStoppedAt"].timestamp(), abs=0.002)
    for stream, lines in output.items():
        assert Tasks(running, None).output(task, stream=stream) == lines
    assert host.wait_for_no_difference(before, running.data_dir) == []
    assert list((running.data_dir / "images/tmp").iterdir()) == []


def numbered(lines):
    """A script that says so many lines on each stream, one every half a second, and ends well after; and what it says."""
    script = f"i=0; while [ $i -lt {lines} ]; do echo out $i; echo err $i >&2; i=$((i+1)); sleep 0.5; done; exit 5"
    output = {"stdout": "out", "stderr": "err"}
    return script, {name: "".join(f"{word} {n}\n" for n in range(lines)).encode() for name, word in output.items()}


def fresh_image(images):
    """An image of which nothing is here."""
    layer = oci.Entries().file("data", secrets.token_bytes(1 << 16)).layer()
    return images.on_base(f"fresh-{secrets.token_hex(4)}", [layer])


def test_unknown_points_and_actions_are_refused():
    for faults in ["nowhere=kill", "task-admitted", "task-admitted=enospc*1", "state-commit=sleep"]:
        done = serve_with(faults)
        assert done.returncode != 0 and f'BERTH_FAULTS has "{faults}"' in done.stderr, done
    assert not (product.SCRATCH / "never-made").exists()


def test_a_task_outlives_a_crash_at_every_point(running, images, tasks):
    left = [point for point in points() if not point.startswith(APART)]
    assert len(left) > 20
    script, output = numbered(8)
    before = host.snapshot(running.data_dir)
    while left:
        definition = tasks.define(fresh_image(images), script, stopTimeout=2)
        reached, task = crash_through(running, tasks, definition, left)
        assert reached, f"no task ever comes by {left}"
        assert_whole(running, task, output, before)
        left = [point for point in left if point not in reached]


def test_a_rotation_that_is_cut_off_is_ended_by_the_next_daemon(running):
    name, value = f"/crash/{secrets.token_hex(4)}", secrets.token_hex(16)
    running.client("ssm").put_parameter(Name=name, Value=value, Type="SecureString")
    keys = running.data_dir / "secrets.keys"
    old = key_lines(keys)
    running.stop()
    running.start("secrets-key-added=kill")
    assert running.berth("secrets", "rotate").returncode != 0
    assert death(running) == "secrets-key-added"
    assert len(key_lines(keys)) == 2 and set(old) < set(key_lines(keys))
    # The next one goes on with it, and dies shortly before the end.
    start_until_death(running, "secrets-resealed=kill")
    assert death(running) == "secrets-resealed"
    assert len(key_lines(keys)) == 2
    running.start()
    deadline = time.monotonic() + STOP_SECONDS
    while len(key_lines(keys)) != 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(key_lines(keys)) == 1 and not set(key_lines(keys)) & set(old)
    found = running.client("ssm").get_parameter(Name=name, WithDecryption=True)
    assert found["Parameter"]["Value"] == value


def key_lines(path):
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("point", ["blob-downloaded", "rootfs-packed"])
def test_an_image_that_finds_no_room_fails_its_task_alone(running, images, tasks, point):
    image = fresh_image(images)
    running.stop()
    running.start(f"{point}=enospc*1")
    tasks = Tasks(running, tasks.network)
    task = tasks.finish(image, "exit 5")
    if "exitCode" not in container(task):
        assert task["stopCode"] == "TaskFailedToStart"
        assert task["stoppedReason"].startswith("CannotPullContainerError"), task
        assert "No space left on device" in task["stoppedReason"], task
        task = tasks.finish(image, "exit 5")
    assert "refuses a write" in running.said()
    assert container(task)["exitCode"] == 5


@pytest.mark.parametrize("refusals", [1, 4])
def test_a_full_disk_loses_no_line_and_no_step(running, images, tasks, refusals):
    lines = 200
    script = f"i=0; while [ $i -lt {lines} ]; do echo out $i; i=$((i+1)); done; exit 5"
    definition = tasks.define(images.busybox, script)
    before = host.snapshot(running.data_dir)
    running.stop()
    running.start(f"log-lines-arrived=enospc*{refusals},state-commit=enospc*6")
    tasks, token = Tasks(running, tasks.network), secrets.token_hex(16)
    # What cannot be stored is not begun: the client is told to come again, and may.
    while True:
        try:
            task = tasks.run(definition, clientToken=token)
            break
        except botocore.exceptions.ClientError as error:
            assert error.response["Error"]["Code"] == "ServerException", error
    task = tasks.wait(task, "STOPPED")
    assert running.said().count("refuses a write") == refusals + 6
    assert_whole(running, task, {"stdout": "".join(f"out {n}\n" for n in range(lines)).encode()}, before)


@pytest.fixture
def base(running):
    """A volume and a snapshot of it, both empty; after the test there is no volume at all."""
    running.berth("volume", "create", "base", "--size=1", check=True)
    running.berth("volume", "snapshot", "base", "--as=kept", check=True)
    yield
    if not running.is_alive():
        running.start()
    running.berth("volume", "rm", *whole_volumes(running), check=True)
    assert whole_volumes(running) == set()


def whole_volumes(running):
    """The names of all volumes and snapshots: each is whole and nobody's, and there is no disk beside theirs, named or not."""
    listed = volumes.listed(running)
    assert {volume["state"] for volume in listed.values()} <= {"available"}, listed
    folder = running.data_dir / "volumes"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{volume['volumeId']}.img" for volume in listed.values())
    # What has no name and is open takes room as well.
    for descriptor in Path(f"/proc/{running.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            assert not os.readlink(descriptor).startswith(f"{folder}/")
    return set(listed)


def test_a_volume_is_made_or_not_at_all_wherever_the_daemon_dies(running, base):
    making = [point for point in points("volume-") if point not in OF_A_DELETION]
    empty, *copies = ("create", "new", "--size=1"), ("snapshot", "base", "--as=new"), ("create", "new", "--snapshot=kept")
    deaths = [(empty, point) for point in making if point != "volume-half-copied"]
    deaths += [(copy, point) for copy in copies for point in making]
    assert len(deaths) > 15
    running.stop()
    there = {"base", "kept"}
    for command, point in deaths:
        running.start(f"{point}=kill")
        assert whole_volumes(running) == there
        if "new" in there:
            running.berth("volume", "rm", "new", check=True)
        assert running.berth("volume", *command).returncode != 0
        assert death(running) == point
        there = {"base", "kept", "new"} if point == "volume-made" else {"base", "kept"}
    running.start()
    assert whole_volumes(running) == there


def test_a_deletion_that_is_cut_off_is_ended_by_the_next_daemon(running, base):
    stored, removed = OF_A_DELETION
    running.stop()
    running.start(f"{stored}=kill")
    assert running.berth("volume", "rm", "base").returncode != 0
    assert death(running) == stored
    # The next one goes on with it, and dies before it has told.
    assert not start_until_death(running, f"{removed}=kill")
    assert death(running) == removed
    running.start()
    assert whole_volumes(running) == {"kept"}
    running.stop()
    running.start(f"{removed}=kill")
    assert running.berth("volume", "rm", "kept").returncode != 0
    assert death(running) == removed
    running.start()
    assert whole_volumes(running) == set()
    running.berth("volume", "create", "base", "--size=1", check=True)


def test_a_task_has_its_volume_through_a_death_at_every_point_of_it(running, images, tasks, base):
    own = [point for point in points("volume-") if point not in ["volume-stored", "volume-deletion-stored"]]
    # With those at which it is given its volume, and gives it back.
    left = ["task-admitted", *own, "machine-removed", "task-stopped-unstored"]
    script, output = numbered(8)
    definition = volumes.define(tasks, images.busybox, f"grep -q ' /data ext4 ' /proc/mounts && : > /data/file && {script}")
    configuration = {"name": "data", "managedEBSVolume": {"roleArn": ROLE, "snapshotId": "kept"}}
    before = host.snapshot(running.data_dir)
    reached, task = crash_through(running, tasks, definition, left, volumeConfigurations=[configuration])
    assert reached == left
    assert_whole(running, task, output, before)
    assert whole_volumes(running) == {"base", "kept"}


@pytest.mark.parametrize("point", ["volume-disk-begun", "volume-half-copied", "volume-disk-filled"])
def test_a_volume_that_finds_no_room_is_not_made(running, images, tasks, base, point):
    create = ["volume", "create", "new", "--snapshot=kept"]
    running.stop()
    running.start(f"{point}=enospc*2")
    tasks = Tasks(running, tasks.network)
    assert running.berth(*create).returncode != 0
    assert "No space left on device" in running.said()
    assert whole_volumes(running) == {"base", "kept"}
    task = tasks.wait(volumes.run(tasks, images.busybox, "true", snapshotId="kept"), "STOPPED")
    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("CannotCreateVolumeError"), task
    assert "No space left on device" in task["stoppedReason"], task
    assert running.wire.berth("GetBill", task=task_id(task))["lines"] == []
    assert whole_volumes(running) == {"base", "kept"}
    running.berth(*create, check=True)


def test_volumes_whose_records_find_no_room_are_made_and_deleted_when_they_do(running, base):
    refusals = 12
    running.stop()
    running.start(f"state-commit=enospc*{refusals}")
    refused = 0
    while refused < refusals:
        for command in [("create", "new", "--snapshot=kept"), ("snapshot", "new", "--as=newer"), ("rm", "new"), ("rm", "newer")]:
            while (done := running.berth("volume", *command)).returncode != 0:
                before, refused = refused, running.said().count("refuses a write")
                assert refused > before, done
        refused = running.said().count("refuses a write")
    assert whole_volumes(running) == {"base", "kept"}


@pytest.fixture
def sharing(running):
    """The daemon, whose tasks may start as clones of a template from its next start on."""
    usual = running.arguments
    running.arguments = running.arguments_without("isolation")
    yield running
    running.arguments = usual


def templates(running):
    """What there is of templates."""
    return sorted(path.name for path in (running.data_dir / "templates").iterdir() if path.is_dir())


def test_a_template_that_is_cut_off_is_gone_with_the_next_daemon(images, tasks, sharing):
    script, output = numbered(8)
    definition = tasks.define(images.busybox, script, stopTimeout=2)
    before = host.snapshot(sharing.data_dir)
    making = points("template-")
    assert len(making) > 4
    sharing.stop()
    for point in making:
        sharing.start(f"{point}=kill")
        task = Tasks(sharing, tasks.network).run(definition)
        assert death(sharing, START_SECONDS) == point
        assert len(templates(sharing)) == 1
        sharing.start()
        assert templates(sharing) == []
        ended = Tasks(sharing, tasks.network).wait(task, "STOPPED")
        assert_whole(sharing, ended, output, before)
        sharing.stop()
    sharing.start()
    tasks = Tasks(sharing, tasks.network)
    assert container(tasks.wait(tasks.run(definition), "STOPPED"))["exitCode"] == 5
    sharing.wait_for_template()
    task = tasks.wait(tasks.run(definition), "RUNNING")
    assert is_clone(task)
    assert_whole(sharing, tasks.wait(task, "STOPPED"), output, before)


def test_a_husk_is_one_machine_or_none_wherever_the_daemon_dies(images, tasks, sharing):
    script, output = numbered(8)
    definition = tasks.define(images.busybox, script, stopTimeout=2)
    before = host.snapshot(sharing.data_dir)
    using = points("husk-")
    assert len(using) > 2
    sharing.stop()
    for point in using:
        sharing.start(f"{point}=kill")
        task = Tasks(sharing, tasks.network).run(definition)
        if point != "husk-ready":
            sharing.wait_for_husks(1)
            ended = Tasks(sharing, tasks.network).wait(task, "STOPPED")
            assert container(ended)["exitCode"] == 5
            task = Tasks(sharing, tasks.network).run(definition)
        assert death(sharing, START_SECONDS) == point
        sharing.start()
        assert host.husks() == {}
        ended = Tasks(sharing, tasks.network).wait(task, "STOPPED")
        assert_whole(sharing, ended, output, before)
        sharing.stop()
        assert host.husks() == {}


def test_a_template_that_finds_no_room_is_none(images, tasks, sharing):
    before = host.snapshot(sharing.data_dir)
    sharing.stop()
    sharing.start("template-begun=enospc*1,template-written=enospc*1")
    tasks = Tasks(sharing, tasks.network)
    # Of each shape one is tried once.
    for count, memory in enumerate(["2048", "3072"], 1):
        definition = tasks.define(images.busybox, "sleep 3600", memory=memory, stopTimeout=2)
        first = tasks.wait(tasks.run(definition), "RUNNING")
        deadline = time.monotonic() + START_SECONDS
        while (said := sharing.said()).count("no template: tasks of this shape boot each") < count:
            assert time.monotonic() < deadline, sharing.tail()
            time.sleep(0.2)
        assert said.count("No space left on device") == count
        assert templates(sharing) == [] and host.cgroups() == [task_id(first)]
        second = tasks.wait(tasks.run(definition), "RUNNING")
        assert not is_clone(second)
        tasks.stop(first, second)
    assert host.wait_for_no_difference(before, sharing.data_dir) == []
