"""A task that is paused: it stands still, keeps what it has, costs no processor, and goes on where it was."""

import time

import host
from tasks import Tasks, container, task_id

PAUSED_SECONDS = 8
# Its own clocks four times a second: what the wall says, and what has passed since it booted.
CLOCKS = "trap 'exit 5' TERM; while :; do echo $(date +%s) $(cut -d. -f1 /proc/uptime); sleep 0.25; done"


def clocks(tasks, task):
    """The pairs that the task has said so far."""
    lines = tasks.output(task).decode().splitlines()
    return [tuple(int(word) for word in line.split()) for line in lines if len(line.split()) == 2]


def test_paused_task_stands_still_and_goes_on(running, images, tasks):
    task = tasks.start(images.busybox, CLOCKS, stopTimeout=30)
    while not clocks(tasks, task):
        time.sleep(0.2)
    assert running.berth("pause", task_id(task), check=True).stdout.decode().strip() == task_id(task)
    paused_at = time.monotonic()
    time.sleep(2)
    said, used = clocks(tasks, task), host.cpu_usage_us(task_id(task))
    described = tasks.describe(task)
    assert described["lastStatus"] == "RUNNING"
    assert "berth.paused-at" in {attribute["name"] for attribute in described["attributes"]}
    assert "PAUSED" in running.berth("ps", check=True).stdout.decode()

    # A daemon that dies leaves it as it is.
    running.kill()
    running.start()
    tasks = Tasks(running, tasks.network)
    time.sleep(max(2, paused_at + PAUSED_SECONDS - time.monotonic()))
    assert clocks(tasks, task) == said, "a paused task said something"
    spent = host.cpu_usage_us(task_id(task)) - used
    assert spent < 500_000, f"a paused task took {spent} us of processor time"

    running.berth("resume", task_id(task), check=True)
    deadline = time.monotonic() + 120
    while len(now := clocks(tasks, task)) < len(said) + 4:
        assert time.monotonic() < deadline, f"it does not go on: {now}"
        time.sleep(0.2)
    assert now[: len(said)] == said
    walls, uptimes = zip(*now)
    assert list(walls) == sorted(walls) and list(uptimes) == sorted(uptimes), f"time ran backwards: {now}"
    assert walls[-1] - said[-1][0] >= PAUSED_SECONDS - 3, "its clock on the wall has missed the pause"
    assert "berth.paused-at" not in {attribute["name"] for attribute in tasks.describe(task)["attributes"]}

    # What is stopped in a pause hears of it.
    running.wire.berth("PauseTask", task=task_id(task))
    (ended,) = tasks.stop(task)
    assert container(ended)["exitCode"] == 5
    (line,) = running.wire.berth("GetBill", task=task_id(task))["lines"]
    assert PAUSED_SECONDS - 2 <= line["pausedSeconds"] < line["billedSeconds"]


def test_only_what_runs_can_be_paused(running, images, tasks):
    task = tasks.finish(images.busybox, "true")
    done = running.berth("pause", task_id(task))
    assert done.returncode == 1
    assert "only a task that is RUNNING" in done.stderr.decode(), done.stderr
    assert running.berth("resume", "ffffffffffff").returncode == 1
