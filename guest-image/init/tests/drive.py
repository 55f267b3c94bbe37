#!/usr/bin/env python3
"""Boots berth-init in QEMU and plays the host: an independent check of the guest, without Berth's own VMM or runtime.

It needs KVM that boots real guests and vhost_vsock, which the lab has:

    cargo xtask guest
    cargo xtask lab -- guest-image/init/tests/drive.py target/guest/vmlinux target/guest/initrd.cpio

It also needs qemu-system-x86_64, mkfs.erofs, mkfs.ext4 and a static /bin/busybox. Every check prints one line; the
exit status is the number of failed ones.
"""

import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time

HOST_PORT = 1024
GUEST_CID = 42
SESSION = "between host and init"
VERSION = 1
TIMEOUT = 90
MIB = 1024 * 1024
DEFAULT_CAPABILITIES = "00000000a80425fb"

MACHINE = (
    "qemu-system-x86_64 -M microvm,x-option-roms=off,rtc=off,isa-serial=on -accel kvm -cpu host -smp 2 -m 512 "
    "-nodefaults -no-user-config -display none -no-reboot -serial stdio"
).split()
COMMAND_LINE = "console=ttyS0 berth.guest=1 panic=-1 reboot=t pci=off"

failures = 0


def check(what, good, detail=""):
    global failures
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}{'' if good else f': {detail!r}'}", flush=True)


class Host:
    """The host's side of the protocol for one machine."""

    def __init__(self, folder, vmlinux, initrd, image):
        scratch = self.scratch = os.path.join(folder, "scratch.img")
        with open(scratch, "wb") as file:
            file.truncate(256 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", scratch], check=True)
        self.listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        self.listener.bind((socket.VMADDR_CID_ANY, HOST_PORT))
        self.listener.listen()
        self.listener.settimeout(TIMEOUT)
        self.console = open(os.path.join(folder, "console"), "w+b")
        arguments = [*MACHINE, "-kernel", vmlinux, "-initrd", initrd, "-append", COMMAND_LINE]
        for index, (path, serial, more) in enumerate(
            [(image, "image0", ",readonly=on"), (scratch, "scratch", "")]
        ):
            arguments += ["-drive", f"id=d{index},file={path},format=raw,if=none{more}"]
            arguments += ["-device", f"virtio-blk-device,drive=d{index},serial={serial}"]
        arguments += ["-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-device,netdev=n0"]
        arguments += ["-device", f"vhost-vsock-device,guest-cid={GUEST_CID}"]
        self.qemu = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=self.console)
        self.output = {}
        self.states = {}
        self.seen = []
        self.errors = []
        self.acknowledge = True
        self.unstored = set()
        self.connect()

    def connect(self):
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(TIMEOUT)
        self.buffer = b""
        for name in self.unstored:
            self.output.pop((name, "stdout"), None)
        self.stored = {stream: len(data) for stream, data in self.output.items()}
        positions = [
            {"container": name, "stream": stream, "offset": offset}
            for (name, stream), offset in self.stored.items()
        ]
        self.hello = self.receive()
        assert self.hello["type"] == "hello", self.hello
        self.send({"type": "hello", "version": VERSION, "outputs": positions})

    def drop(self):
        """Breaks the connection in the middle of whatever is under way."""
        self.connection.close()
        self.connect()

    def send(self, message):
        body = b"\0" + json.dumps(message).encode()
        self.connection.sendall(struct.pack("<I", len(body)) + body)

    def read(self, count):
        while len(self.buffer) < count:
            try:
                piece = self.connection.recv(256 * 1024)
            except TimeoutError:
                lengths = {stream: len(data) for stream, data in self.output.items()}
                raise TimeoutError(f"the guest is silent: {self.states}, {lengths}, {self.errors}") from None
            if not piece:
                raise EOFError
            self.buffer += piece
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def receive(self):
        """Takes one frame; gives the message, or none of output."""
        (length,) = struct.unpack("<I", self.read(4))
        body = self.read(length)
        if body[0] == 0:
            message = json.loads(body[1:])
            self.note(message)
            return message
        name_length = body[1]
        name = body[2 : 2 + name_length].decode()
        stream = ["stdout", "stderr"][body[2 + name_length]]
        (offset,) = struct.unpack_from("<Q", body, 3 + name_length)
        data = self.output.setdefault((name, stream), bytearray())
        if offset != len(data):
            check(f"output of {name} goes on where it stopped", False, (offset, len(data)))
        data += body[11 + name_length :]
        if self.acknowledge:
            self.stored[name, stream] = len(data)
        # Said even if it is nothing new: a guest that waits for room under vhost_vsock may otherwise never hear of it.
        offset = self.stored.setdefault((name, stream), 0)
        self.send({"type": "ack", "container": name, "stream": stream, "offset": offset})
        return None

    def note(self, message):
        if message["type"] == "error":
            self.errors.append(message["message"])
        statuses = message.get("containers", []) + ([message["status"]] if "status" in message else [])
        for status in statuses:
            self.states[status["name"]] = status
            self.seen.append((status["name"], status["state"]))

    def until(self, condition):
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError
            self.receive()

    def until_exited(self, name):
        """Waits for the end of a container and of its output; gives its last status."""

        def complete():
            state = self.states.get(name, {})
            if state.get("state") != "exited":
                return state.get("state") == "start_failed"
            lengths = [len(self.output.get((name, stream), b"")) for stream in ("stdout", "stderr")]
            return lengths == [state["stdout_bytes"], state["stderr_bytes"]]

        self.until(complete)
        return self.states[name]

    def until_running(self, name):
        self.until(lambda: name in self.states)

    def text(self, name, stream="stdout"):
        return self.output.get((name, stream), b"").decode(errors="replace")

    def power_off(self):
        begun = time.monotonic()
        self.send({"type": "power_off"})
        try:
            self.qemu.wait(30)
        except subprocess.TimeoutExpired:
            self.qemu.kill()
        print(f"     off after {time.monotonic() - begun:.2f} s", flush=True)
        self.console.seek(0)
        console = self.console.read().decode(errors="replace")
        check("the machine powers off", self.qemu.returncode == 0, (self.qemu.returncode, console))
        check("the console stays quiet", "berth-init" not in console, console)
        self.connection.close()
        self.listener.close()
        header = subprocess.run(["dumpe2fs", "-h", self.scratch], capture_output=True, text=True).stdout
        check("the scratch drive was released", "Filesystem state:         clean" in header, header)


