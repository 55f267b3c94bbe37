"""The daemon dies at each of its fault points in turn, or finds its disk full there: the next one makes it good."""

import os
import re
import secrets
import signal
import subprocess
import time

import botocore.exceptions
import host
import images as oci
import pytest
import product
from tasks import STOP_SECONDS, Tasks, container, task_id

ROTATION = ["secrets-key-added", "secrets-resealed"]
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


def points():
    """The names of all fault points, as the daemon itself has them."""
    return re.search(r"the points are ([a-z -]+)", serve_with("?=kill").stderr)[1].split()


def start_until_death(running, faults):
    """Starts the daemon; says whether it lived to serve. A daemon may come by a point before it does."""
    try:
        running.start(faults)
    except RuntimeError:
        if running.process.returncode != -signal.SIGKILL or not DEATH.search(running.said()):
            raise
        return False
    return True


def death(running):
    """At which point the daemon died."""
    assert running.process.wait(timeout=DEATH_SECONDS) == -signal.SIGKILL, running.tail()
    return DEATH.search(running.said())[1]


def crash_through(running, tasks, definition, left):
    """One task, under daemons each of which dies at the first point of `left` that no other died at before: the points in
    their order, and the stopped task. Whoever asks does not notice: the client token makes it one request."""
    token, reached = secrets.token_hex(16), []
    running.stop()
    while True:
        armed = [point for point in left if point not in reached]
        if start_until_death(running, ",".join(f"{point}=kill" for point in armed)):
            tasks = Tasks(running, tasks.network)
            try:
                task = tasks.run(definition, clientToken=token)
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
    left = [point for point in points() if point not in ROTATION]
    assert len(left) > 20
    lines = 8
    script = f"i=0; while [ $i -lt {lines} ]; do echo out $i; echo err $i >&2; i=$((i+1)); sleep 0.5; done; exit 5"
    output = {"stdout": "out", "stderr": "err"}
    output = {name: "".join(f"{word} {n}\n" for n in range(lines)).encode() for name, word in output.items()}
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
