"""The daemon as a process, and the clients that talk to it: boto3, the aws CLI, the berth CLI, raw requests."""

import configparser
import functools
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import botocore.config

import host
import product
from registry import free_port
from wire import Wire

REGION = "us-east-1"
ACCOUNT = "123456789012"
# In the emulated lab everything takes its time.
START_SECONDS = 120
STOP_SECONDS = 60
OVERCOMMIT_CPU = 16
# Tests wait for what is said of husks.
LOGGED = "info,berth_runtime::machine=debug"


class Daemon:
    def __init__(self, data_dir, insecure_registries=(), arguments=()):
        self.data_dir = Path(data_dir)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.data_dir.parent / f"{self.data_dir.name}.log"
        self.process = None
        self.arguments = [f"--data-dir={self.data_dir}", f"--listen=127.0.0.1:{self.port}", f"--account-id={ACCOUNT}"]
        self.arguments += [f"--vmm={product.VMM}"]
        self.arguments += [f"--kernel={product.GUEST}/vmlinux", f"--initrd={product.GUEST}/initrd.cpio"]
        # Tests and demonstrations run on small hosts, and their tasks are idle mostly and write little.
        self.arguments += [f"--overcommit-cpu={OVERCOMMIT_CPU}", "--overcommit-disk=100"]
        self.arguments += [f"--insecure-registry={registry}" for registry in insecure_registries]
        self.arguments += list(arguments)
        self.exports = ""
        self._log_start = 0

    # Life.

    def start(self, faults=""):
        """Starts it and returns once it says that it listens. `faults` arms fault points (docs/architecture.md)."""
        environment = {**os.environ, "RUST_LOG": os.environ.get("RUST_LOG", LOGGED), "RUST_BACKTRACE": "1"}
        environment["BERTH_FAULTS"] = faults
        with open(self.log, "ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [*host.on_the_last_processor(), product.BERTH, "serve", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                # Signals to the test run are not for the daemon.
                start_new_session=True,
            )
        lines = queue.Queue()
        threading.Thread(target=_pump, args=(self.process.stdout, lines), daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        said = []
        while True:
            try:
                line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                threads = host.threads(self.process.pid) if self.is_alive() else []
                # Else the next test would find one that is alive and does not answer.
                self.kill()
                raise RuntimeError(f"the daemon did not start; stdout {said}, threads {threads}, log:\n{self.tail()}")
            said.append(line)
            if line.startswith("berth: listening on "):
                assert line.strip().endswith(self.url), line
                self.exports = "".join(said[:-1])
                return self

    def stop(self):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_SECONDS)

    def kill(self):
        """SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=STOP_SECONDS)

    def is_alive(self):
        return self.process is not None and self.process.poll() is None

    def silence(self):
        """Why it gives no answer to a simple question, if it gives none."""
        try:
            self.wire.berth("DescribeNetworks")
        except OSError as error:
            return error
        return None

    def arguments_without(self, *options):
        """Its arguments but these options."""
        return [argument for argument in self.arguments if argument.split("=")[0].removeprefix("--") not in options]

    def panic_guest(self, task_id, once_it_speaks=False):
        """Has the kernel of a task's guest panic, as it does when its PID 1 dies. Where no daemon runs, it may be waited for that
        the guest speaks to one."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(START_SECONDS)
            control.connect(str(self.data_dir / "machines" / task_id / "control.sock"))

            def next_message(kind):
                while True:
                    packet = control.recv(64 * 1024)
                    assert packet, "the machine has ended"
                    message = json.loads(packet)
                    if message["message"] == kind:
                        return message

            def ask(command):
                control.send(json.dumps({"id": 1, "command": command}).encode())
                assert next_message("reply")["outcome"] == "done"

            if once_it_speaks:
                ask("attach")
                next_message("vsock_connection")
            ask("nmi")

    def tail(self, lines=80):
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_for_template(self, shape=""):
        """Returns once tasks of a shape, whose name begins like this, start as clones of this daemon's template; one must
        have been started."""
        deadline = time.monotonic() + START_SECONDS
        while f'a template is ready template="{shape}' not in self.said():
            assert time.monotonic() < deadline, f"no template:\n{self.tail()}"
            time.sleep(0.2)

    def wait_for_husks(self, count):
        """Returns once this daemon has made so many husks."""
        deadline = time.monotonic() + START_SECONDS
        while self.said().count("a husk waits") < count:
            assert time.monotonic() < deadline, f"not {count} husks:\n{self.tail()}"
            time.sleep(0.2)

    def said(self):
        """Its log since the last start, without colours."""
        text = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    # Clients.

    @property
    def keys(self):
        """Access key and secret, from the file that the daemon made."""
        profile = configparser.RawConfigParser()
        profile.read(self.data_dir / "credentials")
        return profile["default"]["aws_access_key_id"], profile["default"]["aws_secret_access_key"]

    @functools.cache
    def client(self, service, retries=3):
        """A boto3 client; made once, since the emulated lab needs many seconds to read its model."""
        access, secret = self.keys
        return boto3.session.Session().client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            config=botocore.config.Config(
                retries={"total_max_attempts": retries, "mode": "standard"}, read_timeout=120, connect_timeout=30
            ),
        )

    @property
    def wire(self):
        return Wire("127.0.0.1", self.port, *self.keys, region=REGION)

    def environment(self):
        """What a shell has after the exports were pasted, and no other AWS settings."""
        access, secret = self.keys
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {
            **kept,
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_PAGER": "",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def aws(self, *arguments, check=True, timeout=500):
        """The real aws CLI; returns its stdout."""
        beside = Path(sys.executable).parent / "aws"
        program = beside if beside.exists() else shutil.which("aws")
        environment = self.environment()
        # Said on the command line, as a user without exports would.
        del environment["AWS_ENDPOINT_URL"]
        done = subprocess.run(
            [program, "--endpoint-url", self.url, "--output", "json", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"aws {arguments} failed: {done.stdout}{done.stderr}"
        return done.stdout if check else done

    def berth(self, *arguments, timeout=400, check=False, input=b"", **options):
        """The berth CLI, which reads `input`; returns what subprocess.run does, with bytes."""
        done = subprocess.run(
            [product.BERTH, *arguments],
            capture_output=True,
            env=self.environment(),
            input=input,
            timeout=timeout,
            **options,
        )
        assert not check or done.returncode == 0, f"berth {arguments} failed: {done.stdout}{done.stderr}"
        return done


def _pump(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(None)
