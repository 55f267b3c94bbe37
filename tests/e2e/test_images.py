"""Images of real-world shapes as a guest sees them, what of them comes over the network, and what is kept."""

import hashlib
import json
import os
import stat
import subprocess
import time

import product
import pytest
from botocore.exceptions import ClientError
from images import Entries
from tasks import ROLE, container

PASSWORD = "correct horse"
# cap_net_raw=ep, as `setcap` writes it.
CAPABILITY = bytes([1, 0, 0, 2, 0, 0x20] + [0] * 14)
SHAPE_LAYERS = 48
# 2,100 make an image of 100,000 files.
FILES_OF_A_LAYER = int(os.environ.get("BERTH_E2E_LAYER_FILES", 40))
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"


def shape_layers():
    """48 layers of what layers can do, each on top of the others; with the two below them it is an image of 50."""
    first = Entries().directory("shape", mtime=1).directory("shape/many", 0o2775, owner=(7, 8))
    first.directory("shape/opaque").directory("shape/opaque/below").file("shape/opaque/below/gone", "x")
    first.file("shape/opaque/gone", "x").directory("shape/links").file("shape/links/original", "linked", 0o600)
    first.file("shape/su", "#!/bin/sh\n", 0o4755).file("shape/sg", "x", 0o2755, owner=(0, 42))
    first.file("shape/ping", "ping", 0o755, xattrs={"security.capability": CAPABILITY, "user.note": b"a\nb\xff"})
    first.directory("shape/sticky", 0o1777).symlink("shape/dangling", "/nowhere/at all").fifo("shape/pipe", 0o620)
    # Not UTF-8, and what a shell would choke on.
    first.file(os.fsdecode(b"shape/caf\xe9 \xff\xfe"), "latin").directory(os.fsdecode(b"shape/\x80dir"))
    first.file(os.fsdecode(b"shape/\x80dir/\n\t'\"$"), "odd").file("shape/" + "n" * 254, "long")
    first.file("shape/zeros", bytes(3 << 20) + b"end").file("shape/empty", "").directory("shape/becomes-file")
    first.file("shape/becomes-file/x", "x").file("shape/becomes-directory", "x")
    first.file("shape/owned", "x", owner=(4_000_000_000, 100_000))
    layers = [first.layer()]
    for number in range(1, SHAPE_LAYERS):
        layer = Entries()
        for file in range(FILES_OF_A_LAYER):
            name = f"shape/many/{number}-{file}"
            lines, mode = file % 40 + 1, 0o600 + file % 40
            layer.file(name, f"{name}\n" * lines, mode, owner=(file, number), mtime=1_500_000_000 + file)
        # Of each layer below, one file goes and one is written anew.
        layer.file(f"shape/many/{WHITEOUT}{number - 1}-0", "").file(f"shape/many/{number - 1}-1", f"from {number}")
        layer.hardlink(f"shape/links/{number}", "shape/links/original")
        layer.hardlink(f"shape/links/near-{number}", f"shape/many/{number}-2")
        if number == 10:
            layer.directory("shape/opaque").file(f"shape/opaque/{OPAQUE}", "").file("shape/opaque/new", "new")
        if number == 20:
            layer.file(f"shape/{WHITEOUT}becomes-file", "").file("shape/becomes-file", "file")
            layer.directory("shape/becomes-directory").file("shape/becomes-directory/y", "y")
        layers.append(layer.layer())
    return layers


def seen(root):
    """A folder as `webserver tree` says it: path, type and mode, owner, time, links, size, content, attributes, same file."""
    root = os.fsencode(root)
    paths = sorted(os.path.join(folder, name) for folder, *names in os.walk(root) for name in names[0] + names[1])
    first, lines = {}, []
    for path in paths:
        found = os.lstat(path)
        name = path[len(root) :]
        same = first.setdefault((found.st_dev, found.st_ino), name)
        content = "-"
        if stat.S_ISLNK(found.st_mode):
            content = hashlib.sha256(os.readlink(path)).hexdigest()
        elif stat.S_ISREG(found.st_mode):
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        names = os.listxattr(path, follow_symlinks=False)
        values = {os.fsencode(one).hex(): os.getxattr(path, one, follow_symlinks=False).hex() for one in names}
        attributes = ",".join(f"{one}={values[one]}" for one in sorted(values)) or "-"
        links, size = (0, 0) if stat.S_ISDIR(found.st_mode) else (found.st_nlink, found.st_size)
        lines.append(
            f"{name.hex()} {found.st_mode:o} {found.st_uid}:{found.st_gid} {int(found.st_mtime)} {links} {size}"
            f" {content} {attributes} {same.hex()}"
        )
    return lines


