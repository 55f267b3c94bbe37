"""Other people's clients, unmodified: the aws CLI and boto3, and what they see of a task's life and output."""

import hashlib
import json
import time

from tasks import ROLE, container, eni, task_id

FIVE_MIB = 5 * 1024 * 1024


def test_aws_cli_runs_watches_and_stops_a_task(running, images, tasks):
    definition = {
        "family": "aws-cli",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "executionRoleArn": ROLE,
        "containerDefinitions": [
            {
                "name": "main",
                "image": images.busybox,
                "command": ["sh", "-c", "echo hello from the task; trap 'exit 0' TERM; sleep 3600 & wait"],
                "logConfiguration": {
                    "logDriver": "awslogs",
                    "options": {
                        "awslogs-group": "/e2e/aws-cli",
                        "awslogs-region": "us-east-1",
                        "awslogs-stream-prefix": "cli",
                    },
                },
            }
        ],
    }
    registered = json.loads(
        running.aws("ecs", "register-task-definition", "--cli-input-json", json.dumps(definition))
    )["taskDefinition"]
    assert registered["taskDefinitionArn"].endswith(":task-definition/aws-cli:1")
    assert registered["status"] == "ACTIVE"
    assert registered["compatibilities"] == ["EC2", "FARGATE"]

    network = json.dumps({"awsvpcConfiguration": tasks.network})
    started = json.loads(
        running.aws(
            *("ecs", "run-task", "--cluster", "default", "--task-definition", "aws-cli"),
            *("--launch-type", "FARGATE", "--network-configuration", network),
        )
    )
    assert started["failures"] == []
    arn = started["tasks"][0]["taskArn"]

    running.aws("ecs", "wait", "tasks-running", "--cluster", "default", "--tasks", arn)
    task = json.loads(running.aws("ecs", "describe-tasks", "--cluster", "default", "--tasks", arn))["tasks"][0]
    assert task["lastStatus"] == "RUNNING"
    assert task["launchType"] == "FARGATE"
    assert container(task)["lastStatus"] == "RUNNING"
    assert container(task)["imageDigest"] == images.digests["busybox"]
    assert eni(task)["subnetId"] == tasks.network["subnets"][0]

    events = json.loads(
        running.aws(
            *("logs", "get-log-events", "--log-group-name", "/e2e/aws-cli"),
            *("--log-stream-name", f"cli/main/{task_id(arn)}", "--start-from-head"),
        )
    )["events"]
    assert [event["message"] for event in events] == ["hello from the task"]

    running.aws("ecs", "stop-task", "--cluster", "default", "--task", arn, "--reason", "seen enough")
    running.aws("ecs", "wait", "tasks-stopped", "--cluster", "default", "--tasks", arn)
    stopped = tasks.describe(arn)
    assert (stopped["stopCode"], stopped["stoppedReason"]) == ("UserInitiated", "seen enough")
    assert container(stopped)["exitCode"] == 0


def test_boto3_runs_watches_and_stops_a_task(running, images, tasks):
    definition = tasks.define(images.busybox, "echo to stdout; echo to stderr >&2; sleep 3600", log_group="/e2e/boto3")
    task = tasks.run(definition, tags=[{"key": "team", "value": "blue"}], startedBy="boto3")
    assert task["lastStatus"] == "PROVISIONING"
    quick = {"Delay": 1, "MaxAttempts": 300}
    tasks.ecs.get_waiter("tasks_running").wait(tasks=[task["taskArn"]], WaiterConfig=quick)
    tasks.wait_for_output(task, "to stdout")
    described = tasks.ecs.describe_tasks(tasks=[task["taskArn"]], include=["TAGS"])["tasks"][0]
    assert described["tags"] == [{"key": "team", "value": "blue"}]
    assert described["startedBy"] == "boto3"
    assert task["taskArn"] in tasks.ecs.list_tasks(startedBy="boto3")["taskArns"]

    deadline = time.monotonic() + 60
    while True:
        pages = tasks.logs.get_paginator("filter_log_events").paginate(logGroupName="/e2e/boto3")
        messages = sorted(event["message"] for page in pages for event in page["events"])
        if messages == ["to stderr", "to stdout"]:
            break
        assert time.monotonic() < deadline, messages
        time.sleep(1)

    tasks.ecs.stop_task(task=task["taskArn"], reason="done")
    tasks.ecs.get_waiter("tasks_stopped").wait(tasks=[task["taskArn"]], WaiterConfig=quick)
    stopped = tasks.describe(task)
    assert stopped["desiredStatus"] == stopped["lastStatus"] == "STOPPED"
    times = ["createdAt", "pullStartedAt", "pullStoppedAt", "startedAt", "executionStoppedAt", "stoppedAt"]
    seen = [stopped[name] for name in times]
    assert seen == sorted(seen), dict(zip(times, seen))


