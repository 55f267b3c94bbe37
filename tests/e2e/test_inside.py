"""Inside the task: metadata, credentials of its role and statistics, for its own containers and for nobody else."""

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time

import boto3
import botocore.config
import botocore.exceptions
import botocore.session
import botocore.utils
import pytest

import product
from daemon import ACCOUNT, REGION
from tasks import START_SECONDS, eni, task_id

ROLE = f"arn:aws:iam::{ACCOUNT}:role/application"
WAIT = "trap 'exit 0' TERM; while true; do sleep 1; done"
ENDPOINT = "169.254.170.2"


class Inside:
    """What a container of a task sees."""

    def __init__(self, daemon, task):
        self.daemon, self.task = daemon, task
        names = ["ECS_CONTAINER_METADATA_URI_V4", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_REGION"]
        told = self.run(f"echo ${names[0]} ${names[1]} ${names[2]}").decode().split()
        self.metadata, self.credentials_path, self.region = told

    def run(self, script):
        return self.daemon.berth("exec", task_id(self.task), "--", "sh", "-c", script, check=True).stdout

    def get(self, url):
        done = self.daemon.berth("exec", task_id(self.task), "--", "wget", "-O", "-", url)
        assert done.returncode == 0, f"{url}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def credentials(self):
        return self.get(f"http://{ENDPOINT}{self.credentials_path}")


@pytest.fixture
def inside(running, images, tasks):
    definition = tasks.define(images.busybox, WAIT, stopTimeout=2, dockerLabels={"colour": "blue"})
    task = tasks.run(definition, overrides={"taskRoleArn": ROLE}, tags=[{"key": "team", "value": "a"}])
    return Inside(running, tasks.wait(task, "RUNNING"))


def client(daemon, service, given):
    return boto3.session.Session().client(
        service,
        endpoint_url=daemon.url,
        region_name=REGION,
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["Token"],
        config=botocore.config.Config(retries={"total_max_attempts": 1}, read_timeout=120, connect_timeout=30),
    )


def refused(call, **arguments):
    with pytest.raises(botocore.exceptions.ClientError) as error:
        call(**arguments)
    return error.value.response["Error"]["Code"]


def test_a_container_reads_what_it_and_its_task_are(inside, tasks):
    described = tasks.describe(inside.task)
    own = inside.get(inside.metadata)
    task = inside.get(f"{inside.metadata}/task")
    assert task["TaskARN"] == described["taskArn"] and task["Cluster"] == described["clusterArn"]
    definition = described["taskDefinitionArn"].rsplit("/", 1)[-1]
    assert f"{task['Family']}:{task['Revision']}" == definition
    assert (task["KnownStatus"], task["DesiredStatus"], task["LaunchType"]) == ("RUNNING", "RUNNING", "FARGATE")
    assert task["Limits"] == {"CPU": 1, "Memory": 2048}
    assert task["AvailabilityZone"] == described["availabilityZone"]
    assert task["EphemeralStorageMetrics"]["Reserved"] == 20 * 1024
    assert task["PullStartedAt"] <= task["PullStoppedAt"]
    assert task["Containers"] == [own] and "TaskTags" not in task
    assert inside.get(f"{inside.metadata}/taskWithTags")["TaskTags"] == {"team": "a"}
    container = described["containers"][0]
    assert own["DockerId"] == container["runtimeId"] and own["ContainerARN"] == container["containerArn"]
    assert (own["Name"], own["Image"], own["ImageID"]) == ("main", container["image"], container["imageDigest"])
    assert own["Labels"]["colour"] == "blue"
    assert own["Labels"]["com.amazonaws.ecs.task-arn"] == described["taskArn"]
    (network,) = own["Networks"]
    assert network["IPv4Addresses"] == [eni(described)["privateIPv4Address"]]
    assert network["MACAddress"] == eni(described)["macAddress"]
    assert network["PrivateDNSName"] == eni(described)["privateDnsName"]
    assert inside.region == REGION


def test_a_container_is_told_what_it_uses(running, inside):
    busy = "dd if=/dev/zero of=/tmp/data bs=1M count=8 conv=fsync 2>/dev/null; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    inside.run(busy)
    stats = inside.get(f"{inside.metadata}/stats")
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] >= stats["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert stats["cpu_stats"]["system_cpu_usage"] > stats["precpu_stats"]["system_cpu_usage"] > 0
    assert stats["cpu_stats"]["online_cpus"] == 1
    assert 0 < stats["memory_stats"]["usage"] < stats["memory_stats"]["limit"] == 2048 << 20
    assert stats["pids_stats"]["current"] >= 1
    written = [it["value"] for it in stats["blkio_stats"]["io_service_bytes_recursive"] if it["op"] == "write"]
    assert sum(written) >= 8 << 20
    assert stats["networks"]["eth0"]["tx_packets"] >= 0
    assert stats["preread"] < stats["read"]
    every = inside.get(f"{inside.metadata}/task/stats")
    assert list(every) == [stats["id"]] and every[stats["id"]]["name"] == "main"
    used = inside.get(f"{inside.metadata}/task")["EphemeralStorageMetrics"]["Utilized"]
    assert 8 <= used < 20 * 1024
    # The same, from outside.
    shown = running.berth("top", task_id(inside.task), "--once", check=True).stdout.decode()
    assert re.search(rf"{task_id(inside.task)[:8]}\S*\s+main\s+[0-9.]+%", shown), shown
    (told,) = json.loads(running.berth("top", "--json", "--once", check=True).stdout)["tasks"]
    assert told["containers"][0]["memoryBytes"] > 0 and told["seconds"] > 0


def test_a_container_protects_its_task(running, inside, tasks):
    told = inside.run("echo $ECS_AGENT_URI").decode().strip()
    url = f"{told}/task-protection/v1/state"
    arn = inside.task["taskArn"]
    assert inside.get(url) == {"protection": {"ProtectionEnabled": False, "TaskArn": arn}}

    def put(body):
        host, path = url.removeprefix("http://").split("/", 1)
        lines = [f"PUT /{path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", "Connection: close", ""]
        request = "".join(f"{line}\\r\\n" for line in lines)
        head, answer = inside.run(f"printf '{request}{body}' | nc {host} 80").split(b"\r\n\r\n", 1)
        return int(head.split()[1]), json.loads(answer)

    status, answer = put('{"ProtectionEnabled": true, "ExpiresInMinutes": 60}')
    assert status == 200 and answer["protection"]["ProtectionEnabled"], answer
    (seen,) = tasks.ecs.get_task_protection(cluster="default", tasks=[arn])["protectedTasks"]
    assert seen["taskArn"] == arn and seen["protectionEnabled"]
    left = seen["expirationDate"].timestamp() - time.time()
    assert 3000 < left <= 3601, left
    assert put('{"ProtectionEnabled": true, "ExpiresInMinutes": 9999}')[0] == 400
    assert put("nonsense")[0] == 400
    tasks.ecs.update_task_protection(cluster="default", tasks=[arn], protectionEnabled=False)
    assert not inside.get(url)["protection"]["ProtectionEnabled"]


@contextlib.contextmanager
def port_of(daemon, task):
    """A port of this host behind which is the endpoint of a task, each connection by way of a command in its container."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                subprocess.run(
                    [product.BERTH, "exec", "-i", task_id(task), "--", "nc", ENDPOINT, "80"],
                    stdin=connection,
                    stdout=connection,
                    env=daemon.environment(),
                    timeout=200,
                )

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def test_boto3_finds_credentials_that_open_what_is_the_tasks_own(running, images, inside, tasks, monkeypatch):
    # botocore's own provider, as it would run in the container; only the way there is longer.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    # Others are given each hour.
    before = inside.credentials()
    with port_of(running, inside.task) as port:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}{inside.credentials_path}")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        monkeypatch.setattr(botocore.utils.ContainerMetadataFetcher, "TIMEOUT_SECONDS", 100)
        found = botocore.session.Session().get_credentials()
        assert found.method == "container-role"
        found = found.get_frozen_credentials()
    given = inside.credentials()
    members = ["AccessKeyId", "SecretAccessKey", "Token"]
    assert [found.access_key, found.secret_key, found.token] in [[it[name] for name in members] for it in (before, given)]
    assert given["RoleArn"] == ROLE and given["AccessKeyId"].startswith("ASIA")
    ecs, own = client(running, "ecs", given), inside.task["taskArn"]
    identity = client(running, "sts", given).get_caller_identity()
    assert identity["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/application/{task_id(inside.task)}"
    assert ecs.describe_tasks(tasks=[own])["tasks"][0]["taskArn"] == own
    assert own in ecs.list_tasks()["taskArns"]
    definition = inside.task["taskDefinitionArn"]
    assert ecs.describe_task_definition(taskDefinition=definition)["taskDefinition"]["taskDefinitionArn"] == definition
    other = tasks.define(images.busybox, "true", environment={"KEY": "another's"})
    assert refused(ecs.describe_task_definition, taskDefinition=other) == "AccessDeniedException"
    assert refused(ecs.describe_tasks, tasks=[own, "0" * 32]) == "AccessDeniedException"
    assert refused(ecs.run_task, taskDefinition=definition) == "AccessDeniedException"
    assert refused(ecs.stop_task, task=own) == "AccessDeniedException"
    secrets = client(running, "secretsmanager", given)
    assert refused(secrets.get_secret_value, SecretId="any") == "AccessDeniedException"
    assert refused(client(running, "ssm", given).get_parameter, Name="any") == "AccessDeniedException"
    assert refused(client(running, "logs", given).describe_log_groups) == "AccessDeniedException"
    # The token belongs to the key.
    for token in ["", given["Token"][:-8] + "AAAAAAA=", "x"]:
        forged = client(running, "ecs", {**given, "Token": token})
        assert refused(forged.list_tasks) == "UnrecognizedClientException"
    forged = client(running, "ecs", {**given, "SecretAccessKey": "guessed"})
    assert refused(forged.list_tasks) == "InvalidSignatureException"
    # They outlive the daemon, and not the task.
    running.kill()
    running.start()
    ecs = client(running, "ecs", given)
    assert own in ecs.list_tasks()["taskArns"]
    assert inside.credentials()["RoleArn"] == ROLE
    tasks.stop(inside.task)
    assert refused(ecs.list_tasks) == "ExpiredTokenException"


def test_another_task_reaches_the_endpoint_by_no_address(running, images, tasks, inside):
    # This one has a port 80 of its own: the endpoint takes none away.
    definition = tasks.define(images.web, stopTimeout=2)
    victim = tasks.run(definition, overrides={"taskRoleArn": ROLE})
    victim = tasks.wait(victim, "RUNNING")
    tasks.wait_for_output(victim, "listening on port 80")
    script = "echo $AWS_CONTAINER_CREDENTIALS_RELATIVE_URI $ECS_CONTAINER_METADATA_URI_V4"
    told = running.berth("exec", task_id(victim), "--", "sh", "-c", script, check=True).stdout.decode().split()
    credentials, metadata = told[0], told[1].removeprefix(f"http://{ENDPOINT}")
    get = ["exec", task_id(victim), "--", "webserver", "get"]
    mine = running.berth(*get, f"{ENDPOINT}:80", credentials, check=True).stdout
    secret = json.loads(mine)["SecretAccessKey"]

    address = eni(victim)["privateIPv4Address"]
    gateway = inside.get(inside.metadata)["Networks"][0]["SubnetGatewayIpv4Address"].split("/")[0]
    for reached in [ENDPOINT, address, gateway, "169.254.170.1", "169.254.169.254"]:
        for path in [credentials, metadata, f"{metadata}/task"]:
            # busybox's own -T crashes where it is linked statically.
            script = f"timeout 5 wget -O - http://{reached}{path} 2>&1"
            done = running.berth("exec", task_id(inside.task), "--", "sh", "-c", script)
            answer = done.stdout.decode()
            assert secret not in answer and task_id(victim) not in answer.replace(path, ""), (reached, answer)
            # The victim's own web server answers at its address, as it does everybody.
            assert reached == address or done.returncode != 0, (reached, answer)
    # Its own are there all the while.
    assert inside.credentials()["RoleArn"] == ROLE
    # Nor do frames made by hand arrive at the link-local addresses of another's guest.
    to = f"{eni(victim)['macAddress']}"
    honest, forged = f"{to} {address} 80", f"{to} 169.254.170.1 80"
    script = "; ".join(
        [
            "mac=$(cat /sys/class/net/eth0/address)",
            "ip=$(ip -o -4 address show dev eth0 | awk '{print $4}' | cut -d/ -f1)",
            f"webserver spoof eth0 $mac $ip {honest} honest-before",
            f"webserver spoof eth0 $mac $ip {forged} link-local",
            f"webserver spoof eth0 $mac $ip {honest} honest-after",
        ]
    )
    attacker = tasks.finish(images.web, script)
    assert tasks.output(attacker, follow=True).count(b"sent 5 frames") == 3
    heard = tasks.wait_for_output(victim, "honest-after", START_SECONDS)
    assert "honest-before" in heard and "link-local" not in heard
