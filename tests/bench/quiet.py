"""What keeps one measurement out of the next: old guests' memory, files in the page cache; and what tells of it."""

import mmap
import os
import statistics
import subprocess
import sys
from pathlib import Path


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
