"""A `berth-vmm` of a test's own that waits for what it is to be."""

import json
import os
import socket
import subprocess
import time

import product
from vmm import JAIL, TIMEOUT, Machine


class Husk(Machine):
    """A husk of a :class:`vmm.Snapshot`, which is ready."""

    def __init__(self, files, *, vcpus=1, jailed=True):
        kvm, config = os.open("/dev/kvm", os.O_RDWR), os.memfd_create("config")
        self.parent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent.settimeout(TIMEOUT)
        part = {
            "version": 2,
            "vcpus": vcpus,
            "memory_mib": files.memory_mib,
            "kvm_fd": kvm,
            "memory_fd": files.memory,
            "state_fd": files.state,
            "working_set": files.working_set,
            "parent_fd": theirs.fileno(),
            "jail": JAIL if jailed else None,
        }
        os.write(config, json.dumps(part).encode())
        os.lseek(config, 0, os.SEEK_SET)
        self._control_path = str(product.SCRATCH / f"control-{time.monotonic_ns()}")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self._control_path)
        self._listener.listen(4)
        self._client = None
        self.output, self._writer = os.pipe()
        self._exit, self._log, self._errors = (os.memfd_create(name) for name in ("exit-report", "log", "errors"))
        command = [*self.before, product.VMM, "--husk-config-fd", str(config)]
        handed = [kvm, config, theirs.fileno(), files.memory, files.state]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self._errors, pass_fds=handed)
        for descriptor in (kvm, config):
            os.close(descriptor)
        theirs.close()
        assert self.parent.recv(64) == b'"ready"', self.said()

    def go_on(self, more=(), **changes):
        """Hands over what makes it a machine with a serial port and entropy, with these changes, and more descriptors."""
        rest = {"log_fd": 0, "control_fd": 1, "exit_fd": 2, "serial_fd": 3, "entropy": True, **changes}
        descriptors = [self._log, self._listener.fileno(), self._exit, self._writer, *more]
        self.started = time.monotonic()
        socket.send_fds(self.parent, [json.dumps(rest).encode()], descriptors)

    def said(self):
        """What it has written to standard error: before it was handed over, and since."""
        return tuple(os.pread(file, 1 << 16, 0).decode() for file in (self._errors, self._log))

    def close(self):
        super().close()
        self.parent.close()
        for descriptor in (self._writer, self._log, self._errors):
            os.close(descriptor)
