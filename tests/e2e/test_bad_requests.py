"""Callers that are broken, hostile or mistaken get AWS's own errors, and the daemon stays up."""

import datetime
import http.client
import json
import os
import re
import socket
import time
from pathlib import Path

import botocore.credentials
import botocore.exceptions
import pytest
from daemon import OVERCOMMIT_CPU
from wire import WireError

HUNDRED_MB = 100_000_000
MINUTE = datetime.timedelta(minutes=1)


@pytest.fixture
def wire(running):
    wire = running.wire
    yield wire
    assert running.is_alive(), running.tail()
    assert wire.call("ecs", "ListClusters")["clusterArns"]


def refused(wire, *arguments, **signing):
    with pytest.raises(WireError) as caught:
        wire.call(*arguments, **signing)
    return caught.value


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def test_unsigned_request_is_refused(wire):
    headers = {
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": "AmazonEC2ContainerServiceV20141113.ListClusters",
    }
    status, body = wire.send(headers, b"{}")
    assert (status, json.loads(body)["__type"]) == (400, "MissingAuthenticationTokenException")


def test_wrong_secret_is_refused(wire):
    wrong = botocore.credentials.Credentials(wire.credentials.access_key, "x" * 40)
    error = refused(wire, "ecs", "ListClusters", credentials=wrong)
    assert (error.status, error.name) == (400, "InvalidSignatureException")
    assert wire.credentials.secret_key not in str(error)


def test_unknown_key_is_refused(wire):
    unknown = botocore.credentials.Credentials("AKIAAAAAAAAAAAAAAAAA", wire.credentials.secret_key)
    error = refused(wire, "ecs", "ListClusters", credentials=unknown)
    assert (error.name, error.message) == (
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
    )


@pytest.mark.parametrize("minutes", [-16, -6, 6, 16])
def test_clock_that_is_off_is_refused(wire, minutes):
    error = refused(wire, "ecs", "ListClusters", at=now() + minutes * MINUTE)
    assert error.name == "InvalidSignatureException"
    assert error.message.startswith("Signature expired" if minutes < 0 else "Signature not yet current")


def test_clock_that_is_a_little_off_is_taken(wire):
    for minutes in [-3, 3]:
        assert wire.call("ecs", "ListClusters", at=now() + minutes * MINUTE)


def test_request_replayed_after_a_quarter_of_an_hour_is_refused(wire):
    body = b"{}"
    captured = wire.headers("ecs", "ListClusters", body, at=now() - 16 * MINUTE)
    status, answer = wire.send(captured, body)
    assert (status, json.loads(answer)["__type"]) == (400, "InvalidSignatureException")


def test_body_that_was_changed_is_refused(wire):
    headers = wire.headers("ecs", "CreateCluster", b'{"clusterName": "mine"}')
    status, answer = wire.send(headers, b'{"clusterName": "evil"}')
    assert (status, json.loads(answer)["__type"]) == (400, "InvalidSignatureException")


@pytest.mark.parametrize("body", [b'{"cluster": "def', b"", b"[]", b"nonsense", b'{"cluster": "\xff"}', b"[" * 100_000])
def test_broken_json_is_refused(wire, body):
    error = refused(wire, "ecs", "ListTasks", body)
    assert (error.status, error.name) == (400, "SerializationException")


