"""Commands in a container that runs: streams, exit codes, terminals, and who may run them."""

import hashlib
import os
import pty
import re
import select
import subprocess
import time

import pytest

import product
from tasks import task_id

MIB = 1 << 20


@pytest.fixture
def task(images, tasks):
    line = "trap 'exit 0' TERM; while true; do sleep 1; done"
    return tasks.start(images.busybox, line, environment={"COLOUR": "blue"}, stopTimeout=2)


def test_a_command_has_its_streams_and_its_exit_code(running, task):
    script = "cat; echo err >&2; echo $COLOUR $SHADE; hostname; exit 7"
    data = os.urandom(300_000)
    command = ["exec", "-i", "-e", "SHADE=dark", task_id(task), "--", "sh", "-c", script]
    # The helper gives no input, this needs some.
    done = subprocess.run(
        [product.BERTH, *command], input=data, capture_output=True, env=running.environment(), timeout=200
    )
    assert done.returncode == 7, done.stderr
    hostname = "ip-" + task["containers"][0]["networkInterfaces"][0]["privateIpv4Address"].replace(".", "-")
    assert done.stdout == data + f"blue dark\n{hostname}\n".encode()
    assert done.stderr == b"err\n"
    killed = running.berth("exec", task_id(task), "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 137
    # Without -i there is no input, and so no waiting for it.
    assert running.berth("exec", task_id(task), "--", "cat", check=True).stdout == b""
    # It is in the container: its processes see it, and it is in its control group.
    seen = running.berth("exec", task_id(task), "--", "sh", "-c", "cat /proc/1/cmdline /proc/self/cgroup", check=True)
    assert b"sleep 1; done" in seen.stdout and seen.stdout.endswith(b"0::/\n")


def test_much_passes_in_both_directions_unharmed(running, task):
    size = 8 * MIB
    source = f"head -c {size} /dev/urandom > /tmp/data; sha256sum < /tmp/data; cat /tmp/data"
    out = running.berth("exec", task_id(task), "--", "sh", "-c", source, check=True).stdout
    digest, data = out[:64].decode(), out.split(b"\n", 1)[1]
    assert len(data) == size and hashlib.sha256(data).hexdigest() == digest
    back = subprocess.run(
        [product.BERTH, "exec", "-i", task_id(task), "--", "sha256sum"],
        input=data,
        capture_output=True,
        env=running.environment(),
        timeout=200,
    )
    assert back.stdout.decode().split()[0] == digest, back.stderr


def test_a_terminal_is_one(running, task):
    main, other = pty.openpty()
    process = subprocess.Popen(
        [product.BERTH, "exec", "-it", task_id(task), "--", "sh"],
        stdin=other,
        stdout=other,
        stderr=other,
        env={**running.environment(), "TERM": "vt100", "PS1": "ready> "},
        start_new_session=True,
    )
    os.close(other)

    def expect(pattern, heard=""):
        deadline = time.monotonic() + 120
        while not re.search(pattern, heard):
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {heard!r}"
            if select.select([main], [], [], 1)[0]:
                heard += os.read(main, 4096).decode(errors="replace")
        return heard

    try:
        expect(r"[#$>] ")
        os.write(main, b"tty; stty size; echo TERM=$TERM\r")
        expect(r"/dev/pts/\d+\r\n24 80\r\nTERM=vt100\r\n")
        # A key, not a signal of this host: the shell is still there after it.
        os.write(main, b"sleep 3600\r")
        time.sleep(1)
        os.write(main, b"\x03")
        os.write(main, b"echo still $((40 + 2))\r")
        expect("still 42")
        os.write(main, b"exit 5\r")
        assert process.wait(timeout=120) == 5
    finally:
        process.kill()
        process.wait()
        os.close(main)


def test_what_cannot_be_run_is_told(running, images, tasks, task):
    missing = running.berth("exec", task_id(task), "--", "no-such-program")
    assert missing.returncode == 127 and b"executable file not found in $PATH" in missing.stderr
    stranger = running.berth("exec", "-c", "nobody", task_id(task), "--", "true")
    assert stranger.returncode == 1 and b"The specified container was not found." in stranger.stderr
    running.berth("pause", task_id(task), check=True)
    paused = running.berth("exec", task_id(task), "--", "true")
    assert paused.returncode == 1 and b"The task is paused; resume it first." in paused.stderr
    running.berth("resume", task_id(task), check=True)
    assert running.berth("exec", task_id(task), "--", "true").returncode == 0
    tasks.stop(task)
    ended = running.berth("exec", task_id(task), "--", "true")
    assert ended.returncode == 1 and b"does not run" in ended.stderr


def test_a_command_ends_with_whoever_asked_for_it(running, task):
    process = subprocess.Popen(
        [product.BERTH, "exec", task_id(task), "--", "sh", "-c", "echo $$ > /tmp/pid; exec sleep 3600"],
        env=running.environment(),
        stdin=subprocess.DEVNULL,
    )
    look = "kill -0 $(cat /tmp/pid) && echo alive || echo gone"

    def wait_for(state):
        deadline = time.monotonic() + 120
        while running.berth("exec", task_id(task), "--", "sh", "-c", look).stdout.strip() != state:
            assert time.monotonic() < deadline, f"it is not {state.decode()}"
            time.sleep(0.5)

    wait_for(b"alive")
    process.kill()
    process.wait()
    wait_for(b"gone")
