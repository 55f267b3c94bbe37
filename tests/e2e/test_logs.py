"""Logs: what clients put and find, retention, many lines from one task, and lines that are dropped and counted."""

import os
import re
import signal
import subprocess
import threading
import time

import botocore.config
import botocore.exceptions
import product
import pytest
from tasks import container, task_id

# How many lines one task writes as fast as it can. A million takes the emulated lab some minutes.
LINES = int(os.environ.get("BERTH_E2E_LOG_LINES", "100000"))
DROPPED = re.compile(r"berth: (\d+) lines \(\d+ bytes\) were dropped here: the log buffer of \d+ bytes was full")


def now_ms():
    return int(time.time() * 1000)


def refusal(call, **arguments):
    with pytest.raises(botocore.exceptions.ClientError) as refused:
        call(**arguments)
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


@pytest.fixture
def group(tasks, request):
    name = f"/e2e/{request.node.name}"
    tasks.logs.create_log_group(logGroupName=name, tags={"made": "by a test"})
    yield name
    tasks.logs.delete_log_group(logGroupName=name)


def messages(answer):
    return [event["message"] for event in answer["events"]]


def test_clients_put_events_and_find_them(running, tasks, group):
    logs, now = tasks.logs, now_ms()
    assert refusal(logs.create_log_group, logGroupName=group)[0] == "ResourceAlreadyExistsException"
    logs.create_log_stream(logGroupName=group, logStreamName="web")
    logs.create_log_stream(logGroupName=group, logStreamName="db")
    assert refusal(logs.create_log_stream, logGroupName=group, logStreamName="db")[0] == "ResourceAlreadyExistsException"

    def put(stream, *events):
        batch = [{"timestamp": now + at, "message": message} for at, message in events]
        return logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=batch, sequenceToken="any")

    assert "rejectedLogEventsInfo" not in put("web", (-5000, "later"), (-4000, '{"level": "error", "code": 503}'))
    # A batch that comes late, and one from the future and the far past.
    put("web", (-60000, "GET /index.html 200"), (-50000, "GET /a 404"))
    days = 24 * 3600 * 1000
    rejected = put("db", (-15 * days, "too old"))["rejectedLogEventsInfo"]
    assert rejected == {"tooOldLogEventEndIndex": 1}
    rejected = put("db", (-1000, "slow query"), (3 * 3600 * 1000, "too new"))["rejectedLogEventsInfo"]
    assert rejected == {"tooNewLogEventStartIndex": 1}
    code, text = refusal(
        logs.put_log_events,
        logGroupName=group,
        logStreamName="db",
        logEvents=[{"timestamp": now, "message": "b"}, {"timestamp": now - 1, "message": "a"}],
    )
    assert (code, "chronological order" in text) == ("InvalidParameterException", True)

    stream = {"logGroupName": group, "logStreamName": "web"}
    assert messages(logs.get_log_events(**stream, startFromHead=True)) == [
        "GET /index.html 200",
        "GET /a 404",
        "later",
        '{"level": "error", "code": 503}',
    ]
    assert messages(logs.get_log_events(**stream, startTime=now - 55000, endTime=now - 4000)) == ["GET /a 404", "later"]
    everything = logs.filter_log_events(logGroupName=group)
    assert [event["logStreamName"] for event in everything["events"]] == ["web"] * 4 + ["db"]
    assert len({event["eventId"] for event in everything["events"]}) == 5
    for pattern, found in {
        "GET -404": ["GET /index.html 200"],
        "?slow ?later": ["later", "slow query"],
        '"/a 404"': ["GET /a 404"],
        "%[45]0[0-9]%": ["GET /a 404", '{"level": "error", "code": 503}'],
        '{ $.level = "err*" && $.code >= 500 }': ['{"level": "error", "code": 503}'],
        "[verb, path = *html, status]": ["GET /index.html 200"],
    }.items():
        assert messages(logs.filter_log_events(logGroupName=group, filterPattern=pattern)) == found, pattern
    assert messages(logs.filter_log_events(logGroupName=group, startTime=now - 50000, endTime=now - 5000)) == [
        "GET /a 404",
        "later",
    ]
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group, PaginationConfig={"PageSize": 1})
    assert sorted(text for page in pages for text in messages(page)) == sorted(messages(everything))
    code, text = refusal(logs.filter_log_events, logGroupName=group, filterPattern="{ $.a = }")
    assert (code, text.startswith("Invalid filter pattern: ")) == ("InvalidParameterException", True)
    tested = logs.test_metric_filter(filterPattern="b", logEventMessages=["a", "abc"])["matches"]
    assert [match["eventNumber"] for match in tested] == [2]

    (described,) = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="w")["logStreams"]
    assert (described["firstEventTimestamp"], described["lastEventTimestamp"]) == (now - 5000, now - 4000)
    arn = logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"][0]["logGroupArn"]
    logs.tag_resource(resourceArn=arn, tags={"team": "blue"})
    logs.untag_resource(resourceArn=arn, tagKeys=["made"])
    assert logs.list_tags_for_resource(resourceArn=arn)["tags"] == {"team": "blue"}
    logs.delete_log_stream(logGroupName=group, logStreamName="web")
    assert refusal(logs.get_log_events, **stream)[0] == "ResourceNotFoundException"
    assert messages(logs.filter_log_events(logGroupName=group)) == ["slow query"]


