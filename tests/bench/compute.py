"""What a virtual processor is worth: a program that only computes, in a guest of berth-vmm and in one of QEMU's microvm."""

import statistics

from guest import say_and_finish, start
from quiet import say, steady_tlbs

# Each for some seconds: one in user space alone, and one whose input the kernel makes.
JOBS = {
    "awk": "$b awk 'BEGIN { for (i = 0; i < 1000000; i++) x = (x * 31 + i) % 65521 }'",
    "sha256": "$b dd if=/dev/zero bs=64k count=512 2>/dev/null | $b sha256sum >/dev/null",
}
UPTIME = "read uptime idle < /t/proc/uptime; echo $uptime"
ROUNDS = 5


def seconds(kind):
    """What each job takes by the guest's clock, which has hundredths of a second."""
    script = "".join(f"{UPTIME}\n{job}\n" for job in JOBS.values()) + f"{UPTIME}\n"
    times = [float(line) for line in say_and_finish(start(kind, script)) if line.replace(".", "", 1).isdigit()]
    assert len(times) == len(JOBS) + 1, times
    return {name: end - begin for name, begin, end in zip(JOBS, times, times[1:])}


def rows(_rounds):
    found = {}
    with steady_tlbs():
        for number in range(ROUNDS):
            for kind in ["berth", "qemu"]:
                for name, took in seconds(kind).items():
                    found.setdefault((kind, name), []).append(took)
                    say(f"compute {number + 1} of {ROUNDS}, {kind}, {name}: {took:.2f} s")
    medians = {key: statistics.median(times) for key, times in found.items()}
    return [
        *((f"compute_{name}_vs_qemu", medians["berth", name] / medians["qemu", name], "ratio") for name in JOBS),
        *((f"compute_{name}_ms", medians["berth", name] * 1000, "ms") for name in JOBS),
    ]
