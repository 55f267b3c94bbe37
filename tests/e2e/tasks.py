"""Tasks through boto3: defining, running, waiting for and reading them."""

import base64
import itertools
import time

# Enough for a start in the emulated lab, where a second of metal can be half a minute.
START_SECONDS = 400
STOP_SECONDS = 400
ROLE = "arn:aws:iam::123456789012:role/execution"
_names = itertools.count(1)


def task_id(task):
    """The id of a described task, or of an ARN."""
    arn = task if isinstance(task, str) else task["taskArn"]
    return arn.rsplit("/", 1)[-1]


class Tasks:
    """One daemon's tasks in one cluster."""

    def __init__(self, daemon, network, cluster="default"):
        self.daemon, self.network, self.cluster = daemon, network, cluster
        self.ecs, self.logs = daemon.client("ecs"), daemon.client("logs")

    def define(
        self, image, command=None, environment=None, cpu="1024", memory="2048", log_group=None, log_options=None, **container
    ):
        """Registers a definition of one container and returns its ARN.

        A whole vCPU where the test does not say: in the emulator a quarter of one takes four times as long to start.
        """
        main = {"name": "main", "image": image, "essential": True, **container}
        if command is not None:
            main["command"] = [command] if isinstance(command, str) else command
            if isinstance(command, str):
                main["command"] = ["sh", "-c", command]
        if environment:
            main["environment"] = [{"name": name, "value": value} for name, value in environment.items()]
        definition = {
            "family": f"e2e-{next(_names)}",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": cpu,
            "memory": memory,
            "containerDefinitions": [main],
        }
        if log_group:
            definition["executionRoleArn"] = ROLE
            main["logConfiguration"] = {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": log_group,
                    "awslogs-region": "us-east-1",
                    "awslogs-stream-prefix": "e2e",
                    "awslogs-create-group": "true",
                    **(log_options or {}),
                },
            }
        return self.ecs.register_task_definition(**definition)["taskDefinition"]["taskDefinitionArn"]

    def run(self, definition, count=1, **options):
        """RunTask; the described tasks, or the one if `count` is 1."""
        answer = self.ecs.run_task(
            cluster=self.cluster,
            taskDefinition=definition,
            launchType="FARGATE",
            count=count,
            networkConfiguration={"awsvpcConfiguration": self.network},
            **options,
        )
        assert not answer["failures"], answer["failures"]
        assert len(answer["tasks"]) == count
        return answer["tasks"][0] if count == 1 else answer["tasks"]

    def start(self, image, command=None, **options):
        """Defines, runs and waits until RUNNING; the task as it is then."""
        return self.wait(self.run(self.define(image, command, **options)), "RUNNING")

    def finish(self, image, command=None, **options):
        """Defines, runs and waits until STOPPED; the task as it is then."""
        return self.wait(self.run(self.define(image, command, **options)), "STOPPED")

    def describe(self, task):
        answer = self.ecs.describe_tasks(cluster=self.cluster, tasks=[task if isinstance(task, str) else task["taskArn"]])
        assert not answer["failures"], answer["failures"]
        return answer["tasks"][0]

    def wait(self, task, status, seconds=None):
        """The task once it is RUNNING or STOPPED. A task that stops while it should run fails the test."""
        deadline = time.monotonic() + (seconds or (START_SECONDS if status == "RUNNING" else STOP_SECONDS))
        while True:
            task = self.describe(task)
            if task["lastStatus"] == status:
                return task
            if task["lastStatus"] == "STOPPED":
                raise AssertionError(f"the task stopped: {task.get('stoppedReason')} {task['containers']}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the task is {task['lastStatus']} still, not {status}\n{self.daemon.tail()}")
            time.sleep(0.25)

    def stop(self, *tasks, reason="end of the test"):
        """Stops tasks and waits for their end."""
        for task in tasks:
            self.ecs.stop_task(cluster=self.cluster, task=task["taskArn"], reason=reason)
        return [self.wait(task, "STOPPED") for task in tasks]

    def output(self, task, stream="stdout", follow=False):
        """The bytes of one stream of the task's container: all so far, or up to its end."""
        data, position = bytearray(), 0
        while True:
            page = self.daemon.wire.berth(
                "GetOutput", task=task_id(task), position=position, waitSeconds=20 if follow else 0
            )
            for event in page["events"]:
                if event["stream"] == stream:
                    data += base64.b64decode(event["data"]) + (b"\n" if event["newline"] else b"")
            position = page["position"]
            if page["end"] or not (follow or page["events"]):
                return bytes(data)

    def wait_for_output(self, task, text, seconds=START_SECONDS):
        """Returns the output once it has this text."""
        deadline = time.monotonic() + seconds
        while True:
            output = self.output(task).decode(errors="replace")
            if text in output:
                return output
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} did not come; the output is {output[-2000:]!r}")
            time.sleep(0.5)


def container(task):
    """The only container of a task."""
    assert len(task["containers"]) == 1
    return task["containers"][0]


def eni(task):
    """The details of a task's network interface, by name."""
    (attachment,) = [one for one in task["attachments"] if one["type"] == "ElasticNetworkInterface"]
    return {detail["name"]: detail["value"] for detail in attachment["details"]}