def container(name, *argv, **more):
    spec = {
        "name": name,
        "image_drive": "image0",
        "argv": list(argv),
        "env": {},
        "working_dir": "/",
        "user": "",
        "stop_signal": "SIGTERM",
        "readonly_root": False,
        "capabilities_add": [],
        "capabilities_drop": [],
        "nofile": [1024, 4096],
        "memory_bytes": None,
        "cpu_shares": None,
        "init_process": False,
    }
    return {**spec, **more}


def task(*containers, pids=256):
    return {
        "task_id": "0123456789abcdef",
        "session": SESSION,
        "hostname": "ip-10-0-2-15",
        "network": {
            "address": "10.0.2.15",
            "prefix_len": 24,
            "gateway": "10.0.2.2",
            "dns_servers": ["10.0.2.3"],
            "search_domains": ["test.internal"],
            "mtu": 1400,
        },
        "memory_bytes": 256 * MIB,
        "pids": pids,
        "scratch_drive": "scratch",
        "containers": list(containers),
    }


def make_image(folder):
    """A small image with a few traps in it."""
    root = os.path.join(folder, "root")
    for name in ("bin", "etc", "tmp", "home/app"):
        os.makedirs(os.path.join(root, name))
    subprocess.run(["cp", "/bin/busybox", f"{root}/bin/busybox"], check=True)
    listing = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True)
    for applet in listing.stdout.split():
        if applet != "busybox":
            os.symlink("busybox", f"{root}/bin/{applet}")
    files = {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        "etc/group": "root:x:0:\nstaff:x:50:app\napp:x:1000:\n",
        "etc/hosts": "of the image\n",
        "bin/plain": "not executable\n",
        "bin/broken": "no program\n",
    }
    for name, text in files.items():
        with open(f"{root}/{name}", "w") as file:
            file.write(text)
    os.chmod(f"{root}/bin/broken", 0o755)
    os.symlink("../../../../run/nowhere/resolv.conf", f"{root}/etc/resolv.conf")
    os.symlink("/proc/1/root", f"{root}/escape")
    data = random.Random(7).randbytes(5 * MIB)
    with open(f"{root}/data", "wb") as file:
        file.write(data)
    os.chown(f"{root}/home/app", 1000, 1000)
    image = os.path.join(folder, "image.erofs")
    subprocess.run(["mkfs.erofs", "--quiet", image, root], check=True, stdout=subprocess.DEVNULL)
    return image, data


