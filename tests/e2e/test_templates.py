"""Tasks that start as clones of a template: each is itself all the same."""

from pathlib import Path

import host
import test_volumes as volumes
from tasks import ROLE, eni, task_id

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


def test_strict_isolation_boots_every_task(images, daemon_with, daemon, tasks):
    daemon_with("--isolation=strict")
    definition = tasks.define(images.busybox, "echo up; sleep 3600", **SIZE)
    for _ in range(2):
        task = tasks.wait(tasks.run(definition), "RUNNING")
        tasks.wait_for_output(task, "up")
        assert not is_clone(task)
        tasks.stop(task)
    assert [path.name for path in (daemon.data_dir / "templates").iterdir()] == ["placeholder"]


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
