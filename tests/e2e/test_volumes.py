"""Volumes: what is on them outlives tasks, machines and daemons, and one task has one at a time."""

import itertools
import json
import os
import signal

import botocore.exceptions
import host
import pytest
from tasks import ROLE, Tasks, container, task_id

_families = itertools.count(1)
MIB = 1 << 20


def define(tasks, image, line, cpu="1024", memory="2048"):
    """A definition whose container has a volume at /data, which each task names."""
    answer = tasks.ecs.register_task_definition(
        family=f"volumes-{next(_families)}",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu=cpu,
        memory=memory,
        volumes=[{"name": "data", "configuredAtLaunch": True}],
        containerDefinitions=[
            {
                "name": "main",
                "image": image,
                "essential": True,
                "command": ["sh", "-c", line],
                "stopTimeout": 2,
                "mountPoints": [{"sourceVolume": "data", "containerPath": "/data"}],
            }
        ],
    )
    return answer["taskDefinition"]["taskDefinitionArn"]


def run(tasks, image, line, **volume):
    configuration = {"name": "data", "managedEBSVolume": {"roleArn": ROLE, **volume}}
    return tasks.run(define(tasks, image, line), volumeConfigurations=[configuration])


def said(tasks, image, line, **volume):
    """What a task that ends well wrote."""
    ended = tasks.wait(run(tasks, image, line, **volume), "STOPPED")
    output = tasks.output(ended, follow=True).decode()
    assert container(ended).get("exitCode") == 0, f"{ended.get('stoppedReason')} {container(ended)} {output}"
    return output


def attachment(task):
    """The volume of a described task: its status, and its details by name."""
    (found,) = [one for one in task["attachments"] if one["type"] == "AmazonElasticBlockStorage"]
    return found["status"], {detail["name"]: detail["value"] for detail in found["details"]}


def listed(daemon):
    """All volumes and snapshots, by name or, without one, by id."""
    answer = json.loads(daemon.berth("volume", "ls", "--json", check=True).stdout)
    return {volume["name"] or volume["volumeId"]: volume for volume in answer["volumes"]}


@pytest.fixture
def volume(running):
    """An empty volume of 1 GiB; after the test there is no volume at all."""
    name = f"volume-{next(_families)}"
    assert running.berth("volume", "create", name, "--size", "1", check=True).stdout.decode() == f"{name}\n"
    yield name
    if not running.is_alive():
        running.start()
    left = list(listed(running))
    tasks = Tasks(running, None)
    for arn in tasks.ecs.list_tasks()["taskArns"]:
        tasks.stop({"taskArn": arn})
    for name in left:
        running.berth("volume", "rm", name)
    assert listed(running) == {}
    assert list((running.data_dir / "volumes").iterdir()) == []


def test_what_a_task_writes_is_there_for_the_next_one_and_for_no_other_before(running, images, tasks, volume):
    line = "ls -a /data | wc -l; grep ' /data ' /proc/mounts; echo kept > /data/file; echo written; sleep 3600"
    first = tasks.wait(run(tasks, images.busybox, line, snapshotId=volume), "RUNNING")
    entries, mounted = tasks.wait_for_output(first, "written").splitlines()[:2]
    assert entries == "2", "a new volume is not empty"
    device, _, kind, options = mounted.split()[:4]
    assert kind == "ext4" and {"rw", "nodev"} <= set(options.split(",")), mounted
    status, details = attachment(tasks.describe(first))
    assert status == "ATTACHED"
    assert details["volumeId"] == listed(running)[volume]["volumeId"]
    assert details["deleteOnTermination"] == "false"
    in_use = f"The volume '{volume}' is in use by task {task_id(first)}."
    with pytest.raises(botocore.exceptions.ClientError) as refused:
        run(tasks, images.busybox, "true", snapshotId=volume)
    assert refused.value.response["Error"] == {"Code": "InvalidParameterException", "Message": in_use}
    for command in [["rm", volume], ["snapshot", volume], ["snapshot", volume, "--as", "other"]]:
        done = running.berth("volume", *command)
        assert done.returncode == 1 and in_use in done.stderr.decode(), done
    assert listed(running)[volume]["state"] == "attached"
    (ended,) = tasks.stop(first)
    assert attachment(ended)[0] == "DETACHED"
    done = running.berth("run", "--quiet", f"--volume={volume}:/data:ro", "--cpu=1024", "--memory=2048",
                         images.busybox, "sh", "-c", "cat /data/file; ! touch /data/other")
    assert (done.returncode, done.stdout) == (0, b"kept\n"), done


def test_a_volume_is_as_large_as_it_was_made_and_gives_back_what_is_deleted(running, images, tasks, volume):
    fill = "dd if=/dev/zero of=/data/zeros bs=1M count=200 2>/dev/null && sync; echo filled; sleep 3600"
    first = tasks.wait(run(tasks, images.busybox, fill, snapshotId=volume), "RUNNING")
    tasks.wait_for_output(first, "filled")
    tasks.stop(first)
    assert listed(running)[volume]["usedBytes"] > 190 * MIB
    line = (
        "rm /data/zeros; sync; fallocate -l 600M /data/a && echo fits;"
        "fallocate -l 600M /data/b 2>&1; rm -f /data/b; df -k /data | tail -1"
    )
    lines = said(tasks, images.busybox, line, snapshotId=volume).splitlines()
    assert lines[0] == "fits"
    assert "No space left on device" in lines[1]
    assert 900 << 10 < int(lines[-1].split()[1]) <= 1 << 20
    assert listed(running)[volume]["usedBytes"] < 100 * MIB
    assert (running.data_dir / "volumes" / f"{listed(running)[volume]['volumeId']}.img").stat().st_size == 1 << 30