INSPECT = """
echo pid=$$
echo cwd=$(pwd)
echo path=$PATH home=$HOME hostname=$HOSTNAME given=$GIVEN
hostname
cat /etc/hostname /etc/hosts /etc/resolv.conf
grep -E 'Cap|NoNewPrivs|Groups' /proc/self/status
echo kcore=$(head -c 1 /proc/kcore | wc -c)
echo firmware=$(ls /sys/firmware | wc -l)
(echo 1 > /proc/sys/vm/drop_caches) 2>/dev/null && echo sysctl-written
(echo x > /proc/sysrq-trigger) 2>/dev/null && echo sysrq-written
touch /sys/kernel/x 2>/dev/null && echo sys-written
mkdir /sys/fs/cgroup/x 2>/dev/null && echo cgroup-written
mount -t tmpfs none /tmp 2>/dev/null && echo mounted
for n in 0 16; do
    mknod /tmp/vd$n b 254 $n && head -c 1 /tmp/vd$n 2>/dev/null | grep -q . && echo drive-read
    mknod /dev/vd$n b 254 $n && head -c 1 /dev/vd$n 2>/dev/null | grep -q . && echo drive-read
done
echo null > /dev/null && echo tty=$(head -c 4 /dev/zero | wc -c) random=$(head -c 4 /dev/urandom | wc -c)
ls -l /dev | awk 'NR > 1 && $1 !~ /^b/ {print "dev", $1, $NF}'
ls -d /run/berth /init /base 2>/dev/null
echo fds=$(ls /proc/self/fd | wc -l)
ulimit -n; ulimit -Hn
ip addr show eth0 | grep -E 'mtu|inet '
ip route
cat /sys/class/net/lo/flags
cat /proc/self/cgroup
cat /sys/fs/cgroup/memory.max
touch /upper && ls /upper
grep ' / ' /proc/mounts
echo escape=$(ls -d /escape/run/berth 2>/dev/null)
echo words > /dev/stdout
ls /proc | grep -c '^[0-9]'
"""


def inspect(host):
    host.until_exited("inspect")
    text = host.text("inspect")
    lines = text.splitlines()
    for expected in [
        "pid=1",
        "cwd=/work/dir",
        "path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin home=/root hostname=ip-10-0-2-15 given=a b",
        "127.0.0.1\tlocalhost",
        "10.0.2.15\tip-10-0-2-15",
        "search test.internal",
        "nameserver 10.0.2.3",
        "CapInh:\t0000000000000000",
        f"CapPrm:\t{DEFAULT_CAPABILITIES}",
        f"CapEff:\t{DEFAULT_CAPABILITIES}",
        f"CapBnd:\t{DEFAULT_CAPABILITIES}",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "kcore=0",
        "firmware=0",
        "tty=4 random=4",
        "dev crw-rw-rw- null",
        "dev lrwxrwxrwx pts/ptmx",
        "dev lrwxrwxrwx /proc/self/fd/1",
        "default via 10.0.2.2 dev eth0",
        "0::/",
        str(64 * MIB),
        "/upper",
        "escape=",
        "words",
        "1024",
        "4096",
    ]:
        check(f"inside: {expected}", expected in [line.strip() for line in lines], text)
    for forbidden in ["written", "mounted", "drive-read", "of the image"]:
        check(f"inside, never: {forbidden}", forbidden not in text, text)
    for forbidden in ["/run/berth", "/init", "/base"]:
        check(f"inside there is no {forbidden}", forbidden not in lines, text)
    check("inside: the address and the MTU", "inet 10.0.2.15/24" in text and "mtu 1400" in text, text)
    # ls has three standard streams and the folder it lists.
    check("inside: no descriptor of PID 1", "fds=4" in lines, text)
    check("inside: nodev, and suid allowed", any(" / overlay" in l and "nodev" in l and "nosuid" not in l for l in lines), text)


