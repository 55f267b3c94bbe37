"""Every member of a task definition, in tasks that run: the definitions are in `definitions.py`. Several run at a time."""

import base64
import time

import conftest
import pytest
from definitions import CASES, PARAMETER, SECRET_VALUE
from tasks import STOP_SECONDS, Tasks, task_id

# Tasks at a time: of 512 MiB each, the host has room for them.
AT_ONCE = 6


class Runs:
    """The tasks of the cases of this run; those next in turn run while one is looked at."""

    def __init__(self, tasks, images, cases):
        self.tasks, self.images = tasks, images
        self.waiting, self.running = list(cases), {}

    def finish(self, case):
        """The definition and the task of this case, stopped. A second try of a test is a second task."""
        if case in self.waiting:
            self.waiting.remove(case)
        if case.name not in self.running:
            self._start(case)
        while self.waiting and len(self.running) < AT_ONCE:
            self._start(self.waiting.pop(0))
        definition, task = self.running.pop(case.name)
        return definition, self.tasks.wait(task, "STOPPED")

    def _start(self, case):
        described = [{**one, "image": getattr(self.images, one["image"])} for one in case.containers]
        definition = self.tasks.ecs.register_task_definition(
            family=case.name,
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu=case.cpu,
            memory=case.memory,
            containerDefinitions=described,
            **case.members,
        )["taskDefinition"]
        self.running[case.name] = definition, self.tasks.run(definition["taskDefinitionArn"], **case.run)

    def stop(self):
        self.tasks.stop(*(task for _, task in self.running.values()))


@pytest.fixture(scope="module")
def runs(request, daemon, images):
    if not daemon.is_alive():
        daemon.start()
    daemon.client("ssm").put_parameter(Name=PARAMETER, Value=SECRET_VALUE, Type="SecureString", Overwrite=True)
    selected = [item.callspec.params["case"] for item in request.session.items if "case" in getattr(item, "fixturenames", [])]
    runs = Runs(Tasks(daemon, conftest.default_network(daemon)), images, selected)
    yield runs
    runs.stop()
    daemon.client("ssm").delete_parameter(Name=PARAMETER)


def output(daemon, task, name):
    """What a container wrote, its two streams together."""
    text, position = b"", 0
    while True:
        page = daemon.wire.berth("GetOutput", task=task_id(task), container=name, position=position, waitSeconds=0)
        for event in page["events"]:
            text += base64.b64decode(event["data"]) + (b"\n" if event["newline"] else b"")
        position = page["position"]
        if page["end"] or not page["events"]:
            return text.decode(errors="replace")


def check(what, found, expected):
    """A list are texts that are to be in it, a dict members, and anything else all of it."""
    if isinstance(expected, list):
        missing = [text for text in expected if text not in (found or "")]
        assert not missing, f"{what}: {missing} is not in {found!r}"
    elif isinstance(expected, dict):
        for member, value in expected.items():
            check(f"{what}.{member}", found.get(member), value)
    else:
        assert found == expected, f"{what} is {found!r}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_definition(runs, daemon, case):
    definition, task = runs.finish(case)
    found = {one["name"]: one for one in task["containers"]}
    said = {name: output(daemon, task, name) for name in found}
    for name, end in case.ends.items():
        member = "exitCode" if isinstance(end, int) else "reason"
        state = f"{task.get('stoppedReason')}; {found[name].get('reason')}; it wrote {said[name]!r}"
        check(f"{member} of {name} ({state})", found[name].get(member), end)
    for name, text in case.says.items():
        check(f"output of {name}", said[name], text)
    check("task", {**task, "containers": found}, case.described)

    # What was asked for is described: the definition's own members, and those of each container.
    for member, value in case.members.items():
        assert definition[member] == value, member
    for given, described in zip(case.containers, definition["containerDefinitions"], strict=True):
        for member, value in given.items():
            if member not in ("image", "mountPoints", "volumesFrom", "linuxParameters"):
                assert described[member] == value, f"{given['name']}.{member}"
        for member in ("mountPoints", "volumesFrom"):
            wanted = [{"readOnly": False, **point} for point in given.get(member, [])]
            assert described[member] == wanted, f"{given['name']}.{member}"


def test_a_command_sees_the_processes_that_containers_share(running, tasks, images):
    definition = tasks.ecs.register_task_definition(
        family="shared-processes",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        pidMode="task",
        cpu="1024",
        memory="2048",
        containerDefinitions=[
            {"name": "app", "image": images.busybox, "command": ["sleep", "3333"], "stopTimeout": 2},
            {"name": "tool", "image": images.busybox, "command": ["sleep", "4444"], "stopTimeout": 2, "essential": False},
        ],
    )["taskDefinition"]["taskDefinitionArn"]
    task = tasks.wait(tasks.run(definition), "RUNNING")
    seen = running.berth("exec", "-c", "tool", task_id(task), "--", "ps", "-o", "args", check=True).stdout.decode()
    assert {"sleep 3333", "sleep 4444"} <= set(seen.splitlines())
    # The end of the container that a command is in ends the command, which tells of it; the other container goes on.
    line = "kill -9 $(ps -o pid,args | awk '/sleep 4444/ && !/awk/ { print $1 }'); sleep 100"
    ended = running.berth("exec", "-c", "tool", task_id(task), "--", "sh", "-c", line)
    assert ended.returncode == 137, ended
    stopped = tasks.stop(tasks.wait(task, "RUNNING"))[0]
    codes = {one["name"]: one.get("exitCode") for one in stopped["containers"]}
    # The first process is none of the namespace's, so the stop signal ends it.
    assert codes == {"app": 143, "tool": 137}


def test_who_shares_processes_cannot_hide_the_end_of_another(tasks, images):
    # It holds and fills the other's output, and ends it.
    line = """until test -n "$pid"; do pid=$(ps -o pid,args | awk '/sleep [3]333/ { print $1 }'); done
exec 3> /proc/$pid/fd/1
yes >&3 &
sleep 1
kill -9 $pid
sleep 100000"""
    definition = tasks.ecs.register_task_definition(
        family="shared-output",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        pidMode="task",
        cpu="1024",
        memory="2048",
        containerDefinitions=[
            {
                "name": "app",
                "image": images.busybox,
                "command": ["sleep", "3333"],
                "stopTimeout": 2,
                "essential": False,
            },
            {"name": "tool", "image": images.busybox, "command": ["sh", "-c", line], "stopTimeout": 2},
        ],
    )["taskDefinition"]["taskDefinitionArn"]
    task = tasks.wait(tasks.run(definition), "RUNNING")
    deadline = time.monotonic() + STOP_SECONDS
    codes = {}
    while codes.get("app") is None and time.monotonic() < deadline:
        time.sleep(1)
        described = tasks.describe(task)
        codes = {one["name"]: one.get("exitCode") for one in described["containers"]}
    assert codes == {"app": 137, "tool": None} and described["lastStatus"] == "RUNNING", described
    tasks.stop(described)