def test_what_a_program_syncs_is_flushed_to_the_volumes_file(running, images, tasks, volume):
    task = tasks.wait(run(tasks, images.busybox, "sleep 3600", snapshotId=volume), "RUNNING")

    def flushes():
        metrics = json.loads(running.berth("metrics", task_id(task), "--json", check=True).stdout)
        return metrics["blockFlushOps"]

    before = flushes()
    running.berth("exec", task_id(task), "--", "sh", "-c", "echo kept > /data/file && sync", check=True)
    assert flushes() > before
    tasks.stop(task)


def test_a_volume_survives_its_machine_and_the_daemon(running, images, tasks, volume):
    line = (
        "echo synced > /data/file; sync; echo ready;"
        "while :; do dd if=/dev/urandom of=/data/junk bs=64k count=32 2>/dev/null; mv /data/junk /data/old; done"
    )
    first = tasks.wait(run(tasks, images.busybox, line, snapshotId=volume), "RUNNING")
    tasks.wait_for_output(first, "ready")
    running.kill()
    running.start()
    tasks = Tasks(running, tasks.network)
    assert tasks.describe(first)["lastStatus"] == "RUNNING"
    with pytest.raises(botocore.exceptions.ClientError, match=f"in use by task {task_id(first)}"):
        run(tasks, images.busybox, "true", snapshotId=volume)
    machine = host.machine_of(task_id(first))
    running.kill()
    os.kill(machine, signal.SIGKILL)
    running.start()
    tasks = Tasks(running, tasks.network)
    assert "exitCode" not in container(tasks.wait(first, "STOPPED"))
    line = "cat /data/file; echo again > /data/file && cat /data/file"
    assert said(tasks, images.busybox, line, snapshotId=volume) == "synced\nagain\n"


def test_a_volume_that_cannot_be_mounted_ends_its_task_and_nothing_else(running, images, tasks, volume):
    with open(running.data_dir / "volumes" / f"{listed(running)[volume]['volumeId']}.img", "r+b") as disk:
        disk.write(b"\xff" * MIB)
    ended = tasks.wait(run(tasks, images.busybox, "true", snapshotId=volume), "STOPPED")
    assert ended["stopCode"] == "TaskFailedToStart"
    assert "ext4" in ended["stoppedReason"] and '"volume"' in ended["stoppedReason"], ended["stoppedReason"]
    assert listed(running)[volume]["state"] == "available"


def test_a_volume_of_a_task_goes_with_it_or_stays_as_the_task_says(running, images, tasks, volume):
    line = "echo own > /data/file; sync; echo written; sleep 3600"
    options = {"volumeType": "gp3", "filesystemType": "ext4", "encrypted": False}
    gone = run(tasks, images.busybox, line, sizeInGiB=1, **options)
    stays = run(
        tasks,
        images.busybox,
        line,
        sizeInGiB=1,
        terminationPolicy={"deleteOnTermination": False},
        tagSpecifications=[{"resourceType": "volume", "tags": [{"key": "team", "value": "data"}]}],
    )
    details = {}
    for task, deleted in [(gone, "true"), (stays, "false")]:
        task = tasks.wait(task, "RUNNING")
        tasks.wait_for_output(task, "written")
        status, details[deleted] = attachment(task)
        assert status == "ATTACHED" and details[deleted]["deleteOnTermination"] == deleted
        assert details[deleted]["roleArn"] == ROLE and details[deleted]["volumeName"] == "data"
    assert [attachment(task)[0] for task in tasks.stop(gone, stays)] == ["DELETED", "DETACHED"]
    kept = details["false"]["volumeId"]
    volumes = listed(running)
    assert details["true"]["volumeId"] not in volumes
    assert (volumes[kept]["state"], volumes[kept]["tags"]) == ("available", [{"key": "team", "value": "data"}])
    running.berth("volume", "snapshot", kept, "--as", "monday", check=True)
    assert said(tasks, images.busybox, "cat /data/file; echo changed > /data/file", snapshotId="monday") == "own\n"
    assert said(tasks, images.busybox, "cat /data/file", snapshotId="monday") == "own\n"
    assert set(listed(running)) == {kept, volume, "monday"}
    running.berth("volume", "create", "copy", "--snapshot", "monday", check=True)
    running.berth("volume", "rm", "monday", kept, check=True)
    assert said(tasks, images.busybox, "cat /data/file", snapshotId="copy") == "own\n"


def test_what_makes_no_sense_here_is_refused_by_its_name(images, tasks, volume):
    for member, value in [("kmsKeyId", "key"), ("iops", 3000), ("throughput", 125), ("volumeInitializationRate", 100),
                          ("encrypted", True), ("filesystemType", "xfs"), ("volumeType", "io2")]:  # fmt: skip
        with pytest.raises(botocore.exceptions.ClientError, match=member):
            run(tasks, images.busybox, "true", sizeInGiB=1, **{member: value})
    with pytest.raises(botocore.exceptions.ClientError, match="There is no volume or snapshot 'missing'"):
        run(tasks, images.busybox, "true", snapshotId="missing")
    with pytest.raises(botocore.exceptions.ClientError, match="volumeConfigurations must have volume 'data'"):
        tasks.run(define(tasks, images.busybox, "true"))
