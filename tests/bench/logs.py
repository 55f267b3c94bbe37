"""Output of a container that writes as fast as it can, and what it costs the host, the same bytes over a command's plain stream
beside it; how long a line takes to whoever follows a log; and how long a word is looked for in a large group."""

import os
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import botocore.config

import product
from daemon import REGION
from quiet import quantile, say
from starts import berth
from tasks import task_id

LINES = int(os.environ.get("BERTH_BENCH_LINES", 1_000_000))
FOLLOWED = int(os.environ.get("BERTH_BENCH_FOLLOWED", 50))
SEARCHED_MIB = int(os.environ.get("BERTH_BENCH_LOG_MIB", 1024))
GROUP, END = "/bench/logs", "the end"
# Of a container that waits, until it is told to write.
GO = "echo ready; while [ ! -e /go ]; do sleep 1; done"
STALLED_SECONDS = 600


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cost:
    """Wall-clock time, and processor time of the daemon and of the task's machine, from its making on."""

    def __init__(self, daemon, task):
        self._daemon, self._task = daemon, task_id(task)
        self._start = self._now()

    def _now(self):
        metrics = self._daemon.wire.berth("GetMachineMetrics", task=self._task)["metrics"]
        return time.monotonic(), processor_seconds(self._daemon.process.pid), metrics["cpuUsageUs"] / 1e6

    def so_far(self):
        return [now - start for now, start in zip(self._now(), self._start)]


def start(tasks, image, script, **options):
    """A task whose container runs `script` once it is told to go, and its log's group and stream."""
    task = tasks.start(image, f"{GO}; {script}; sleep 3600", log_group=GROUP, stopTimeout=2, **options)
    tasks.wait_for_output(task, "ready")
    return task, {"logGroupName": GROUP, "logStreamName": f"e2e/main/{task_id(task)}"}


def go(daemon, task):
    daemon.berth("exec", task_id(task), "--", "touch", "/go", check=True)


def many_lines(daemon, tasks, image):
    task, stream = start(tasks, image, f"seq 1 {LINES}; echo {END}", log_options={"mode": "blocking"})
    cost = Cost(daemon, task)
    go(daemon, task)
    while (last := tasks.logs.get_log_events(**stream, limit=1)["events"])[-1]["message"] != END:
        assert cost.so_far()[0] < STALLED_SECONDS, last
        time.sleep(0.5)
    _, daemon_seconds, machine_seconds = cost.so_far()
    # By the log's own times: from the first line to the last.
    first = tasks.logs.get_log_events(**stream, limit=2, startFromHead=True)["events"][1]
    wall = (last[-1]["timestamp"] - first["timestamp"]) / 1000
    say(f"{LINES} lines are there after {wall:.1f} s")
    written = tasks.output(task).decode().split("\n")
    assert written == ["ready", *map(str, range(1, LINES + 1)), END, ""], "lines were lost, doubled or out of order"
    say("they are complete and in order")

    cost = Cost(daemon, task)
    copied = daemon.berth("exec", task_id(task), "--", "seq", "1", str(LINES), check=True, timeout=STALLED_SECONDS).stdout
    plain_wall, plain_daemon, plain_machine = cost.so_far()
    assert copied.split() == [b"%d" % number for number in range(1, LINES + 1)]
    tasks.stop(task)
    million = LINES / 1_000_000
    return [
        ("log_lines_per_second", LINES / wall, "lines/s"),
        ("log_daemon_seconds_per_million", daemon_seconds / million, "s"),
        ("log_machine_seconds_per_million", machine_seconds / million, "s"),
        ("log_rate_vs_plain_stream", plain_wall / wall, "ratio"),
        ("log_daemon_vs_plain_stream", daemon_seconds / plain_daemon, "ratio"),
        ("log_machine_vs_plain_stream", machine_seconds / plain_machine, "ratio"),
    ]


# Followers.


def delay_ms(line):
    """Since the line was written, by the container's own clock, which it is the text of."""
    return (time.time() - float(line)) * 1000


def follow(follower):
    """Delays of the lines that `berth logs -f` shows."""
    return [delay_ms(follower.stdout.readline()) for _ in range(FOLLOWED)]


def follow_live(tail):
    """Delays of the lines that StartLiveTail shows."""
    delays = []
    for update in tail:
        delays += [delay_ms(event["message"]) for event in update.get("sessionUpdate", {}).get("sessionResults", [])]
        if len(delays) >= FOLLOWED:
            return delays
    raise AssertionError(f"the live tail ended after {len(delays)} lines")


def live_tail(daemon, tasks):
    """One that has begun."""
    access, secret = daemon.keys
    client = boto3.session.Session().client(
        "logs",
        endpoint_url=daemon.url,
        region_name=REGION,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        # There is no other name for this host.
        config=botocore.config.Config(inject_host_prefix=False, read_timeout=60),
    )
    arn = tasks.logs.describe_log_groups(logGroupNamePrefix=GROUP)["logGroups"][0]["logGroupArn"]
    tail = client.start_live_tail(logGroupIdentifiers=[arn])["responseStream"]
    updates = iter(tail)
    assert "sessionStart" in next(updates)
    return tail, updates