def test_a_guest_sees_the_tree_that_umoci_unpacks(images, tasks):
    reference = images.with_tree("shape", shape_layers())
    task = tasks.finish(reference, log_group=None)
    output = tasks.output(task).decode().splitlines()
    assert container(task)["exitCode"] == 0, (task.get("stoppedReason"), output[-5:], tasks.output(task, "stderr"))
    *ours, count = output
    layout, bundle = product.SCRATCH / "shape-copy", product.SCRATCH / "shape-bundle"
    copy = ["skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", f"docker://{reference}"]
    subprocess.run([*copy, f"oci:{layout}:v1"], check=True, timeout=1200)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:v1", bundle], check=True, timeout=1200)
    theirs = seen(bundle / "rootfs/shape")
    assert count == f"{len(theirs)} entries"
    different = [pair for pair in zip(ours, theirs) if pair[0] != pair[1]]
    assert ours == theirs, different[:5]
    # So that it cannot be two trees without what this is about.
    names = [bytes.fromhex(line.split()[0]) for line in ours]
    assert b"/caf\xe9 \xff\xfe" in names and b"/opaque/gone" not in names and b"/many/3-0" not in names
    by_name = dict(zip(names, ours))
    assert " 104755 " in by_name[b"/su"] and CAPABILITY.hex() in by_name[b"/ping"]
    assert by_name[b"/links/47"].endswith(b"/links/1".hex()) and f" {SHAPE_LAYERS} 6 " in by_name[b"/links/47"]
    assert len(names) > (SHAPE_LAYERS - 2) * FILES_OF_A_LAYER


def files(daemon):
    """What the image store holds, with the times of its root file systems' last use left out."""
    return sorted(str(path) for path in (daemon.data_dir / "images").rglob("*") if path.is_file())


def test_a_warm_image_needs_no_network_and_a_new_one_only_its_own_layers(images, tasks, running):
    base = Entries().file("big", os.urandom(1 << 20)).layer()
    first = images.on_base("warm-1", [base, Entries().file("one", "1").layer()])
    own = Entries().file("two", "2").layer()
    second = images.on_base("warm-2", [base, own])
    assert container(tasks.finish(first, "cat /one"))["exitCode"] == 0
    kept = files(running)

    # By digest there is nothing to ask; of a tag, what it stands for.
    before = len(images.registry.requests())
    pinned = f"{first.removesuffix(':latest')}@{images.digests['warm-1']}"
    warm = tasks.finish(pinned, "cat /one")
    assert container(warm)["exitCode"] == 0 and tasks.output(warm) == b"1"
    assert images.registry.requests()[before:] == []
    assert container(tasks.finish(first, "true"))["exitCode"] == 0
    assert images.registry.requests()[before:] == ["HEAD /v2/warm-1/manifests/latest"]
    records = {path for path in files(running) if "/refs/" in path}
    assert set(files(running)) - records == {path for path in kept if "/refs/" not in path}, "nothing was unpacked again"
    assert warm["pullStartedAt"] <= warm["pullStoppedAt"]

    # An image that shares all layers but one, by two tasks at once.
    before = len(images.registry.requests())
    together = tasks.run(tasks.define(second, "cat /big | wc -c; cat /two"), count=2)
    for task in together:
        assert container(tasks.wait(task, "STOPPED"))["exitCode"] == 0
    requests = images.registry.requests()[before:]
    fetched = [request for request in requests if request.startswith("GET ")]
    assert len(fetched) == len(set(fetched)) == 3, f"a manifest, a configuration and a layer: {requests}"
    digest = "sha256:" + hashlib.sha256(own.blob).hexdigest()
    assert f"GET /v2/warm-2/blobs/{digest}" in fetched


def listed(daemon):
    answer = json.loads(daemon.berth("images", "ls", "--json", check=True).stdout)
    assert 0 <= answer["usedBytes"] <= answer["budgetBytes"]
    return {image["image"]: image for image in answer["images"]}


