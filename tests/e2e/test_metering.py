"""What tasks cost: computed here once more from the price list, in integers, and never lost by a crash."""

import os
import random
import time
from collections import Counter

import pytest
from tasks import STOP_SECONDS, container, task_id

# us-east-1, Linux on x86, on demand: 10^-9 dollars per vCPU-hour, GB-hour, and GB-hour of storage beyond what is free.
VCPU_HOUR, GB_HOUR, STORAGE_HOUR = 40_480_000, 4_445_000, 111_000
FREE_STORAGE_GIB = 20
MINIMUM_SECONDS = 60
ROUNDS = 50
# The lab has memory for more, but the emulator has not the time.
MOST_AT_ONCE = 3


def nearest(numerator, denominator):
    return (2 * numerator + denominator) // (2 * denominator)


def cost(line):
    """Of one line: CPU units are 1/1024 vCPU, MiB are 1/1024 GB; each part is rounded by itself. A pause costs memory
    and storage alone."""
    seconds = line["billedSeconds"]
    vcpu = nearest(line["cpuUnits"] * (seconds - line["pausedSeconds"]) * VCPU_HOUR, 1024 * 3600)
    memory = nearest(line["memoryMib"] * seconds * GB_HOUR, 1024 * 3600)
    storage = nearest((line["ephemeralStorageGib"] - FREE_STORAGE_GIB) * seconds * STORAGE_HOUR, 3600)
    return vcpu, memory, storage


def assert_exact(bill):
    for line in bill["lines"]:
        parts = (line["vcpuNanos"], line["memoryNanos"], line["storageNanos"])
        assert parts == cost(line), line
        assert line["totalNanos"] == sum(parts)
    assert bill["totalNanos"] == sum(line["totalNanos"] for line in bill["lines"])
    whole, fraction = bill["total"].split(".")
    assert int(whole + fraction) == bill["totalNanos"] and len(fraction) == 9


def line_of(bill, task):
    (line,) = [line for line in bill["lines"] if line["task"] == task_id(task)]
    return line


def test_short_task_is_billed_a_minute(running, images, tasks):
    task = tasks.finish(images.busybox, "sleep 3", cpu="256", memory="512")
    bill = running.wire.berth("GetBill", task=task_id(task))
    line = line_of(bill, task)
    assert not line["open"] and not line["closedAtLastHeartbeat"]
    ran = (task["executionStoppedAt"] - task["pullStartedAt"]).total_seconds()
    assert ran < MINIMUM_SECONDS, "the lab is too slow for this test"
    assert line["billedSeconds"] == MINIMUM_SECONDS
    assert (line["cpuUnits"], line["memoryMib"]) == (256, 512)
    assert_exact(bill)
    # The same in figures made by hand: a minute of a quarter vCPU and half a GB.
    assert bill["totalNanos"] == 168_667 + 37_042


def test_bill_is_for_the_time_from_pull_to_end(running, images, tasks):
    task = tasks.finish(images.busybox, "sleep 65", cpu="1024", memory="3072")
    line = line_of(running.wire.berth("GetBill", task=task_id(task)), task)
    opened, closed = line["openedAt"], line["closedAt"]
    assert opened == pytest.approx(task["pullStartedAt"].timestamp(), abs=0.002)
    assert closed == pytest.approx(task["executionStoppedAt"].timestamp(), abs=0.002)
    milliseconds = round(closed * 1000) - round(opened * 1000)
    assert line["billedSeconds"] == -(-milliseconds // 1000) > 65


def test_running_task_is_billed_up_to_now(running, images, tasks):
    task = tasks.start(images.busybox, "sleep 3600", stopTimeout=2)
    line = line_of(running.wire.berth("GetBill", task=task_id(task)), task)
    assert line["open"] and line["closedAt"] is None
    tasks.stop(task)
    assert not line_of(running.wire.berth("GetBill", task=task_id(task)), task)["open"]


def test_task_that_never_pulled_costs_nothing_beyond_its_pull(running, images, tasks):
    task = tasks.finish(f"{images.registry.host}/nothing:latest", "true")
    bill = running.wire.berth("GetBill", task=task_id(task))
    assert all(not line["open"] for line in bill["lines"])
    assert_exact(bill)


def test_sum_over_the_tasks_is_the_bill(running, images, tasks):
    for number in range(2):
        tasks.finish(images.busybox, f"exit {number}")
    whole = running.wire.berth("GetBill")
    assert_exact(whole)
    assert not any(line["open"] for line in whole["lines"])
    single = [running.wire.berth("GetBill", task=line["task"])["totalNanos"] for line in whole["lines"]]
    assert sum(single) == whole["totalNanos"]


def test_fifty_crashes_lose_no_line_and_no_task(running, images, tasks):
    seed = int(os.environ.get("BERTH_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"BERTH_TEST_SEED={seed}")
    chance = random.Random(seed)
    definition = tasks.define(images.busybox, "sleep 1; exit 5", stopTimeout=2)
    started, ran = [], set()
    for _ in range(ROUNDS):
        alive = _when_fewer(tasks, started, MOST_AT_ONCE)
        ran |= {task["taskArn"] for task in alive if task["lastStatus"] == "RUNNING"}
        started.append(tasks.run(definition)["taskArn"])
        time.sleep(chance.uniform(0, 2))
        running.kill()
        running.start()
        tasks = type(tasks)(running, tasks.network)

    ended = [tasks.wait({"taskArn": arn}, "STOPPED") for arn in started]
    bill = running.wire.berth("GetBill")
    assert_exact(bill)
    lines = Counter(line["task"] for line in bill["lines"])
    print(f"exit codes {Counter(container(task).get('exitCode') for task in ended)}")
    for task in ended:
        name = task_id(task)
        # One line for each task that came so far as to pull, and never two.
        assert lines[name] == (1 if "pullStartedAt" in task else 0), task
        if name in lines:
            line = line_of(bill, task)
            assert not line["open"] and line["openedAt"] == pytest.approx(task["pullStartedAt"].timestamp(), abs=0.002)
        if task["taskArn"] in ran:
            assert container(task).get("exitCode") == 5, f"a running task was lost: {task}"
        # What did not run to its own end says why.
        assert container(task).get("exitCode") == 5 or task["stoppedReason"], task
    own_end = [task for task in ended if container(task).get("exitCode") == 5]
    assert len(own_end) == len(ended), f"crashes of the daemon ended tasks: {[t['stoppedReason'] for t in ended if t not in own_end]}"


def _when_fewer(tasks, arns, count):
    """The tasks that have not stopped, once they are fewer than that."""
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        described = tasks.ecs.describe_tasks(tasks=arns)["tasks"] if arns else []
        alive = [task for task in described if task["lastStatus"] != "STOPPED"]
        if len(alive) < count:
            return alive
        assert time.monotonic() < deadline, f"none of these tasks came to its end: {alive}\n{tasks.daemon.tail()}"
        time.sleep(0.5)
