"""Tasks of several containers: their order, their health, what they share, and how each failure ends the task."""

import base64
import itertools
import time

import pytest
from tasks import START_SECONDS, task_id

_families = itertools.count(1)
# Containers wait for each other, and checks have intervals of seconds: slow processors need their time on top.
LIMITS = {"startTimeout": 120, "stopTimeout": 20}


def define(tasks, image, containers, **members):
    """A definition of these containers, whose command is a line for the shell."""
    described = []
    for name, line, more in containers:
        described.append({"name": name, "image": image, "command": ["sh", "-c", line], **LIMITS, **more})
    answer = tasks.ecs.register_task_definition(
        family=f"containers-{next(_families)}",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="1024",
        memory="2048",
        containerDefinitions=described,
        **members,
    )
    return answer["taskDefinition"]["taskDefinitionArn"]


def after(**conditions):
    return {"dependsOn": [{"containerName": name, "condition": condition} for name, condition in conditions.items()]}


def by_name(task):
    return {container["name"]: container for container in task["containers"]}


def output(daemon, task, name):
    done = daemon.berth("logs", "--container", name, task_id(task), check=True)
    return done.stdout.decode()


SHARED = {"mountPoints": [{"sourceVolume": "shared", "containerPath": "/shared"}]}
WAIT = "while true; do sleep 1; done"


def speaking(name, line, **more):
    """A container that tells when it starts, and when it is told to stop."""
    return name, f"trap 'echo stops; exit 0' TERM; echo starts; {line}", {**SHARED, **more}


def told(daemon, task, names):
    """What containers of a task wrote, in the order in which it came: pairs of name and line."""
    lines = []
    for name in names:
        page = daemon.wire.berth("GetOutput", task=task_id(task), container=name, position=0, waitSeconds=0)
        for event in page["events"]:
            lines.append((event["timestamp"], name, base64.b64decode(event["data"]).decode()))
    return [(name, line) for _, name, line in sorted(lines, key=lambda line: line[0])]


def wait_until_told(daemon, task, names, count):
    """What containers of a task wrote, once it is so many lines."""
    deadline = time.monotonic() + START_SECONDS
    while len(lines := told(daemon, task, names)) < count:
        assert time.monotonic() < deadline, f"no more than this came: {lines}"
        time.sleep(0.5)
    return lines


def test_four_containers_start_in_their_order_and_stop_in_reverse(running, images, tasks):
    check = {"healthCheck": {"command": ["CMD-SHELL", "test -e /ready"], "interval": 5, "timeout": 60, "retries": 3}}
    definition = define(
        tasks,
        images.busybox,
        [
            speaking("shipper", WAIT, essential=False, **after(app="START")),
            speaking("app", f"cat /shared/file; {WAIT}", **after(init="SUCCESS", db="HEALTHY")),
            speaking("db", f"sleep 2; touch /ready; {WAIT}", **check, **after(init="COMPLETE")),
            speaking("init", "sleep 2; echo made > /shared/file", essential=False),
        ],
        volumes=[{"name": "shared", "host": {}}],
    )
    task = tasks.wait(tasks.run(definition), "RUNNING")
    # Only the essential ones count, and of those only what has a check.
    assert task["healthStatus"] == "HEALTHY"
    found = by_name(task)
    status = {name: (one["lastStatus"], one["healthStatus"]) for name, one in found.items()}
    assert status == {
        "shipper": ("RUNNING", "UNKNOWN"),
        "app": ("RUNNING", "UNKNOWN"),
        "db": ("RUNNING", "HEALTHY"),
        "init": ("STOPPED", "UNKNOWN"),
    }
    assert found["init"]["exitCode"] == 0
    # Of a container that was only started nobody knows whether it has said so already, or would hear a signal.
    lines = wait_until_told(running, task, found, 5)
    assert sorted(lines) == sorted([*((name, "starts") for name in found), ("app", "made")])
    order = [name for name, line in lines if line == "starts" and name != "shipper"]
    assert order == ["init", "db", "app"] and lines.index(("shipper", "starts")) > lines.index(("db", "starts"))
    (stopped,) = tasks.stop(task)
    assert stopped["stopCode"] == "UserInitiated"
    assert {name: one["exitCode"] for name, one in by_name(stopped).items()} == dict.fromkeys(found, 0)
    assert told(running, task, found)[5:] == [("shipper", "stops"), ("app", "stops"), ("db", "stops")]


