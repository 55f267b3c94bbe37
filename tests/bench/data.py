"""The data path: fio on a drive, iperf3 and request-response over a tap, a stream over vsock; QEMU's microvm, or the host itself,
beside it."""

import ctypes
import fcntl
import json
import os
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager

from guest import Lines, say_and_finish, spread, start
from host import on_the_last_processor
from quiet import say, steady_tlbs
from vmm import Machine

ROUNDS = 3
SECONDS = 4
DISK_MIB = 512
JOBS = {
    "read_sequential_1m": "--rw=read --bs=1m --iodepth=4",
    "write_sequential_1m": "--rw=write --bs=1m --iodepth=4",
    "read_random_4k": "--rw=randread --bs=4k --iodepth=32",
    "write_random_4k": "--rw=randwrite --bs=4k --iodepth=32",
}
HOST, GUEST, PREFIX = "10.254.77.1", "10.254.77.2", 30
ECHO_PORT, IPERF_PORT = 7007, 5201
STREAM_BYTES = 256 << 20
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000
CLONE_NEWNET = 0x40000000


def fio(name, path):
    common = f"--filename={path} --direct=1 --ioengine=libaio --runtime={SECONDS} --time_based --ramp_time=1"
    return f"fio --name={name} {common} --output-format=terse {JOBS[name]}"


def throughput(terse):
    """KiB/s of a job, from fio's terse output, version 3."""
    fields = terse.split(";")
    return int(fields[6]) or int(fields[47])


def drives():
    """KiB/s of each job by each VMM, on a file in memory."""
    found = {}
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="berth-bench-") as disk:
        # Written once, so that nobody's measurement is of finding memory for it.
        for _ in range(DISK_MIB):
            disk.write(bytes(1 << 20))
        disk.flush()
        script = "".join(f"$b chroot /t {fio(name, '$d')}\n" for name in JOBS)
        for number in range(ROUNDS):
            for kind in ["berth", "qemu"]:
                lines = say_and_finish(start(kind, script, disk=disk.name))
                results = [line for line in lines if line.startswith("3;fio")]
                assert len(results) == len(JOBS), lines
                for name, line in zip(JOBS, results):
                    found.setdefault((kind, name), []).append(throughput(line))
                    say(f"drive {number + 1} of {ROUNDS}, {kind}, {name}: {throughput(line)} KiB/s")
        for name in JOBS:
            # A file in memory knows no direct access on every kernel.
            command = fio(name, disk.name).replace("--direct=1", "--direct=0").split()
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
            found["host", name] = [throughput(line)]
    return {key: statistics.median(values) for key, values in found.items()}


@contextmanager
def network_namespace():
    """This thread in a network namespace of its own, for as long as it lasts."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


class Tap:
    """A tap with an address, as a VMM takes it: by its name, or opened."""

    name = "bench0"

    def __init__(self):
        subprocess.run(["ip", "tuntap", "add", self.name, "mode", "tap", "vnet_hdr"], check=True)
        subprocess.run(["ip", "address", "add", f"{HOST}/{PREFIX}", "dev", self.name], check=True)
        subprocess.run(["ip", "link", "set", self.name, "up"], check=True)

    def open(self):
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", self.name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        return tap


def iperf(address, *options):
    """Bit/s that arrive."""
    command = ["iperf3", "-c", address, "-t", str(SECONDS), "-O", "1", "-J", *options]
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        found = json.loads(done.stdout)
        if "error" not in found:
            return found["end"]["sum_received"]["bits_per_second"]
        # Between two clients nobody listens for a moment.
        assert "refused" in found["error"] and time.monotonic() < deadline, found["error"]
        time.sleep(0.2)


def requests(address):
    """Requests of one byte that are answered, a second."""
    with socket.create_connection((address, ECHO_PORT), timeout=60) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            stream.sendall(b"x")
            assert stream.recv(1) == b"x"
            count += 1
    return count / SECONDS


def when_it_echoes(address):
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((address, ECHO_PORT), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {address}:{ECHO_PORT}"
            time.sleep(0.1)


def links_of(kind, script, tap, again=True):
    """Bit/s into one guest and out of it, and requests a second. A peer whose guest stalls in the emulated lab, as it does now and
    then, gets a second one, and that is told; ours does not."""
    machine = start(kind, script, tap=tap)
    try:
        Lines(machine).until("listening")
        spread(machine)
        when_it_echoes(GUEST)
        return {"in": iperf(GUEST), "out": iperf(GUEST, "-R"), "requests": requests(GUEST)}
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        if kind != "qemu" or not again:
            raise
        say(f"network: the guest of {kind} STALLED ({error}); once more")
    finally:
        machine.close()
    return links_of(kind, script, tap, again=False)


def network():
    """Of each VMM: bit/s into its guest and out of it, and requests a second."""
    script = f"""\
