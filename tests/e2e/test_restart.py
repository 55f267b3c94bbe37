"""The daemon goes and comes back; its tasks do not notice, and nothing is lost or said twice."""

import os
import signal
import subprocess
import time

import host
import product
from tasks import Tasks, container, task_id

AWAY_SECONDS = 15


def again(running, tasks):
    """The daemon, started again, and clients of it."""
    running.start()
    return Tasks(running, tasks.network)


def test_tasks_run_on_while_the_daemon_is_away(running, images, tasks):
    lines = 400
    script = f"i=0; while [ $i -lt {lines} ]; do echo line $i; echo error $i >&2; i=$((i+1)); sleep 0.05; done; exit 3"
    task = tasks.start(images.busybox, script)
    machine = host.machine_of(task_id(task))
    tasks.wait_for_output(task, "line 3\n")
    assert running.stop() == 0
    time.sleep(3)
    tasks = again(running, tasks)
    assert tasks.describe(task)["lastStatus"] == "RUNNING"
    assert host.machine_of(task_id(task)) == machine, "the task runs on another machine now"
    for _ in range(3):
        tasks.wait_for_output(task, "line ")
        running.kill()
        time.sleep(1)
        tasks = again(running, tasks)
    ended = tasks.wait(task, "STOPPED")
    assert container(ended)["exitCode"] == 3
    assert ended["startedAt"] == task["startedAt"]
    for stream, word in [("stdout", "line"), ("stderr", "error")]:
        output = tasks.output(task, stream=stream, follow=True).decode()
        assert output == "".join(f"{word} {number}\n" for number in range(lines))


def test_task_that_ends_while_the_daemon_is_away_is_accounted_for(running, images, tasks):
    task = tasks.start(images.busybox, "echo up; sleep 5; echo bye; exit 9")
    tasks.wait_for_output(task, "up")
    assert running.stop() == 0
    time.sleep(AWAY_SECONDS)
    back_at = time.time()
    tasks = again(running, tasks)
    ended = tasks.wait(task, "STOPPED")
    assert container(ended)["exitCode"] == 9
    assert ended["stopCode"] == "EssentialContainerExited"
    assert tasks.output(task, follow=True) == b"up\nbye\n"
    assert ended["executionStoppedAt"].timestamp() < back_at, "billed for the time that the daemon was away"
    (line,) = running.wire.berth("GetBill", task=task_id(task))["lines"]
    assert not line["open"] and not line["closedAtLastHeartbeat"]


def test_machine_that_dies_while_the_daemon_is_away_is_accounted_for(running, images, tasks):
    task = tasks.start(images.busybox, "echo up; sleep 3600")
    tasks.wait_for_output(task, "up")
    machine = host.machine_of(task_id(task))
    running.kill()
    os.kill(machine, signal.SIGKILL)
    tasks = again(running, tasks)
    ended = tasks.wait(task, "STOPPED")
    assert ended["stoppedReason"] and "exitCode" not in container(ended)
    assert tasks.output(task, follow=True) == b"up\n"
    (line,) = running.wire.berth("GetBill", task=task_id(task))["lines"]
    assert not line["open"]


def test_stop_that_was_asked_for_survives_a_crash(running, images, tasks):
    task = tasks.start(images.busybox, "trap '' TERM; echo deaf; while :; do sleep 1; done", stopTimeout=5)
    tasks.wait_for_output(task, "deaf")
    tasks.ecs.stop_task(task=task["taskArn"], reason="before the crash")
    running.kill()
    tasks = again(running, tasks)
    ended = tasks.wait(task, "STOPPED")
    assert (ended["stopCode"], ended["stoppedReason"]) == ("UserInitiated", "before the crash")
    assert container(ended)["exitCode"] == 137


def test_definitions_and_clusters_survive_a_crash(running, images, tasks):
    arn = tasks.define(images.busybox, "true")
    tasks.ecs.create_cluster(clusterName="lasting")
    running.kill()
    tasks = again(running, tasks)
    assert tasks.ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]["status"] == "ACTIVE"
    assert tasks.ecs.describe_clusters(clusters=["lasting"])["clusters"][0]["status"] == "ACTIVE"
    tasks.ecs.delete_cluster(cluster="lasting")


def test_one_daemon_for_one_data_directory(running):
    done = subprocess.run(
        [product.BERTH, "serve", *running.arguments[:1], "--listen=127.0.0.1:0", *running.arguments[3:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "another `berth serve` uses" in line


def test_keys_are_kept_and_private(running):
    keys, mode = running.keys, (running.data_dir / "credentials").stat().st_mode
    assert mode & 0o777 == 0o600
    running.stop()
    running.start()
    assert running.keys == keys