def first_machine(folder, vmlinux, initrd, image, data):
    host = Host(folder, vmlinux, initrd, image)
    check("hello names the version and no task", (host.hello["version"], host.hello["session"]) == (VERSION, None))
    print(f"     ready after {host.hello['ready_ms']} ms", flush=True)
    host.send(
        {
            "type": "run",
            "task": task(
                container("exit", "sh", "-c", "echo out; echo err >&2; exit 7"),
                container("kill", "sleep", "1000"),
                container("bulk", "cat", "/data"),
                container("oom", "tail", "/dev/zero", memory_bytes=32 * MIB),
                container(
                    "user", "sh", "-c",
                    "id; echo $HOME; grep CapEff /proc/self/status; echo x > /dev/stderr; touch /tmp/x || echo closed",
                    user="app",
                ),
                container("ids", "id", user="2000:3000"),
                container(
                    "readonly", "sh", "-c",
                    "touch /x; echo x > /etc/hosts; touch /dev/shm/x && echo shm; pwd",
                    readonly_root=True, working_dir="/new/dir",
                ),
                container("missing", "no-such-program"),
                container("plain", "/bin/plain"),
                container("broken", "/bin/broken"),
                container("nobody", "true", user="nobody"),
                container("capability", "true", capabilities_add=["CAP_NOPE"]),
                container("drive", "true", image_drive="image1"),
                container(
                    "reaper", "sh", "-c",
                    "trap 'echo stopped; exit 3' TERM; echo pid=$$; tr '\\0' ' ' < /proc/1/cmdline; (sleep 0.2 &); echo up; while :; do sleep 0.1; done",
                    init_process=True,
                ),
                container("signaled", "sh", "-c", "kill -10 $$", init_process=True),
                container("trap", "sh", "-c", "trap 'exit 4' USR1; echo up; while :; do sleep 0.1; done", stop_signal="SIGUSR1"),
                container("deaf", "sleep", "1000"),
                container("orphans", "sh", "-c", "(sleep 1000 &) ; (sleep 1000 &); echo gone"),
                container(
                    "inspect", "sh", "-c", INSPECT,
                    env={"GIVEN": "a b"}, working_dir="/work/dir", memory_bytes=64 * MIB, cpu_shares=512,
                ),
            ),
        }
    )
    state = host.until_exited("exit")
    check("exit code 7", (state["exit_code"], state["signal"], state["oom_killed"]) == (7, None, False), state)
    check("both streams", (host.text("exit"), host.text("exit", "stderr")) == ("out\n", "err\n"), host.output)
    order = [state for name, state in host.seen if name == "exit"]
    check("running comes before exited", order == ["running", "exited"], order)

    host.until_running("kill")
    host.send({"type": "signal", "container": "kill", "signal": 9})
    state = host.until_exited("kill")
    check("SIGKILL is 137", (state["exit_code"], state["signal"]) == (137, 9), state)

    host.until_exited("bulk")
    check("5 MiB byte for byte", host.output["bulk", "stdout"] == data)

    state = host.until_exited("oom")
    check("out of memory", state["oom_killed"] and state["exit_code"] == 137, state)

    host.until_exited("user")
    expected = "uid=1000(app) gid=1000(app) groups=50(staff),1000(app)"
    lines = host.text("user").splitlines()
    check("user by name", lines[:1] == [expected], lines)
    check("its home, and no capabilities", lines[1:] == ["/home/app", "CapEff:\t0000000000000000", "closed"], lines)
    check("it may open its own streams", host.text("user", "stderr").startswith("x\n"), host.text("user", "stderr"))
    host.until_exited("ids")
    check("user by number", host.text("ids").startswith("uid=2000 gid=3000"), host.text("ids"))

    host.until_exited("readonly")
    check("read-only root", host.text("readonly") == "shm\n/new/dir\n", host.text("readonly"))
    errors = host.text("readonly", "stderr")
    check("nothing is writable", errors.count("Read-only file system") == 2, errors)

    for name, reason in [
        ("missing", 'exec: "no-such-program": executable file not found in $PATH'),
        ("plain", 'exec: "/bin/plain": permission denied'),
        ("broken", "exec /bin/broken: exec format error"),
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("capability", 'unknown capability "CAP_NOPE"'),
        ("drive", 'there is no drive with the serial "image1"'),
    ]:
        state = host.until_exited(name)
        check(f"start fails: {reason}", state.get("reason") == reason, state)

    host.until(lambda: host.text("reaper").endswith("up\n"))
    check("the reaper is pid 1", "pid=2\nberth-reaper 2" in host.text("reaper"), host.text("reaper"))
    host.send({"type": "stop", "container": "reaper", "grace_ms": 60000})
    state = host.until_exited("reaper")
    check("the reaper passes the stop signal on", state["exit_code"] == 3 and "stopped" in host.text("reaper"), state)
    state = host.until_exited("signaled")
    check("the reaper passes the ending on", state["exit_code"] == 128 + 10, state)

    host.until(lambda: host.text("trap") == "up\n")
    host.send({"type": "stop", "container": "trap", "grace_ms": 60000})
    state = host.until_exited("trap")
    check("the chosen stop signal", state["exit_code"] == 4, state)

    host.until_running("deaf")
    begun = time.monotonic()
    host.send({"type": "stop", "container": "deaf", "grace_ms": 700})
    state = host.until_exited("deaf")
    took = time.monotonic() - begun
    check("SIGKILL after the grace time", state["exit_code"] == 137 and 0.6 < took < 20, (state, took))

    state = host.until_exited("orphans")
    check("background processes die with pid 1", state["exit_code"] == 0, state)
    inspect(host)

    host.send({"type": "run", "task": task(container("again", "true"))})
    host.until(lambda: host.errors)
    check("a second task is refused", host.errors == ["there is a task already"], host.errors)
    host.drop()
    names = {status["name"]: status["state"] for status in host.hello["containers"]}
    check("a new connection tells everything again", host.hello["session"] == SESSION and names["exit"] == "exited" and len(names) == 19, names)
    host.power_off()


