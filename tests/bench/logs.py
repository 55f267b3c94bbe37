"""Output of a container that writes as fast as it can, and what it costs the host; the same bytes over a command's plain stream
beside it."""

import os
import time
from pathlib import Path

from quiet import say
from starts import berth
from tasks import task_id

LINES = int(os.environ.get("BERTH_BENCH_LINES", 1_000_000))
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


def rows(_rounds):
    with berth() as (daemon, tasks, image):
        script = f"{GO}; seq 1 {LINES}; echo {END}; sleep 3600"
        options = {"mode": "blocking"}
        task = tasks.start(image, script, log_group=GROUP, log_options=options, stopTimeout=2)
        tasks.wait_for_output(task, "ready")
        stream = {"logGroupName": GROUP, "logStreamName": f"e2e/main/{task_id(task)}"}
        cost = Cost(daemon, task)
        daemon.berth("exec", task_id(task), "--", "touch", "/go", check=True)
        while (last := tasks.logs.get_log_events(**stream, limit=1)["events"])[-1]["message"] != END:
            assert cost.so_far()[0] < STALLED_SECONDS, last
            time.sleep(0.5)
        _, daemon_seconds, machine_seconds = cost.so_far()
        # By the log's own times: from the first line to the last.
        first = tasks.logs.get_log_events(**stream, limit=2, startFromHead=True)["events"][1]
        wall = (last[-1]["timestamp"] - first["timestamp"]) / 1000
        written = tasks.output(task).decode().split("\n")
        assert written == ["ready", *map(str, range(1, LINES + 1)), END, ""], "lines were lost, doubled or out of order"
        say(f"{LINES} lines in {wall:.1f} s, complete and in order")

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