def followers(daemon, tasks, image):
    task, _ = start(tasks, image, f"for n in $(seq {FOLLOWED}); do echo $EPOCHREALTIME; sleep 0.2; done")
    tail, updates = live_tail(daemon, tasks)
    line = [product.BERTH, "logs", "-f", task_id(task)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=daemon.environment()) as follower, ThreadPoolExecutor() as pool:
        assert follower.stdout.readline() == b"ready\n"
        delays = {"log_follow": pool.submit(follow, follower), "log_live_tail": pool.submit(follow_live, updates)}
        try:
            go(daemon, task)
            delays = {name: future.result(STALLED_SECONDS) for name, future in delays.items()}
        finally:
            follower.kill()
            tail.close()
    tasks.stop(task)
    for name, times in delays.items():
        say(f"{name}: {', '.join(f'{time:.0f}' for time in times)} ms")
    quantiles = [("p50", 0.5), ("p99", 0.99)]
    return [(f"{name}_{at}", quantile(times, part), "ms") for name, times in delays.items() for at, part in quantiles]


# A search.

HOUR_MS, MINUTE_MS = 3_600_000, 60_000
SEARCHED, WORD, SEARCHES = "/bench/searched", "sesquipedalian", 5
STREAMS = 4
# What a batch may count, and what each event counts beside its message.
BATCH_BYTES, EVENT_BYTES = 1 << 20, 26
# Of a batch, each with a time of its own.
MOMENTS = 64
MESSAGE = (
    '10.17.3.91 - - "GET /shop/items/48151623/reviews?page=2&sort=newest HTTP/1.1" 200 18223 "https://shop.example/items" '
    '"Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0" 0.037'
)


class Batches:
    """PutLogEvents' bodies for one stream: its share of all the messages, over an hour from `start` on, and in each batch one
    message with the word."""

    EVENTS = (BATCH_BYTES // (len(MESSAGE) + EVENT_BYTES) - 1) // MOMENTS * MOMENTS

    def __init__(self, stream, start):
        self._stream, self._start = stream, start
        self.count = -(-(SEARCHED_MIB << 20) // (self.EVENTS * len(MESSAGE) * STREAMS))

    def time_of(self, batch, moment):
        return self._start + HOUR_MS * (batch * MOMENTS + moment) // (self.count * MOMENTS)

    def times_of_the_word(self):
        return [self.time_of(batch, 0) for batch in range(self.count)]

    def bodies(self):
        def events(message, count):
            return b",".join([b'{"timestamp":TIME,"message":"%s"}' % message.replace('"', '\\"').encode()] * count)

        begin = f'{{"logGroupName":"{SEARCHED}","logStreamName":"{self._stream}","logEvents":['.encode()
        word, plain = events(f"{MESSAGE} {WORD}", 1), events(MESSAGE, self.EVENTS // MOMENTS)
        for batch in range(self.count):
            moments = [word, *[plain] * MOMENTS]
            times = [self.time_of(batch, 0), *(self.time_of(batch, moment) for moment in range(MOMENTS))]
            yield begin + b",".join(all.replace(b"TIME", b"%d" % at) for all, at in zip(moments, times)) + b"]}"


def put(daemon, stream, batches):
    for body in batches.bodies():
        answer = daemon.wire.call("logs", "PutLogEvents", body)
        assert "rejectedLogEventsInfo" not in answer, answer


def search(daemon, tasks):
    tasks.logs.create_log_group(logGroupName=SEARCHED)
    begin = int(time.time() * 1000) - HOUR_MS
    streams = {f"stream-{number}": Batches(f"stream-{number}", begin) for number in range(STREAMS)}
    for name in streams:
        tasks.logs.create_log_stream(logGroupName=SEARCHED, logStreamName=name)
    began, processor = time.monotonic(), processor_seconds(daemon.process.pid)
    with ThreadPoolExecutor(STREAMS) as pool:
        for done in [pool.submit(put, daemon, *stream) for stream in streams.items()]:
            done.result()
    took, processor = time.monotonic() - began, processor_seconds(daemon.process.pid) - processor
    described = tasks.logs.describe_log_streams(logGroupName=SEARCHED)["logStreams"]
    stored = sum(path.stat().st_size for path in (daemon.data_dir / "logs/put").glob("*.log"))
    say(f"put in {took:.0f} s, of which the daemon's processor {processor:.0f} s; {stored >> 20} MiB in {len(described)} streams")

    range_of = {"startTime": begin + 30 * MINUTE_MS, "endTime": begin + 31 * MINUTE_MS - 1}
    expected = sorted(
        (at, name)
        for name, batches in streams.items()
        for at in batches.times_of_the_word()
        if range_of["startTime"] <= at <= range_of["endTime"]
    )
    assert expected, "there are too few messages for the word to be in that minute: more BERTH_BENCH_LOG_MIB"
    question = {"logGroupName": SEARCHED, "filterPattern": WORD, **range_of}
    pages = tasks.logs.get_paginator("filter_log_events")
    times = []
    for _ in range(SEARCHES):
        began = time.monotonic()
        answers = list(pages.paginate(**question))
        times.append((time.monotonic() - began) * 1000)
        found = [(event["timestamp"], event["logStreamName"]) for answer in answers for event in answer["events"]]
        assert sorted(found) == expected, found
        say(f"found {len(found)} of a minute: {times[-1]:.0f} ms")
    tasks.logs.delete_log_group(logGroupName=SEARCHED)
    return [
        ("log_filter_ms", statistics.median(times), "ms"),
        ("log_filter_stored_mib", stored / (1 << 20), "MiB"),
        ("log_put_mib_per_second", stored / (1 << 20) / took, "MiB/s"),
    ]


def rows(_rounds):
    with berth() as (daemon, tasks, image):
        return [*many_lines(daemon, tasks, image), *followers(daemon, tasks, image), *search(daemon, tasks)]