def second_machine(folder, vmlinux, initrd, image, data):
    host = Host(folder, vmlinux, initrd, image)
    bomb = "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; echo all"
    host.send(
        {
            "type": "run",
            "task": task(
                container("bulk", "sh", "-c", "cat /data; echo end >&2"),
                container("slow", "cat", "/data"),
                container("late", "sh", "-c", "sleep 3; echo late"),
                pids=64,
            ),
        }
    )
    host.acknowledge = False
    host.unstored = {"slow"}
    for cut in range(1, 6):
        bulk = host.output.setdefault(("bulk", "stdout"), bytearray())
        goal = cut * 700_000
        while len(bulk) < goal:
            before = len(bulk)
            host.receive()
            if len(bulk) > before and cut % 2:
                host.stored["bulk", "stdout"] = before
        host.drop()
    host.until(lambda: len(host.output.get(("slow", "stdout"), b"")) == MIB)
    state = host.states["slow"]
    check("a container whose output nobody stores waits", state["state"] == "running", state)
    host.acknowledge = True
    host.unstored = set()
    host.drop()
    for name in ("bulk", "slow"):
        stored = host.output[name, "stdout"]
        host.send({"type": "ack", "container": name, "stream": "stdout", "offset": len(stored)})
        host.until_exited(name)
        check(f"{name}: no byte lost or repeated over reconnects", host.output[name, "stdout"] == data)
    host.until_exited("late")
    check("a task outlives connections", host.text("late") == "late\n")
    check("no complaint", host.errors == [], host.errors)
    host.power_off()

    host = Host(folder, vmlinux, initrd, image)
    host.send({"type": "run", "task": task(container("bomb", "sh", "-c", bomb), container("calm", "sleep", "1000"), pids=40)})
    state = host.until_exited("bomb")
    errors = host.text("bomb", "stderr")
    check("a fork bomb is capped", state["exit_code"] != 0 and "Resource temporarily unavailable" in errors, (state, errors))
    host.until_running("calm")
    host.send({"type": "stop", "container": "calm", "grace_ms": 0})
    check("its neighbour still obeys", host.until_exited("calm")["exit_code"] == 137)
    host.connection.sendall(struct.pack("<I", 0))
    host.connection.recv(1)
    host.drop()
    check("after garbage the guest comes back", host.hello["session"] == SESSION, host.hello)
    host.power_off()


def probe(vmlinux, initrd):
    arguments = [*MACHINE, "-kernel", vmlinux, "-initrd", initrd, "-append", f"{COMMAND_LINE} berth.probe=1"]
    ended = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)
    lines = [line.split() for line in ended.stdout.splitlines() if line.startswith("berth-init")]
    good = len(lines) == 1 and lines[0][1] == "ready" and lines[0][2].isdigit()
    check("the probe prints its line and powers off", good and ended.returncode == 0, ended)
    print(f"     {ended.stdout.strip()}", flush=True)


def main():
    vmlinux, initrd = sys.argv[1:3]
    probe(vmlinux, initrd)
    with tempfile.TemporaryDirectory() as folder:
        image, data = make_image(folder)
        first_machine(folder, vmlinux, initrd, image, data)
        second_machine(folder, vmlinux, initrd, image, data)
    print(f"{failures} failed")
    return failures


if __name__ == "__main__":
    sys.exit(main())
