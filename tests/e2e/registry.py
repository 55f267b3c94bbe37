"""A real registry (Debian's docker-registry) on loopback, with its files where a test can break them."""

import http.client
import json
import re
import socket
import subprocess
import time

import product


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Registry:
    def __init__(self, user=None):
        """With a `user` and a bcrypt hash of the password, nobody else gets anything."""
        self.user = user
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.folder = product.SCRATCH / f"registry-{self.port}"
        self.folder.mkdir()
        self._process = None

    def start(self):
        config = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}},
            "http": {"addr": self.host},
        }
        if self.user:
            passwords = self.folder / "htpasswd"
            passwords.write_text(":".join(self.user) + "\n")
            config["auth"] = {"htpasswd": {"realm": "e2e", "path": str(passwords)}}
        path = self.folder / "config.yml"
        path.write_text(json.dumps(config))
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the registry did not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.1)
        return self

    def _answers(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self):
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None

    def requests(self):
        """What was asked so far, as `GET /v2/…`, from its access log."""
        # The log is written after the answer.
        time.sleep(0.5)
        log = (self.folder / "log").read_text(errors="replace")
        return [f"{method} {path}" for method, path in re.findall(r'"(GET|HEAD) (/v2/\S+) HTTP/1', log)]

    def push(self, layout, name, *options):
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
            + [*options, f"oci:{layout}", f"docker://{self.host}/{name}:latest"],
            check=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def blob(self, digest):
        """The file of a blob on the registry's disk."""
        name = digest.removeprefix("sha256:")
        return self.folder / "data/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
