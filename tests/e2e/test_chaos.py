"""Everything breaks at random under a mixed load; when it is quiet again, every state is true, every line of output and of the
bill is there once, and no secret is anywhere.

`BERTH_TEST_SEED` chooses the same faults again, `BERTH_CHAOS_SECONDS` how long they go on.
"""

import os
import random
import secrets
import time
from collections import Counter

import host
import pytest
from chaos import Faults, Load, clock_is_right_again, may_set_the_clock, mostly_one_to_one, own_disk
from tasks import Tasks, task_id
from test_metering import assert_exact
from test_secrets import places

SECONDS = int(os.environ.get("BERTH_CHAOS_SECONDS", 60))
MOST_AT_ONCE = 3


@pytest.mark.timeout(SECONDS + 900)
def test_chaos_leaves_every_task_and_every_bill_true(running, images, registry, tasks):
    seed = int(os.environ.get("BERTH_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"BERTH_TEST_SEED={seed} BERTH_CHAOS_SECONDS={SECONDS}")
    for missing, fault in [(own_disk(), "a full file system"), (may_set_the_clock(), "a clock that jumps")]:
        if not missing:
            print(f"LEFT OUT on this host: {fault}")
    chance, secret = random.Random(seed), secrets.token_hex(24)
    before, clocks = host.snapshot(running.data_dir), (time.time(), time.monotonic())
    load = Load(running, images, tasks.network, chance, secret, MOST_AT_ONCE)
    faults = Faults(running, registry, load, chance)
    start = time.monotonic()
    try:
        mostly_one_to_one(SECONDS, load, faults, chance, lambda text: print(f"{time.monotonic() - start:7.1f} {text}"))
    finally:
        clock_is_right_again(clocks)
        running.kill()
        running.start()

    ended = load.stop_all()
    print(Counter(task["stopCode"] for task in ended), Counter(c.get("exitCode") for t in ended for c in t["containers"]))
    bill = running.wire.berth("GetBill")
    assert_exact(bill)
    lines = {task: [line for line in bill["lines"] if line["task"] == task] for task in map(task_id, ended)}
    for task in ended:
        assert_told_truly(task, *load.tasks[task["taskArn"]], Tasks(running, None).output(task))
        assert_billed_truly(task, lines[task_id(task)])
    found = places(running, [secret.encode()])
    assert found[secret.encode()] == []
    leaks = host.wait_for_no_difference(before, running.data_dir)
    assert not leaks, "\n".join(leaks)
    assert list((running.data_dir / "images/tmp").iterdir()) == []


def assert_told_truly(task, lines, code, output):
    """It says why it stopped, and its output is what it wrote, in order: all of it, if it came to its own end."""
    (main,) = [container for container in task["containers"] if container["name"] == "main"]
    assert task["stopCode"] and (task["stoppedReason"] or "exitCode" in main), task
    wrote = output.decode().splitlines()
    expected = [f"line {number}" for number in range(lines)]
    if main.get("exitCode") == code:
        assert wrote == expected, task
    else:
        assert wrote == expected[: len(wrote)], task


def assert_billed_truly(task, lines):
    """One line for a task that came so far as to pull, none for another, and of the times that the task tells of."""
    assert len(lines) == (1 if "pullStartedAt" in task else 0), task
    for line in lines:
        assert not line["open"]
        assert line["openedAt"] == pytest.approx(task["pullStartedAt"].timestamp(), abs=0.002)
        assert line["closedAt"] == pytest.approx(task["executionStoppedAt"].timestamp(), abs=0.002)
        assert line["closedAt"] >= line["openedAt"]
