"""Parameters and secrets: put with other people's clients, given to a container, found in no file and no process."""

import hashlib
import json
import os
import secrets
from pathlib import Path

import host
import pytest
from botocore.exceptions import ClientError
from tasks import ROLE, container, task_id

# Largest piece of a file that is looked at in one go.
PIECE = 1 << 22


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def holds(path, needles):
    """Those of the needles that are in this file."""
    found, kept = set(), b""
    overlap = max(len(needle) for needle in needles)
    try:
        with open(path, "rb") as file:
            position = 0
            while True:
                # Disks are sparse: only what was written to is read.
                try:
                    position = os.lseek(file.fileno(), position, os.SEEK_DATA)
                except OSError:
                    break
                file.seek(position)
                if not (piece := file.read(PIECE)):
                    break
                window = kept + piece
                found |= {needle for needle in needles if needle in window}
                kept, position = window[-overlap:], position + len(piece)
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def proc(path, needles):
    """As `holds`, for files that cannot be sought in."""
    try:
        text = Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {needle for needle in needles if needle in text}


def places(daemon, needles):
    """Where on this host the needles are, by needle."""
    found = {needle: [] for needle in needles}
    files = [path for path in daemon.data_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in [*files, daemon.log]:
        for needle in holds(path, needles):
            found[needle].append(str(path))
    for pid in [daemon.process.pid, *host.machines()]:
        for name in ["cmdline", "environ"]:
            for needle in proc(f"/proc/{pid}/{name}", needles):
                found[needle].append(f"/proc/{pid}/{name}")
    return found


def refused(call, **arguments):
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return error.value.response["Error"]


def test_a_task_gets_its_secrets_and_nobody_else_finds_them(running, images, tasks):
    ssm, manager = running.client("ssm"), running.client("secretsmanager")
    word = secrets.token_hex(8)
    clear = {
        "SECURE": f"secure-{word} $'\"\\ ä",
        "PLAIN": f"string-{word}",
        "KEY": f"json-key-{word}",
        "PUT": f"put-{word}",
    }
    name = f"/e2e/{word}"
    assert ssm.put_parameter(Name=f"{name}/secure", Value="an older value", Type="SecureString")["Version"] == 1
    ssm.put_parameter(Name=f"{name}/secure", Value=clear["SECURE"], Type="SecureString", Overwrite=True)
    ssm.put_parameter(Name=f"{name}/string", Value=clear["PLAIN"], Type="String")
    running.berth("secrets", "put", f"{name}/put", check=True, input=clear["PUT"].encode() + b"\n")
    document = json.dumps({"user": "web", "password": clear["KEY"]})
    arn = manager.create_secret(Name=f"e2e/{word}", SecretString=document)["ARN"]

    assert ssm.get_parameter(Name=f"{name}/secure", WithDecryption=True)["Parameter"]["Value"] == clear["SECURE"]
    pages = ssm.get_paginator("get_parameters_by_path").paginate(Path=name, PaginationConfig={"PageSize": 2})
    by_path = [parameter["Name"] for page in pages for parameter in page["Parameters"]]
    assert by_path == [f"{name}/put", f"{name}/secure", f"{name}/string"]
    value = json.loads(
        running.aws("secretsmanager", "get-secret-value", "--secret-id", arn, "--version-stage", "AWSCURRENT")
    )
    assert json.loads(value["SecretString"])["password"] == clear["KEY"]
    assert refused(ssm.get_parameter, Name=f"{name}/none")["Code"] == "ParameterNotFound"
    assert refused(manager.get_secret_value, SecretId="none")["Code"] == "ResourceNotFoundException"

    # What is not secret must be found by the same search.
    marker = f"marker-{word}"
    script = "; ".join(f'printf %s "${variable}" | sha256sum' for variable in clear) + "; echo end; sleep 3600"
    sources = {"SECURE": f"{name}/secure", "PLAIN": f"{name}/string", "KEY": f"{arn}:password::", "PUT": f"{name}/put"}
    definition = tasks.ecs.register_task_definition(
        family=f"secrets-{word}",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="1024",
        memory="2048",
        executionRoleArn=ROLE,
        containerDefinitions=[
            {
                "name": "main",
                "image": images.busybox,
                "command": ["sh", "-c", script],
                "environment": [{"name": "MARKER", "value": marker}],
                "secrets": [{"name": variable, "valueFrom": source} for variable, source in sources.items()],
                "stopTimeout": 2,
            }
        ],
    )["taskDefinition"]
    task = tasks.wait(tasks.run(definition["taskDefinitionArn"]), "RUNNING")
    output = tasks.wait_for_output(task, "end")
    assert [line.split()[0] for line in output.splitlines()[:-1]] == [digest(text) for text in clear.values()]

    # A file could have it with escapes: what it begins with is enough.
    hidden = [text.split()[0] for text in clear.values()]
    found = places(running, [text.encode() for text in [marker, *hidden]])
    assert any("state.db" in path for path in found[marker.encode()]), f"the search finds nothing: {found}"
    for text in hidden:
        assert found[text.encode()] == [], f"{text} is in {found[text.encode()]}"
    limits = Path(f"/proc/{running.process.pid}/limits").read_text().splitlines()
    (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"], core
    described = tasks.ecs.describe_task_definition(taskDefinition=definition["taskDefinitionArn"])
    answers = repr([described, tasks.describe(task), ssm.describe_parameters(), manager.list_secrets()])
    answers += running.berth("secrets", "ls", check=True).stdout.decode()
    answers += running.berth("describe", task_id(task), check=True).stdout.decode()
    assert marker in answers and f"{name}/secure" in answers
    for text in hidden:
        assert text not in answers
    tasks.stop(task)

    # New keys, under a daemon that is killed right after; the old ones are gone.
    keys = (running.data_dir / "secrets.keys").read_text()
    assert (running.data_dir / "secrets.keys").stat().st_mode & 0o7777 == 0o600
    assert b"sealed anew" in running.berth("secrets", "rotate", check=True).stdout
    running.kill()
    running.start()
    for line in keys.splitlines():
        if not line.startswith("#"):
            assert line not in (running.data_dir / "secrets.keys").read_text()
    assert ssm.get_parameter(Name=f"{name}/secure", WithDecryption=True)["Parameter"]["Value"] == clear["SECURE"]
    assert json.loads(manager.get_secret_value(SecretId=arn)["SecretString"])["password"] == clear["KEY"]

    # Gone, and the task that names it says so.
    ssm.delete_parameters(Names=by_path)
    manager.delete_secret(SecretId=arn, RecoveryWindowInDays=7)
    assert refused(manager.get_secret_value, SecretId=arn)["Code"] == "InvalidRequestException"
    stopped = tasks.wait(tasks.run(definition["taskDefinitionArn"]), "STOPPED")
    assert stopped["stopCode"] == "TaskFailedToStart"
    assert stopped["stoppedReason"] == (
        "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: "
        f"unable to retrieve secrets from ssm: invalid parameters: {name}/secure"
    )
    assert container(stopped)["lastStatus"] == "STOPPED" and "pullStartedAt" not in stopped
    command = running.berth("run", "--secret", f"KEY={arn}:password::", images.busybox, "true")
    assert command.returncode == 125, command
    assert b"because it was marked for deletion" in command.stderr, command.stderr
    manager.restore_secret(SecretId=arn)
    manager.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    assert refused(manager.describe_secret, SecretId=arn)["Code"] == "ResourceNotFoundException"
