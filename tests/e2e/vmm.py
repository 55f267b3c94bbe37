"""A `berth-vmm` of a test's own, without a daemon: what it is handed, and its control socket."""

import json
import mmap
import os
import socket
import struct
import subprocess
import time

import product

KERNEL, INITRD = product.GUEST / "vmlinux", product.GUEST / "initrd.cpio"
JAIL = {"uid": 2_000_065_535, "gid": 2_000_065_535}
TIMEOUT = 180


class Snapshot:
    """The files of a snapshot, in memory: the guest's memory, which a machine may share, and the state beside it."""

    def __init__(self, memory_mib):
        self.memory_mib = memory_mib
        self.memory = os.memfd_create("guest-memory")
        os.ftruncate(self.memory, memory_mib << 20)
        self.state = os.memfd_create("machine-state")
        self.working_set = {"written": [], "read": []}

    def learn(self, clone):
        """Takes the pages that this clone has found for itself, or written to, as those that clones need first."""
        inode = str(os.fstat(self.memory).st_ino)
        self.working_set = {"written": [], "read": []}
        for line in open(f"/proc/{clone.process.pid}/maps"):
            addresses, _, offset, _, found, *_ = line.split()
            if found != inode:
                continue
            start, end = (int(address, 16) // mmap.PAGESIZE for address in addresses.split("-"))
            with open(f"/proc/{clone.process.pid}/pagemap", "rb") as pagemap:
                pagemap.seek(8 * start)
                entries = struct.unpack(f"{end - start}Q", pagemap.read(8 * (end - start)))
            for page, entry in enumerate(entries, int(offset, 16) // mmap.PAGESIZE):
                # proc_pid_pagemap(5): bit 63, present; bit 61, of a file.
                if entry >> 63:
                    self._needs(page, "read" if entry >> 61 & 1 else "written")

    def _needs(self, page, how):
        ranges = self.working_set[how]
        if ranges and ranges[-1]["first"] + ranges[-1]["count"] == page:
            ranges[-1]["count"] += 1
        else:
            ranges.append({"first": page, "count": 1})

    def close(self):
        os.close(self.memory)
        os.close(self.state)


class Machine:
    """A machine that boots, or goes on from a snapshot. Its serial port, if it has one, is a pipe."""

    # What goes before its command.
    before = []

    def __init__(
        self,
        cmdline=None,
        *,
        restore=None,
        shared=False,
        page_by_page=False,
        snapshot=None,
        kernel=KERNEL,
        initrd=INITRD,
        memory_mib=256,
        vcpus=1,
        serial=False,
        vsock=False,
        balloon=False,
        huge_pages="host",
        drives=(),
        nets=(),
        jailed=False,
        probing=(),
        engine="auto",
    ):
        """`restore` and `snapshot` are a :class:`Snapshot` each: where the machine starts, and where it can be written
        down, for which the memory is shared. `page_by_page` shows which pages of a `restore`'s memory the guest touches.
        `drives` are pairs of a descriptor and whether it is read only, `nets` descriptors of taps; all stay the caller's. `probing` are arguments for the program of the jail's tests, numbers
        among them descriptors. `engine` is how the drives' requests are carried out: "auto", "io_uring", "in_order".
        `huge_pages` is "host", "never" or "always".
        """
        opened, handed = [], []

        def hand(descriptor):
            handed.append(descriptor)
            return descriptor

        def open_(path, flags):
            opened.append(os.open(path, flags))
            return hand(opened[-1])

        self._control_path = str(product.SCRATCH / f"control-{time.monotonic_ns()}")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self._control_path)
        self._listener.listen(4)
        self.output, writer = os.pipe()
        opened.append(writer)
        if restore:
            start = {"restore": {"state_fd": hand(restore.state), "working_set": restore.working_set}}
        else:
            kernel = open_(kernel, os.O_RDONLY)
            initrd = open_(initrd, os.O_RDONLY) if initrd else None
            start = {"boot": {"kernel_fd": kernel, "initrd_fd": initrd, "cmdline": cmdline}}
        files = restore or snapshot
        if files:
            memory_mib = files.memory_mib
        memory = None
        if files:
            shared = shared or bool(snapshot)
            memory = {"fd": hand(files.memory), "shared": shared, "page_by_page": page_by_page}
        snapshot_fd = None
        if snapshot:
            # The state may be where the machine starts from as well: a descriptor is handed over once.
            opened.append(os.dup(snapshot.state))
            snapshot_fd = hand(opened[-1])
        self._exit = os.memfd_create("exit-report")
        config = {
            "version": 2,
            "vcpus": vcpus,
            "memory_mib": memory_mib,
            "kvm_fd": open_("/dev/kvm", os.O_RDWR),
            "start": start,
            "memory": memory,
            "huge_pages": huge_pages,
            "snapshot_fd": snapshot_fd,
            "control_fd": hand(self._listener.fileno()),
            "exit_fd": hand(self._exit),
            "drives": [
                {"id": f"disk{index}", "fd": hand(drive), "read_only": read_only, "engine": engine}
                for index, (drive, read_only) in enumerate(drives)
            ],
            "nets": [
                {"tap_fd": hand(tap), "mac": [2, 0, 0, 0, 0, index], "mtu": 1500} for index, tap in enumerate(nets)
            ],
            "vsock": {"guest_cid": 3} if vsock else None,
            "entropy": True,
            "balloon": balloon,
            "serial_fd": hand(writer) if serial else None,
            "jail": JAIL if jailed else None,
        }
        opened.append(os.memfd_create("config"))
        os.write(opened[-1], json.dumps(config).encode())
        os.lseek(opened[-1], 0, os.SEEK_SET)
        self._client = None
        self.started = time.monotonic()
        program = product.PROBING if probing else product.VMM
        handed.extend(argument for argument in probing if isinstance(argument, int))
        command = [*self.before, program, "--config-fd", str(hand(opened[-1])), *map(str, probing)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=handed)
        # Else whoever connects to a machine that has died would wait for it.
        self._listener.close()
        for descriptor in opened:
            os.close(descriptor)

    def client(self):
        """A new connection to the control socket."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(TIMEOUT)
        client.connect(self._control_path)
        return client

    def request(self, command, **fields):
        """Asks the machine, and returns its answer, which must not be an error."""
        answer = self.ask(command, **fields)
        assert answer["outcome"] != "error", answer
        return answer

    def ask(self, command, **fields):
        """Asks the machine, and returns its answer."""
        if not self._client:
            self._client = self.client()
        self._client.send(json.dumps({"id": 1, "command": command, **fields}).encode())
        # Connections that the guest makes meanwhile are let go.
        while (answer := self._receive())["message"] != "reply":
            pass
        return answer

    def client(self):
        """A connection of its own to the control socket."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(TIMEOUT)
        client.connect(self._control_path)
        return client

    def wait_for_connection(self):
        """Milliseconds from the start of the process until the guest's init has connected to the host."""
        self.request("attach")
        message = self._receive()
        elapsed = (time.monotonic() - self.started) * 1000
        assert message["message"] == "vsock_connection", message
        return elapsed

    def connections(self):
        """The host's ends of the connections that the guest makes, until the machine ends, to a client of their own."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(self._control_path)
            client.send(json.dumps({"id": 1, "command": "attach"}).encode())
            while True:
                message, descriptors, _, _ = socket.recv_fds(client, 1 << 16, 4)
                if not message:
                    return
                yield from (socket.socket(fileno=descriptor) for descriptor in descriptors)

    def _receive(self):
        message, descriptors, _, _ = socket.recv_fds(self._client, 1 << 16, 4)
        for descriptor in descriptors:
            os.close(descriptor)
        return json.loads(message)

    def take_snapshot(self):
        """Milliseconds that it took. The machine has ended then."""
        start = time.monotonic()
        self.request("snapshot")
        elapsed = (time.monotonic() - start) * 1000
        assert self.process.wait(timeout=TIMEOUT) == 0
        return elapsed

    def report(self):
        """What the machine, which has ended, says of its end."""
        return json.loads(os.pread(self._exit, 1 << 16, 0))

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=TIMEOUT)
        os.close(self.output)
        os.close(self._exit)
        self._listener.close()
        if self._client:
            self._client.close()