def test_retention_hides_what_is_old(tasks, group):
    logs, now = tasks.logs, now_ms()
    logs.create_log_stream(logGroupName=group, logStreamName="s")
    two_days = 2 * 24 * 3600 * 1000
    for at in (now - two_days, now):
        logs.put_log_events(
            logGroupName=group, logStreamName="s", logEvents=[{"timestamp": at, "message": f"at {at}"}]
        )
    assert refusal(logs.put_retention_policy, logGroupName=group, retentionInDays=2)[0] == "InvalidParameterException"
    logs.put_retention_policy(logGroupName=group, retentionInDays=1)
    assert logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"][0]["retentionInDays"] == 1
    assert messages(logs.get_log_events(logGroupName=group, logStreamName="s")) == [f"at {now}"]
    assert messages(logs.filter_log_events(logGroupName=group)) == [f"at {now}"]
    expired = [{"timestamp": now - two_days, "message": "x"}]
    answer = logs.put_log_events(logGroupName=group, logStreamName="s", logEvents=expired)
    assert answer["rejectedLogEventsInfo"] == {"expiredLogEventEndIndex": 1}
    logs.delete_retention_policy(logGroupName=group)
    assert "retentionInDays" not in logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"][0]


def test_the_aws_cli_puts_and_finds_events_and_large_batches_are_taken(running, tasks, group):
    running.aws("logs", "create-log-stream", "--log-group-name", group, "--log-stream-name", "cli")
    event = f"timestamp={now_ms()},message=hello"
    named = ("--log-group-name", group, "--log-stream-name", "cli")
    running.aws("logs", "put-log-events", *named, "--log-events", event)
    found = running.aws("logs", "filter-log-events", "--log-group-name", group, "--filter-pattern", "hello")
    assert '"message": "hello"' in found
    # A batch of nearly a MiB, of which every character takes six bytes on the wire.
    batch = [{"timestamp": now_ms(), "message": "\x01" * 100_000} for _ in range(10)]
    tasks.logs.put_log_events(logGroupName=group, logStreamName="cli", logEvents=batch)
    found = tasks.logs.get_log_events(logGroupName=group, logStreamName="cli", startFromHead=True)["events"]
    assert [len(event["message"]) for event in found] == [5, *[100_000] * 10]


def test_a_live_tail_shows_what_comes(running, tasks, group):
    tasks.logs.create_log_stream(logGroupName=group, logStreamName="s")

    def put(*texts):
        events = [{"timestamp": now_ms(), "message": text} for text in texts]
        tasks.logs.put_log_events(logGroupName=group, logStreamName="s", logEvents=events)

    put("before: ERROR")
    # There is no other name for this host.
    import boto3

    access, secret = running.keys
    client = boto3.session.Session().client(
        "logs",
        endpoint_url=running.url,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=botocore.config.Config(inject_host_prefix=False, read_timeout=60),
    )
    arn = tasks.logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"][0]["logGroupArn"]
    session = client.start_live_tail(logGroupIdentifiers=[arn], logEventFilterPattern="ERROR")["responseStream"]
    updates = iter(session)
    assert next(updates)["sessionStart"]["logGroupIdentifiers"] == [arn]
    put("nothing", "one: ERROR")
    tasks.logs.create_log_stream(logGroupName=group, logStreamName="new")
    events = [{"timestamp": now_ms(), "message": "two: ERROR"}]
    tasks.logs.put_log_events(logGroupName=group, logStreamName="new", logEvents=events)
    seen, began = [], time.monotonic()
    while len(seen) < 2:
        seen += next(updates)["sessionUpdate"]["sessionResults"]
        assert time.monotonic() < began + 60, seen
    assert [(event["logStreamName"], event["message"]) for event in seen] == [("s", "one: ERROR"), ("new", "two: ERROR")]
    session.close()
    began = time.monotonic()
    code, _ = refusal(client.start_live_tail, logGroupIdentifiers=["/e2e/none"])
    assert code == "ResourceNotFoundException"


