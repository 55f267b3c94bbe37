"""A guest that measures its devices: busybox, and other people's tools on a read-only drive; the same for each VMM."""

import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import product
from initrd import initrd
from quiet import write_over_old_guests
from vmm import KERNEL, TIMEOUT, Machine

MEMORY_MIB = 512
CMDLINE = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off i8042.noaux berth.guest=1"
MAC = "02:00:00:00:00:00"
TOOLS = ["fio", "iperf3", "socat"]
# Finds the drive with the tools, whichever name it has; `$d` is the other one.
PREPARE = """\
$b mkdir -p /t /sys
$b mount -t sysfs sys /sys
for one in vda vdb; do
    [ -e /dev/$one ] || continue
    if $b mount -t erofs -o ro /dev/$one /t 2>/dev/null; then :; else d=/dev/$one; fi
done
$b mount -t devtmpfs dev /t/dev
$b mount -t proc proc /t/proc
$b mount -t sysfs sys /t/sys
$b mount -t tmpfs tmp /t/tmp
$b ip link set lo up
"""
OVER = "echo over; $b poweroff -f\n"


def tools():
    """A drive (EROFS) with the tools and the libraries that they are linked to; its path."""
    folder, path = product.SCRATCH / "tools", product.SCRATCH / "tools.erofs"
    if path.exists():
        return path
    for name in ["dev", "proc", "sys", "tmp"]:
        (folder / name).mkdir(parents=True)
    for name in TOOLS:
        program = shutil.which(name)
        libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        for file in [program, *re.findall(r"(/\S+) \(0x", libraries)]:
            target = folder / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            target.chmod(0o755)
    subprocess.run(["mkfs.erofs", "--quiet", path, folder], check=True, stdout=subprocess.DEVNULL)
    return path


class Qemu:
    """QEMU's microvm with these devices; a `tap` is a name."""

    def __init__(self, archive, disk=None, tap=None):
        self.output, writer = os.pipe()
        command = ["qemu-system-x86_64", "-M", "microvm", "-name", "peer,debug-threads=on", "-enable-kvm", "-cpu", "host", "-smp", "1"]
        command += ["-m", f"{MEMORY_MIB}M", "-no-reboot", "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"]
        command += ["-kernel", KERNEL, "-initrd", archive, "-append", CMDLINE]
        drives = [(tools(), "on"), *([(disk, "off")] if disk else [])]
        for number, (path, read_only) in enumerate(drives):
            command += ["-drive", f"id=d{number},file={path},format=raw,if=none,aio=io_uring,read-only={read_only}"]
            command += ["-device", f"virtio-blk-device,drive=d{number}"]
        if tap:
            command += ["-netdev", f"tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off"]
            command += ["-device", f"virtio-net-device,netdev=n0,mac={MAC}"]
        self.process = subprocess.Popen([*Machine.before, *command], stdin=subprocess.DEVNULL, stdout=writer)
        os.close(writer)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=TIMEOUT)
        os.close(self.output)


class Lines:
    """What the guest says on its serial port."""

    def __init__(self, machine):
        self._machine, self._rest = machine, b""

    def until(self, word):
        """The lines before the one that is this word."""
        lines, deadline = [], time.monotonic() + 600
        while True:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                lines.append(line.decode(errors="replace").strip())
                if lines[-1] == word:
                    return lines[:-1]
            if not select.select([self._machine.output], [], [], max(0, deadline - time.monotonic()))[0]:
                raise RuntimeError(f"the guest is silent after {lines[-20:]}")
            piece = os.read(self._machine.output, 1 << 16)
            if not piece:
                raise RuntimeError(f"the guest ended before it said {word!r}: {lines[-20:]}")
            self._rest += piece


def start(kind, script, *, disk=None, tap=None, vsock=False, engine="auto"):
    """A machine of this kind (`berth`, `qemu`) whose init is the script, its drives by this engine if it is ours; `tap` is a function that opens one by its name."""
    write_over_old_guests()
    archive = initrd("bench", PREPARE + script + OVER)
    if kind == "qemu":
        return Qemu(archive, disk, tap and tap.name)
    opened = [os.open(tools(), os.O_RDONLY)]
    drives = [(opened[0], True)]
    if disk:
        opened.append(os.open(disk, os.O_RDWR))
        drives.append((opened[1], False))
    nets = [tap.open()] if tap else []
    machine = Machine(
        CMDLINE,
        initrd=archive,
        memory_mib=MEMORY_MIB,
        serial=True,
        vsock=vsock,
        drives=drives,
        nets=nets,
        jailed=True,
        engine=engine,
    )
    for descriptor in [*opened, *nets]:
        os.close(descriptor)
    return machine


def spread(machine):
    """Lets all of a running VMM but its vCPUs, which `Machine.before` keeps off the emulated lab's first processor, run on any."""
    for thread in Path(f"/proc/{machine.process.pid}/task").iterdir():
        name = (thread / "comm").read_text()
        # As berth-vmm and QEMU call theirs.
        if not name.startswith(("vcpu", "CPU ")):
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))


def say_and_finish(machine):
    """All that the guest says."""
    try:
        return Lines(machine).until("over")
    finally:
        machine.close()


