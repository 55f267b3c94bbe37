"""Tasks from RunTask to their container's first line, by a daemon of the benchmark's own: cold, and as clones of a template."""

import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import host
import images
import product
from clones import resident
from daemon import Daemon
from quiet import say, summary, write_over_old_guests
from registry import Registry
from tasks import Tasks, task_id

AT_ONCE = 10
# Tasks that do nothing, to be weighed; each has stopped touching memory for the first time by then.
IDLE, SETTLED_SECONDS = 10, 10
# For tasks that do next to nothing: an emulated lab has memory for fewer.
ROOM = ["--overcommit-memory", "4"]


@contextmanager
def berth(*options):
    """A daemon with these options, its tasks, and an image with a shell."""
    registry = Registry().start()
    data = Path(tempfile.mkdtemp(dir=product.SCRATCH))
    daemon = Daemon(data / "data", [registry.host], options).start()
    try:
        folder = data / "image"
        images.write_layout(folder, [images.busybox_layer()], {"Cmd": ["sh"]})
        registry.push(folder, "busybox")
        subnets = daemon.wire.berth("DescribeNetworks")["subnets"]
        yield daemon, Tasks(daemon, {"subnets": [subnets[0]["subnetId"]]}), f"{registry.host}/busybox:latest"
    finally:
        daemon.stop()
        registry.stop()


def first_line(tasks, task):
    """When a task's container said its first line, by the log's time of it, which is the daemon's, in seconds."""
    page = {"events": []}
    while not page["events"]:
        page = tasks.daemon.wire.berth("GetOutput", task=task_id(task), position=0, waitSeconds=20)
        assert page["events"] or not page["end"], f"{task_id(task)} has said nothing"
    return page["events"][0]["timestamp"] / 1000


def starts(rounds, *options):
    """Milliseconds of a start, the image being there: of each of several, one after another, from RunTask's answer to the first
    line of a container that does nothing before, and from asking for it to a client's having all of its output; and from asking
    for ten at once to the output of the last."""
    with berth(*ROOM, *options) as (daemon, tasks, image):
        definition = tasks.define(image, ["echo", "first"])
        started, seen = [], []
        for number in range(rounds + 1):
            if number == 1 and not options:
                # The first has pulled the image, and has set off the making of a template.
                daemon.wait_for_template()
            write_over_old_guests()
            asked = time.monotonic()
            task = tasks.run(definition)
            accepted = time.time()
            assert tasks.output(task, follow=True) == b"first\n"
            seen.append((time.monotonic() - asked) * 1000)
            started.append((first_line(tasks, task) - accepted) * 1000)
            say(f"RunTask to the container: {started[-1]:.0f} ms, to a client's having its output: {seen[-1]:.0f} ms")
            tasks.wait(task, "STOPPED")
        write_over_old_guests()
        start = time.monotonic()
        others = tasks.run(definition, count=AT_ONCE)
        assert all(tasks.output(task, follow=True) == b"first\n" for task in others)
        together = (time.monotonic() - start) * 1000
        say(f"{AT_ONCE} tasks at once, to the last one's output: {together:.0f} ms")
        for task in others:
            tasks.wait(task, "STOPPED")
        return started[1:], seen[1:], together


def idle():
    """Mean share of memory (PSS) of the machines of tasks that do nothing, in MiB: clones of one template, of the smallest size."""
    with berth(*ROOM) as (daemon, tasks, image):
        definition = tasks.define(image, "exec sleep 600", cpu="256", memory="512")
        tasks.stop(tasks.wait(tasks.run(definition), "RUNNING"))
        daemon.wait_for_template()
        started = [tasks.wait(task, "RUNNING") for task in tasks.run(definition, count=IDLE)]
        time.sleep(SETTLED_SECONDS)
        shares = [resident(host.machine_of(task_id(task)), "Pss") for task in started]
        say(f"idle tasks, MiB each: {', '.join(f'{share:.1f}' for share in shares)}")
        tasks.stop(*started)
        return statistics.mean(shares)


def rows(rounds):
    cold, cold_seen, cold_together = starts(rounds, "--isolation", "strict")
    clones, clones_seen, clones_together = starts(rounds)
    weight = idle()
    return [
        *summary("cold_start", cold),
        *summary("run_task_to_first_output", cold_seen),
        (f"cold_start_{AT_ONCE}_at_once_ms", cold_together, "ms"),
        *summary("template_start", clones),
        *summary("run_task_to_first_output_of_clone", clones_seen),
        (f"template_start_{AT_ONCE}_at_once_ms", clones_together, "ms"),
        ("idle_task_pss_mib", weight, "MiB"),
        ("idle_tasks_per_gib", 1024 / weight, "tasks"),
    ]
