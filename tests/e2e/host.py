"""What a task may leave behind on the host: taken before and after, and compared."""

import os
import re
import subprocess
import time
from pathlib import Path

PREFIX = "berth"
CGROUP = Path("/sys/fs/cgroup") / PREFIX
# What moves by itself: counters, the time until a conntrack entry or a set element is forgotten.
MOVING = re.compile(r"counter packets \d+ bytes \d+|expires \S+")


def on_the_last_processor():
    """What goes before a command whose guests, or whose children's, must not run on the emulated lab's first processor: an
    interrupt that meets a guest's entry there brings that lab down (lab/README.md). Nothing elsewhere."""
    processors = sorted(os.sched_getaffinity(0))
    if os.environ.get("BERTH_LAB") != "nested" or len(processors) < 2:
        return []
    return ["taskset", "--cpu-list", str(processors[-1])]


def _lines(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    return done.stdout.splitlines()


def network_namespaces():
    folder = Path("/run/netns")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _in(namespace, *command):
    return _lines("ip", "netns", "exec", namespace, *command) if namespace else _lines(*command)


def links(namespace=None):
    """Names of the links of a namespace."""
    return sorted(line.split(": ")[1].split("@")[0] for line in _in(namespace, "ip", "-o", "link"))


def rules(namespace=None):
    """The nftables ruleset, without what moves."""
    return [MOVING.sub("", line) for line in _in(namespace, "nft", "list", "ruleset")]


def machines():
    """Process ids of every berth-vmm, zombies too."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        # The name is in parentheses, cut after 15 bytes.
        if text[text.index("(") + 1 : text.rindex(")")] == "berth-vmm":
            found.append(int(status.parent.name))
    return sorted(found)


def husks():
    """Control groups of machines that wait for a task, and the processes of each. They come and go beside all tasks."""
    groups = {group.name: _processes(group) for group in CGROUP.glob("husk-*/")}
    return {name: processes for name, processes in groups.items() if not any(map(task_of, processes))}


def task_of(machine):
    """The task whose machine this process is, by where it writes what it has to say; none if it waits for one."""
    try:
        log = Path(os.readlink(f"/proc/{machine}/fd/2"))
    except OSError:
        return None
    return log.parent.name if log.name == "vmm.log" else None


def _processes(group):
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except FileNotFoundError:
        return []


def cgroups():
    """The control groups of tasks, and of what was one: those in which no machine waits for a task, or is about to."""
    deadline = time.monotonic() + 5
    while True:
        # In this order: what is made meanwhile waits.
        groups = {path.name for path in CGROUP.glob("*/")}
        waiting = husks()
        left = sorted(groups - {name for name, processes in waiting.items() if processes})
        if not any(name in waiting for name in left) or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def snapshot(data_dir):
    """Everything on this host that a task could leave behind."""
    namespaces = network_namespaces()
    waiting = {process for processes in husks().values() for process in processes}
    return {
        "network namespaces": namespaces,
        "links": {namespace or "host": links(namespace) for namespace in [None, *namespaces]},
        "nftables": {namespace or "host": rules(namespace) for namespace in [None, *namespaces]},
        "mounts": sorted(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()),
        "loop devices": _lines("losetup", "--noheadings", "--list", "--output", "NAME,BACK-FILE"),
        "control groups": cgroups(),
        "machines": [machine for machine in machines() if machine not in waiting],
        "machine folders": sorted(path.name for path in (data_dir / "machines").glob("*")),
    }


def differences(before, after):
    """Lines that say what was not there before, or is gone."""
    found = []
    for kind, was in before.items():
        now = after[kind]
        if was != now:
            found.append(f"{kind}:\n  before {was}\n  after  {now}")
    return found


def wait_for_no_difference(before, data_dir, seconds=60):
    """The differences that stay; giving up a task's things may take a moment."""
    deadline = time.monotonic() + seconds
    while True:
        found = differences(before, snapshot(data_dir))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def machine_of(task_id):
    """The process id of a task's machine."""
    running = machines()
    found = [machine for machine in running if task_of(machine) == task_id]
    assert len(found) == 1, f"task {task_id} has the machines {found} of {running}"
    assert _processes(group_of(found[0])) == found
    return found[0]


def group_of(machine):
    """The control group that a process is in."""
    (line,) = [line for line in Path(f"/proc/{machine}/cgroup").read_text().splitlines() if line.startswith("0::")]
    return CGROUP.parent / line.removeprefix("0::/")


def cpu_usage_us(task_id):
    """CPU time of a task's control group, in microseconds."""
    for line in (group_of(machine_of(task_id)) / "cpu.stat").read_text().splitlines():
        name, value = line.split()
        if name == "usage_usec":
            return int(value)
    raise AssertionError(f"no usage_usec for {task_id}")


def threads(pid):
    """Where each thread of a process is in the kernel: its name, state and call chain."""
    found = []
    for thread in sorted(Path(f"/proc/{pid}/task").glob("*")):
        try:
            name, stack = (thread / "comm").read_text().strip(), (thread / "stack").read_text().split("\n")
            state = re.search(r"State:\s+(.*)", (thread / "status").read_text()).group(1)
        except OSError as error:
            name, state, stack = "?", str(error), []
        chain = " < ".join(line.split()[-1].split("+")[0] for line in stack if line)
        found.append(f"{thread.name} {name} {state}: {chain}")
    return found


def kernel_log():
    """The lines of the kernel's log."""
    return _lines("dmesg")
