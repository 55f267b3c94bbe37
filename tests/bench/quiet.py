"""What keeps one measurement out of the next: old guests' memory, files in the page cache; and what tells of it."""

import contextlib
import mmap
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Pages of user space that keep the emulator's table of translated addresses at 512 entries, and how often, in seconds: it
# makes a table smaller of which less than a third was used for a tenth of a second.
TOUCHED_PAGES = 300
TOUCHED_EVERY = 0.04


def write_over_old_guests():
    """The lab's emulator keeps its translations of a guest's code until the memory is written again, and drops them one
    by one then: seconds, charged to whoever gets that memory next. So this process gets it, outside of all measuring."""
    if os.environ.get("BERTH_LAB") != "nested":
        return
    for size, advice in [(512 << 20, mmap.MADV_HUGEPAGE), (96 << 20, mmap.MADV_NOHUGEPAGE)]:
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(advice)
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 0


def _touch(processor):
    os.sched_setaffinity(0, {processor})
    size = TOUCHED_PAGES * mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 0
        while True:
            # One byte of each page.
            memory[:: mmap.PAGESIZE]
            time.sleep(TOUCHED_EVERY)


@contextlib.contextmanager
def steady_tlbs():
    """An emulated processor's table of translated addresses, one for all programs on it, is made larger and smaller by how much
    of it is used. So a guest that computes has few conflicts beside a VMM that is busy itself, and many beside one that is not.
    Here it is the same for every machine: something on each processor uses enough of it, for some 1 % of the time."""
    if os.environ.get("BERTH_LAB") != "nested":
        yield
        return
    context = multiprocessing.get_context("fork")
    touching = [context.Process(target=_touch, args=(processor,)) for processor in os.sched_getaffinity(0)]
    for process in touching:
        process.start()
    try:
        yield
    finally:
        for process in touching:
            process.kill()
            process.join()


def forget_files():
    """Takes the files of this host out of its page cache, as they are before the first start on it."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


def quantile(values, part):
    """The smallest of the values that at least this part of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)]


def summary(name, milliseconds):
    """Rows of many times: the median under the name itself, and how far the slow ones lie off."""
    return [
        (f"{name}_ms", statistics.median(milliseconds), "ms"),
        (f"{name}_p99_ms", quantile(milliseconds, 0.99), "ms"),
    ]


def say(text):
    """Progress, for the eyes only."""
    print(text, file=sys.stderr, flush=True)
