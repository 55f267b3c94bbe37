"""The runtime's own tests that need a host with networks and control groups: built outside, run here."""

import os
import subprocess
from pathlib import Path

import pytest

PROGRAMS = [path for path in os.environ.get("BERTH_HOST_TESTS", "").split(":") if path]


@pytest.mark.skipif(not PROGRAMS, reason="BERTH_HOST_TESTS names no program; `cargo xtask test` sets it")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: Path(path).name.rsplit("-", 1)[0])
def test_runtime_keeps_its_promises_on_a_real_host(program):
    done = subprocess.run([program, "--nocapture"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=580)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    # A test that cannot run is no test that passed.
    assert "SKIPPED" not in output, output