$b ip link set eth0 up
$b ip address add {GUEST}/{PREFIX} dev eth0
$b chroot /t iperf3 -s -p {IPERF_PORT} >/dev/null &
$b nc -ll -p {ECHO_PORT} -e $b cat &
echo listening
while :; do $b sleep 60; done
"""
    found = {}
    with network_namespace():
        tap = Tap()
        for number in range(ROUNDS):
            for kind in ["berth", "qemu"]:
                measured = links_of(kind, script, tap)
                for name, value in measured.items():
                    found.setdefault((kind, name), []).append(value)
                say(f"network {number + 1} of {ROUNDS}, {kind}: {measured}")
        server = subprocess.Popen(["iperf3", "-s", "-p", str(IPERF_PORT)], stdout=subprocess.DEVNULL)
        try:
            found["host", "in"] = [iperf("127.0.0.1")]
        finally:
            server.terminate()
            server.wait(timeout=30)
    return {key: statistics.median(values) for key, values in found.items()}


def drained(stream):
    """Bytes a second that this socket gives, until its end."""
    stream.setblocking(True)
    total, begin = 0, None
    while piece := stream.recv(1 << 18):
        begin = begin or time.monotonic()
        total += len(piece)
    assert total == STREAM_BYTES, f"{total} bytes of {STREAM_BYTES} came"
    return total / (time.monotonic() - begin)


def filled(stream):
    """Bytes a second that this socket takes; the other side says when it has all."""
    stream.setblocking(True)
    block, begin = bytes(1 << 18), time.monotonic()
    for _ in range(STREAM_BYTES // len(block)):
        stream.sendall(block)
    stream.shutdown(socket.SHUT_WR)
    assert stream.recv(1) == b""
    return STREAM_BYTES / (time.monotonic() - begin)


def vsock():
    """Bytes a second out of a guest and into it, and between two processes of the host by a Unix socket."""
    out = f"socat -u -b262144 OPEN:/dev/zero,readbytes={STREAM_BYTES}"
    script = f"""\
$b chroot /t {out} VSOCK-CONNECT:2:5000
$b chroot /t socat -u -b262144 VSOCK-CONNECT:2:5001 OPEN:/dev/null
"""
    found = {"out": [], "in": [], "unix": []}
    for number in range(ROUNDS):
        machine = start("berth", script, vsock=True)
        try:
            connections = machine.connections()
            first = next(connections)
            spread(machine)
            found["out"].append(drained(first))
            found["in"].append(filled(next(connections)))
        finally:
            machine.close()
        here, there = socket.socketpair()
        with there:
            writer = subprocess.Popen([*out.split(), f"FD:{there.fileno()}"], pass_fds=[there.fileno()])
        found["unix"].append(drained(here))
        writer.wait(timeout=30)
        say(f"vsock {number + 1} of {ROUNDS}: {({name: f'{values[-1] / 1e6:.0f} MB/s' for name, values in found.items()})}")
    return {name: statistics.median(values) for name, values in found.items()}


def rows(_rounds):
    Machine.before = on_the_last_processor()
    with steady_tlbs():
        disks, links, streams = drives(), network(), vsock()
    table = []
    for name in JOBS:
        table.append((f"drive_{name}_vs_qemu", disks["berth", name] / disks["qemu", name], "ratio"))
        table.append((f"drive_{name}_vs_host", disks["berth", name] / disks["host", name], "ratio"))
        table.append((f"drive_{name}_kib_s", disks["berth", name], "KiB/s"))
    for name in ["in", "out", "requests"]:
        table.append((f"net_{name}_vs_qemu", links["berth", name] / links["qemu", name], "ratio"))
    for name in ["in", "out"]:
        table.append((f"net_{name}_mbit_s", links["berth", name] / 1e6, "Mbit/s"))
    table.append(("net_requests_s", links["berth", "requests"], "1/s"))
    table.append(("net_in_vs_host_loopback", links["berth", "in"] / links["host", "in"], "ratio"))
    for name in ["in", "out"]:
        table.append((f"vsock_{name}_vs_unix", streams[name] / streams["unix"], "ratio"))
        table.append((f"vsock_{name}_mb_s", streams[name] / 1e6, "MB/s"))
    return table