@pytest.mark.parametrize(
    "waits_for, line, reason",
    [
        ("SUCCESS", "exit 3", 'container "first" ended with the exit code 3'),
        ("HEALTHY", "sleep 3600", 'container "first" is unhealthy'),
        ("COMPLETE", "sleep 3600", 'container "first" did not reach COMPLETE within 2 s'),
    ],
)
def test_a_container_that_cannot_come_to_its_start_ends_the_task(images, tasks, waits_for, line, reason):
    check = {"command": ["CMD", "false"], "interval": 5, "timeout": 60, "retries": 1}
    first = {"essential": False, "stopTimeout": 2, "startTimeout": 2 if waits_for == "COMPLETE" else 120}
    if waits_for == "HEALTHY":
        first["healthCheck"] = check
    definition = define(tasks, images.busybox, [("first", line, first), ("app", "echo never", after(first=waits_for))])
    task = tasks.wait(tasks.run(definition), "STOPPED")
    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"] == f"CannotStartContainerError: {reason}"
    found = by_name(task)
    assert found["app"]["reason"] == task["stoppedReason"] and "exitCode" not in found["app"]
    assert found["first"]["exitCode"] == (3 if waits_for == "SUCCESS" else 137)
    assert "startedAt" not in task


def test_the_end_of_an_essential_container_ends_the_others(running, images, tasks):
    definition = define(
        tasks,
        images.busybox,
        [
            ("app", "echo app; sleep 2; exit 7", after(brief="COMPLETE", deaf="START")),
            ("deaf", "trap '' TERM; echo deaf; while true; do sleep 1; done", {"stopTimeout": 2, "essential": False}),
            ("brief", "echo brief", {"essential": False}),
        ],
    )
    task = tasks.wait(tasks.run(definition), "STOPPED")
    assert (task["stopCode"], task["stoppedReason"]) == (
        "EssentialContainerExited",
        "Essential container in task exited",
    )
    assert {name: one["exitCode"] for name, one in by_name(task).items()} == {"app": 7, "deaf": 137, "brief": 0}
    assert [output(running, task, name) for name in ("app", "deaf", "brief")] == ["app\n", "deaf\n", "brief\n"]


def test_a_container_starts_again_and_has_its_mounts(running, images, tasks):
    look = "ls -ld /own | cut -c1-10; echo no > /shared/x 2>/dev/null || echo read-only; grep -c '^tmpfs /own ' /proc/mounts"
    again = {
        "restartPolicy": {"enabled": True, "ignoredExitCodes": [0], "restartAttemptPeriod": 60},
        "linuxParameters": {"tmpfs": [{"containerPath": "/own", "size": 8, "mountOptions": ["mode=0711"]}]},
        "volumesFrom": [{"sourceContainer": "writer", "readOnly": True}],
    }
    # The first run ends with 3 after more than its period, the second one with 0, which is ignored.
    line = f"{look}; n=$(cat /count 2>/dev/null); echo run $n; echo again > /count; [ -n \"$n\" ] || {{ sleep 62; exit 3; }}"
    definition = define(
        tasks,
        images.busybox,
        [("app", line, again), ("writer", "sleep 1", {"essential": False, **SHARED})],
        volumes=[{"name": "shared"}],
    )
    task = tasks.wait(tasks.run(definition), "STOPPED")
    found = by_name(task)
    assert (found["app"]["exitCode"], found["writer"]["exitCode"]) == (0, 0)
    mounts = "drwx--x--x\nread-only\n1\n"
    assert output(running, task, "app") == f"{mounts}run\n{mounts}run again\n"