def test_exit_code_of_the_container_arrives(images, tasks):
    task = tasks.finish(images.busybox, "exit 7")
    assert container(task)["exitCode"] == 7
    assert task["stopCode"] == "EssentialContainerExited"
    assert task["stoppedReason"] == "Essential container in task exited"


def test_container_killed_by_a_signal_exits_with_128_and_the_signal(images, tasks):
    # The first process of a container is immune to signals from within, as pid 1 of its namespace: a child dies, and
    # its parent becomes what died.
    task = tasks.finish(images.busybox, "sh -c 'kill -KILL $$'; exit $?")
    assert container(task)["exitCode"] == 137


def test_container_that_ignores_its_stop_signal_is_killed(images, tasks):
    task = tasks.start(images.busybox, "trap '' TERM; echo deaf; while :; do sleep 1; done", stopTimeout=2)
    tasks.wait_for_output(task, "deaf")
    (stopped,) = tasks.stop(task)
    assert container(stopped)["exitCode"] == 137


def test_environment_and_overrides_reach_the_container(images, tasks):
    definition = tasks.define(images.busybox, "echo $A $B", environment={"A": "defined", "B": "defined"})
    task = tasks.run(
        definition,
        overrides={"containerOverrides": [{"name": "main", "environment": [{"name": "B", "value": "overridden"}]}]},
    )
    tasks.wait(task, "STOPPED")
    assert tasks.output(task) == b"defined overridden\n"


def test_binary_output_arrives_byte_for_byte(running, images, tasks):
    script = f"head -c {FIVE_MIB} /dev/urandom > /random; sha256sum < /random >&2; cat /random"
    task = tasks.finish(images.busybox, script)
    assert container(task)["exitCode"] == 0
    data = tasks.output(task, follow=True)
    digest = tasks.output(task, stream="stderr", follow=True).split()[0].decode()
    assert len(data) == FIVE_MIB
    assert hashlib.sha256(data).hexdigest() == digest
    assert running.berth("logs", task_id(task), check=True).stdout == data


def test_log_events_have_every_line(images, tasks):
    # 4 MiB less a quarter is 5 MiB of base64; its own digest is the last line.
    script = (
        f"head -c {FIVE_MIB * 3 // 4} /dev/urandom | base64 > /lines; cat /lines; echo end $(sha256sum < /lines)"
    )
    task = tasks.finish(images.busybox, script, log_group="/e2e/lines")
    assert container(task)["exitCode"] == 0
    lines, token = [], None
    while True:
        page = tasks.logs.get_log_events(
            logGroupName="/e2e/lines",
            logStreamName=f"e2e/main/{task_id(task)}",
            startFromHead=True,
            **({"nextToken": token} if token else {}),
        )
        lines += [event["message"] for event in page["events"]]
        # The token repeats at the end.
        if page["nextForwardToken"] == token:
            break
        token = page["nextForwardToken"]
    end, digest, _ = lines.pop().split()
    assert end == "end"
    assert hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest() == digest
