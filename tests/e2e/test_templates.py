"""Tasks that start as clones of a template: each is itself all the same."""

import json
from pathlib import Path

import host
import pytest
import test_volumes as volumes
from tasks import ROLE, Tasks, eni, task_id

# Who it is, when it is, and that its disks and its network are its own.
SAYS = (
    "date +%s; cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address;"
    "df -k / | tail -1; ping -c 1 -W 10 $(ip route | awk '/default/ {print $3}') >/dev/null && echo reached; sleep 3600"
)
CLONES = 3
# A size of these tests' own, whose template no other test made.
SIZE = {"cpu": "512", "memory": "1024", "stopTimeout": 2}
SHAPE = "1x1024-"


def is_clone(task):
    """Whether the task's machine shares the memory of a template."""
    return "/templates/" in Path(f"/proc/{host.machine_of(task_id(task))}/maps").read_text()


def words(tasks, task):
    lines = tasks.wait_for_output(task, "reached").splitlines()
    now, boot_id, uuid, mac, disk = lines[:5]
    return {"now": int(now), "boot id": boot_id, "uuid": uuid, "mac": mac, "disk": int(disk.split()[1])}


@pytest.fixture
def tasks_of(daemon, tasks):
    """The tasks of other clusters. Those that a test leaves are stopped after it, and the clusters deleted."""
    clusters = set()

    def of(cluster):
        clusters.add(cluster)
        return Tasks(daemon, tasks.network, cluster)

    yield of
    for cluster in clusters:
        left = Tasks(daemon, tasks.network, cluster)
        left.stop(*({"taskArn": arn} for arn in left.ecs.list_tasks(cluster=cluster)["taskArns"]))
        left.ecs.delete_cluster(cluster=cluster)


def test_clones_of_a_template_are_each_themselves(images, daemon_with, daemon, tasks):
    daemon_with()
    definition = tasks.define(images.busybox, SAYS, **SIZE)
    first = tasks.wait(tasks.run(definition), "RUNNING")
    assert not is_clone(first)
    seen = [words(tasks, first)]
    daemon.wait_for_template(SHAPE)
    for clone in tasks.run(definition, count=CLONES):
        clone = tasks.wait(clone, "RUNNING")
        said = words(tasks, clone)
        assert is_clone(clone)
        assert said["mac"] == eni(clone)["macAddress"]
        assert said["disk"] == seen[0]["disk"] > 19 << 20
        # The template's own clock has stood still since it was written down.
        assert abs(said["now"] - clone["startedAt"].timestamp()) < 5
        seen.append(said)
    for what in ["boot id", "uuid", "mac"]:
        values = [said[what] for said in seen]
        assert len(set(values)) == len(values), f"{what}: {values}"


def test_strict_isolation_boots_every_task(images, daemon_with, daemon, tasks_of):
    daemon_with("--isolation=strict")
    # A cluster cannot loosen it.
    shared = daemon.client("ecs").create_cluster(
        clusterName="shared", tags=[{"key": "berth:isolation", "value": "shared"}]
    )
    assert shared["cluster"]["tags"] == [{"key": "berth:isolation", "value": "shared"}]
    tasks = tasks_of("shared")
    definition = tasks.define(images.busybox, "echo up; sleep 3600", **SIZE)
    for _ in range(2):
        task = tasks.wait(tasks.run(definition), "RUNNING")
        tasks.wait_for_output(task, "up")
        assert not is_clone(task)
        tasks.stop(task)
    assert [path.name for path in (daemon.data_dir / "templates").iterdir()] == ["placeholder"]


def isolation(task):
    """What the task's description says of it."""
    return {attribute["name"]: attribute["value"] for attribute in task["attributes"]}.get("berth.isolation")


def test_a_cluster_chooses_strict_isolation_for_its_tasks(images, daemon_with, daemon, tasks, tasks_of):
    daemon_with()
    created = json.loads(
        daemon.aws("ecs", "create-cluster", "--cluster-name=strict", "--tags=key=berth:isolation,value=strict")
    )
    arn, strict = created["cluster"]["clusterArn"], tasks_of("strict")
    for bad in ["Strict", "none", ""]:
        with pytest.raises(AssertionError, match=f"Invalid value '{bad}' of the tag 'berth:isolation'"):
            daemon.aws("ecs", "tag-resource", "--resource-arn", arn, f"--tags=key=berth:isolation,value={bad}")
    definition = tasks.define(images.busybox, "echo up; sleep 3600", **SIZE)

    def started(of, clone, said):
        task = of.wait(of.run(definition), "RUNNING")
        of.wait_for_output(task, "up")
        assert (is_clone(task), isolation(task)) == (clone, said)
        return task

    # It makes no template either.
    running = started(strict, False, "strict")
    tasks.stop(started(tasks, False, None))
    daemon.wait_for_template(SHAPE)
    tasks.stop(started(tasks, True, None))
    strict.stop(started(strict, False, "strict"))

    # The choice outlives the daemon, and so does the task that runs.
    daemon.kill()
    daemon.start()
    tasks, strict = Tasks(daemon, tasks.network), tasks_of("strict")
    tasks.stop(started(tasks, False, None))
    daemon.wait_for_template(SHAPE)
    strict.stop(started(strict, False, "strict"))
    # Another choice is for tasks to come.
    daemon.aws("ecs", "untag-resource", "--resource-arn", arn, "--tag-keys=berth:isolation")
    assert json.loads(daemon.aws("ecs", "list-tags-for-resource", "--resource-arn", arn))["tags"] == []
    assert isolation(strict.describe(running)) == "strict" and not is_clone(running)
    strict.stop(started(strict, True, None), running)


def test_a_task_boots_where_its_clone_cannot_start(images, daemon_with, daemon, tasks):
    # What waits has read the state already.
    daemon_with("--waiting-machines=0")
    definition = tasks.define(images.busybox, "echo up; sleep 3600", **SIZE)
    tasks.stop(tasks.wait(tasks.run(definition), "RUNNING"))
    daemon.wait_for_template(SHAPE)
    [state] = (daemon.data_dir / "templates").glob(f"{SHAPE}*/state")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    for _ in range(2):
        task = tasks.wait(tasks.run(definition), "RUNNING")
        tasks.wait_for_output(task, "up")
        assert not is_clone(task)
        tasks.stop(task)
    # It is not tried again.
    assert daemon.said().count("a clone did not start") == 1


def test_a_clone_has_the_volume_of_its_task(images, daemon_with, daemon, tasks):
    daemon_with()
    daemon.berth("volume", "create", "cloned", "--size=1", check=True)
    mounted = "grep -q ' /data ext4 ' /proc/mounts && cat /data/said 2>/dev/null; echo more >> /data/said; echo done; sleep 3600"
    definition = volumes.define(tasks, images.busybox, mounted, cpu="512", memory="3072")
    configuration = {"name": "data", "managedEBSVolume": {"roleArn": ROLE, "snapshotId": "cloned"}}
    for turn in range(2):
        task = tasks.wait(tasks.run(definition, volumeConfigurations=[configuration]), "RUNNING")
        assert tasks.wait_for_output(task, "done") == "more\n" * turn + "done\n"
        assert is_clone(task) == (turn > 0)
        if turn == 0:
            daemon.wait_for_template("1x3072-")
        tasks.stop(task)
    daemon.berth("volume", "rm", "cloned", check=True)