def test_version_2_of_the_aws_cli_follows_a_container(running, images, tasks):
    script = "echo first; until [ -e /go ]; do sleep 1; done; echo second; sleep 3600"
    task = tasks.start(images.busybox, script, log_group="/e2e/followed", stopTimeout=2)
    # Debian's; the one of the Python packages is version 1, which cannot do it.
    line = ["/usr/bin/aws", "--endpoint-url", running.url, "logs", "tail", "/e2e/followed", "--follow", "--format", "short"]
    environment = {**running.environment(), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as tail:
        try:
            assert tail.stdout.readline().endswith(" first\n")
            running.berth("exec", task_id(task), "--", "touch", "/go", check=True)
            assert tail.stdout.readline().endswith(" second\n")
        finally:
            tail.kill()
    tasks.stop(task)


def test_a_follower_sees_each_line_while_its_container_waits_for_an_answer(running, images, tasks):
    rounds = 10
    script = f"for n in $(seq {rounds}); do echo line $n; while [ ! -e /tmp/answer-$n ]; do sleep 0.1; done; done; echo end"
    task = tasks.start(images.busybox, script)
    line = [product.BERTH, "logs", "-f", task_id(task)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=running.environment(), stdin=subprocess.DEVNULL) as follower:
        # A line that never comes ends the follower, and so the waiting for it.
        watch = threading.Timer(400, follower.kill)
        watch.start()
        try:
            for number in range(1, rounds + 1):
                assert follower.stdout.readline() == b"line %d\n" % number
                running.berth("exec", task_id(task), "--", "touch", f"/tmp/answer-{number}", check=True)
            # It ends with the container.
            assert follower.stdout.read() == b"end\n"
            assert follower.wait(timeout=60) == 0
        finally:
            watch.cancel()
            follower.kill()


def test_every_line_of_many_arrives_in_order(running, images, tasks):
    """Blocking mode; says the rate, which means little in the emulator."""
    options = {"mode": "blocking"}
    definition = tasks.define(images.busybox, f"seq 1 {LINES}", log_group="/e2e/many", log_options=options)
    task = tasks.wait(tasks.run(definition), "STOPPED")
    assert container(task)["exitCode"] == 0
    lines = tasks.output(task).decode().split()
    assert lines == [str(number) for number in range(1, LINES + 1)]
    stream = {"logGroupName": "/e2e/many", "logStreamName": f"e2e/main/{task['taskArn'].rsplit('/', 1)[-1]}"}
    first = tasks.logs.get_log_events(**stream, startFromHead=True, limit=1)["events"][0]
    last = tasks.logs.get_log_events(**stream, limit=1)["events"][0]
    took = (last["timestamp"] - first["timestamp"]) / 1000
    print(f"{LINES} lines in {took:.2f} s, {LINES / max(took, 0.001):.0f} lines a second")
    found = tasks.logs.filter_log_events(
        logGroupName="/e2e/many",
        logStreamNames=[stream["logStreamName"]],
        filterPattern=f'"{LINES - 1}"',
        startTime=last["timestamp"] - 1000,
    )
    assert messages(found) == [str(LINES - 1)]


def test_lines_that_are_dropped_are_counted(running, images, tasks):
    """Non-blocking mode, while nobody takes the lines."""
    options = {"mode": "non-blocking", "max-buffer-size": "64k"}
    command = "echo ready; sleep 6; seq 1 100000; echo the end"
    definition = tasks.define(images.busybox, command, log_group="/e2e/dropped", log_options=options)
    task = tasks.wait(tasks.run(definition), "RUNNING")
    tasks.wait_for_output(task, "ready")
    os.kill(running.process.pid, signal.SIGSTOP)
    try:
        time.sleep(20)
    finally:
        os.kill(running.process.pid, signal.SIGCONT)
    task = tasks.wait(task, "STOPPED")
    assert container(task)["exitCode"] == 0
    lines = running.berth("logs", task["taskArn"], check=True).stdout.decode().splitlines()
    dropped = sum(int(match[1]) for match in map(DROPPED.fullmatch, lines) if match)
    numbers = [int(line) for line in lines if line.isdigit()]
    arrived = len(numbers) + ("ready" in lines) + ("the end" in lines)
    assert dropped > 0
    assert arrived + dropped == 100_002
    assert numbers == sorted(numbers)


def test_a_group_that_must_not_be_made_refuses_the_task(images, tasks):
    options = {"awslogs-create-group": "false"}
    definition = tasks.define(images.busybox, "true", log_group="/e2e/none", log_options=options)
    arguments = {"taskDefinition": definition, "launchType": "FARGATE"}
    network = {"awsvpcConfiguration": tasks.network}
    code, text = refusal(tasks.ecs.run_task, networkConfiguration=network, **arguments)
    assert code == "ClientException" and "log group does not exist" in text