def test_body_of_100_mb_is_refused_without_being_kept(wire, running):
    status = Path(f"/proc/{running.process.pid}/status")
    before = _resident_kib(status)
    headers = wire.headers("ecs", "ListTasks", b"{}")
    headers["Content-Length"] = str(HUNDRED_MB)
    connection = http.client.HTTPConnection(wire.host, wire.port, timeout=120)
    connection.putrequest("POST", "/", skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    piece = b"x" * 100_000
    try:
        for _ in range(HUNDRED_MB // len(piece)):
            connection.send(piece)
    except OSError:
        pass  # It need not take it all.
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["__type"]
    connection.close()
    assert _resident_kib(status) - before < 32 * 1024


def test_unknown_operation_is_refused(wire):
    error = refused(wire, "ecs", "MakeCoffee")
    assert (error.status, error.name) == (400, "UnknownOperationException")


def test_operation_that_berth_has_not_is_named(wire):
    error = refused(wire, "ecs", "RegisterContainerInstance")
    assert error.name == "UnsupportedFeatureException"
    assert "RegisterContainerInstance" in error.message


@pytest.mark.parametrize(
    "payload", [{"cluster": 7}, {"cluster": ["default"]}, {"maxResults": "many"}, {"cluster": {"name": "default"}}]
)
def test_wrong_types_are_refused(wire, payload):
    error = refused(wire, "ecs", "ListTasks", payload)
    assert error.status == 400
    assert error.name in ("SerializationException", "ClientException", "InvalidParameterException")


@pytest.mark.parametrize(
    ("cpu", "memory"), [("256", "4096"), ("512", "512"), ("1024", "9216"), ("100", "512"), ("8192", "17408")]
)
def test_sizes_outside_the_table_are_refused_in_awss_words(running, cpu, memory):
    ecs = running.client("ecs", retries=1)
    with pytest.raises(ecs.exceptions.ClientException) as caught:
        ecs.register_task_definition(
            family="sizes",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu=cpu,
            memory=memory,
            containerDefinitions=[{"name": "main", "image": "busybox"}],
        )
    assert caught.value.response["Error"]["Message"] == (
        f"No Fargate configuration exists for given values: {cpu} CPU, {memory} memory."
        " See the Amazon ECS documentation for the valid values."
    )


def test_what_the_host_has_no_room_for_is_refused_with_what_is_missing(tasks, images):
    # Ten of the largest: no host that this runs on has 1,200 GiB of memory.
    definition = tasks.define(images.busybox, "true", cpu="16384", memory="122880")
    before = tasks.ecs.list_tasks()["taskArns"]
    answer = tasks.ecs.run_task(
        taskDefinition=definition,
        launchType="FARGATE",
        count=10,
        networkConfiguration={"awsvpcConfiguration": tasks.network},
    )
    [failure] = answer["failures"]
    short_of_cpus = 160 > OVERCOMMIT_CPU * len(os.sched_getaffinity(tasks.daemon.process.pid))
    assert failure["reason"] == ("RESOURCE:CPU" if short_of_cpus else "RESOURCE:MEMORY")
    assert re.fullmatch(r"\d+ (CPU units|MiB of memory) are needed, and \d+ are free", failure["detail"])
    # All or none.
    assert answer["tasks"] == []
    assert tasks.ecs.list_tasks()["taskArns"] == before


def test_unknown_cluster_is_named_so(running):
    ecs = running.client("ecs", retries=1)
    with pytest.raises(ecs.exceptions.ClusterNotFoundException) as caught:
        ecs.list_tasks(cluster="nowhere")
    assert caught.value.response["Error"]["Message"] == "Cluster not found."
    assert ecs.describe_clusters(clusters=["nowhere"])["failures"][0]["reason"] == "MISSING"


def test_unknown_definition_is_named_so(running):
    ecs = running.client("ecs", retries=1)
    with pytest.raises(ecs.exceptions.ClientException) as caught:
        ecs.describe_task_definition(taskDefinition="nowhere:1")
    assert caught.value.response["Error"]["Message"] == "Unable to describe task definition."
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        ecs.run_task(
            taskDefinition="nowhere:1",
            launchType="FARGATE",
            networkConfiguration={"awsvpcConfiguration": {"subnets": ["subnet-00000000000000000"]}},
        )
    assert caught.value.response["Error"]["Code"] in ("ClientException", "InvalidParameterException")


def test_unknown_task_is_missing(running):
    described = running.client("ecs").describe_tasks(tasks=["0" * 32])
    assert described["tasks"] == []
    assert described["failures"][0]["reason"] == "MISSING"


def test_silent_connections_hurt_nobody(wire):
    silent = [socket.create_connection((wire.host, wire.port)) for _ in range(200)]
    try:
        began = time.monotonic()
        assert wire.call("ecs", "ListClusters")["clusterArns"]
        # On metal a millisecond; the lab is slow.
        assert time.monotonic() - began < 10
    finally:
        for connection in silent:
            connection.close()


def _resident_kib(status):
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])