def test_images_are_listed_pulled_and_removed_and_one_in_use_stays(images, tasks, running):
    used = images.on_base("used", [Entries().file("used", os.urandom(4096)).layer()])
    unused = images.on_base("unused", [Entries().file("unused", os.urandom(4096)).layer()])
    pulled = json.loads(running.berth("images", "pull", unused, "--json", check=True).stdout)
    assert pulled["image"] == unused and pulled["digest"] == images.digests["unused"]
    missing = running.berth("images", "pull", f"{images.registry.host}/none:latest")
    assert missing.returncode == 1 and b"manifest unknown" in missing.stderr

    task = tasks.start(used, "sleep 3600")
    images_here = listed(running)
    assert images_here[used]["tasks"] == [task["taskArn"].rsplit("/", 1)[-1]] and images_here[unused]["tasks"] == []
    refused = running.berth("images", "rm", used)
    assert refused.returncode == 1 and b"is used by a task" in refused.stderr
    # A daemon that starts again knows what its tasks use.
    running.kill()
    running.start()
    assert running.berth("images", "rm", used).returncode == 1
    running.berth("images", "prune", check=True)
    images_here = listed(running)
    assert used in images_here and unused not in images_here
    shown = running.berth("images", "ls", check=True).stdout.decode()
    assert used in shown and "used on disk" in shown

    tasks.stop(task)
    running.berth("images", "rm", used, check=True)
    assert used not in listed(running)
    gone = running.berth("images", "rm", used)
    assert gone.returncode == 1 and b"there is no image" in gone.stderr


def test_the_images_of_a_task_are_together_no_larger_than_its_disk(images, tasks, running):
    # What an upper layer replaces counts, and is not in the packed image.
    halves = [
        images.on_base(f"half-{half}", [Entries().hole("big", 11 << 30).layer(), Entries().file("big", half).layer()])
        for half in ["one", "two"]
    ]
    for half in halves:
        running.berth("images", "pull", half, check=True)
    definition = tasks.ecs.register_task_definition(
        family="halves",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="1024",
        memory="2048",
        containerDefinitions=[
            {"name": f"half-{number}", "image": half, "command": ["true"]} for number, half in enumerate(halves)
        ],
    )["taskDefinition"]["taskDefinitionArn"]
    task = tasks.wait(tasks.run(definition), "STOPPED")
    assert task["stoppedReason"].startswith("CannotPullContainerError: image and the task's other images, of 112")
    assert task["stoppedReason"].endswith("together larger than the 20 GiB of disk the task has"), task["stoppedReason"]
    assert task["stopCode"] == "TaskFailedToStart" and "startedAt" not in task
    assert [image["tasks"] for image in listed(running).values() if image["image"] in halves] == [[], []]


def credentialed(tasks, image, parameter):
    definition = {
        "family": "private-image",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "1024",
        "memory": "2048",
        "executionRoleArn": ROLE,
        "containerDefinitions": [
            {
                "name": "main",
                "image": image,
                "command": ["true"],
                "repositoryCredentials": {"credentialsParameter": parameter},
            }
        ],
    }
    described = tasks.ecs.register_task_definition(**definition)["taskDefinition"]
    assert described["containerDefinitions"][0]["repositoryCredentials"] == {"credentialsParameter": parameter}
    return described["taskDefinitionArn"]


def test_a_private_image_needs_the_credentials_of_its_secret(images, private_registry, tasks, running):
    private = images.on_base(
        "private",
        [Entries().file("private", os.urandom(4096)).layer()],
        registry=private_registry,
        push=[f"--dest-creds=alice:{PASSWORD}"],
    )
    denied = tasks.finish(private, "true")
    assert denied["stoppedReason"].startswith("CannotPullContainerError: ") and "access denied" in denied["stoppedReason"]
    manager = running.client("secretsmanager")
    name = f"registry-{time.time_ns()}"
    document = json.dumps({"username": "alice", "password": PASSWORD})
    arn = manager.create_secret(Name=name, SecretString=document)["ARN"]
    task = tasks.wait(tasks.run(credentialed(tasks, private, arn)), "STOPPED")
    assert container(task)["exitCode"] == 0, task.get("stoppedReason")
    assert PASSWORD not in json.dumps(task, default=str)

    wrong = manager.create_secret(Name=f"{name}-wrong", SecretString='{"user": "alice", "pass": "hunter2"}')["ARN"]
    task = tasks.wait(tasks.run(credentialed(tasks, private, wrong)), "STOPPED")
    assert task["stoppedReason"].startswith(
        "ResourceInitializationError: unable to pull secrets or registry auth: "
    ), task["stoppedReason"]
    assert "pullStartedAt" not in task and "hunter2" not in task["stoppedReason"]
    with pytest.raises(ClientError) as error:
        tasks.ecs.register_task_definition(
            family="private-image",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu="1024",
            memory="2048",
            containerDefinitions=[
                {"name": "main", "image": private, "repositoryCredentials": {"credentialsParameter": arn}}
            ],
        )
    assert "executionRoleArn" in error.value.response["Error"]["Message"]
    said = running.log.read_text(errors="replace")
    assert PASSWORD not in said and "hunter2" not in said
