"""Commands in a container that runs: streams, exit codes, terminals, and who may run them; over Berth's own operation, and
over ECS's, with sessions as Session Manager's."""

import base64
import hashlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import botocore.exceptions
import pytest
import websocket

import product
import session_manager
from session_manager import Terminal
from tasks import task_id
from tmux import Tmux


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


@pytest.fixture
def folder():
    """For more than is to be kept, as pytest's own are."""
    with tempfile.TemporaryDirectory(dir=product.SCRATCH) as path:
        yield Path(path)


def test_an_archive_of_100_mb_passes_in_both_directions_unharmed(running, task, folder):
    (folder / "data").mkdir()
    (folder / "back").mkdir()
    digests = {}
    for name in ["a", "b", "c", "d"]:
        data = os.urandom(25_000_000)
        (folder / "data" / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())

    execute = [product.BERTH, "exec", "-i", task_id(task), "--"]
    environment = running.environment()
    began = time.monotonic()
    with subprocess.Popen(["tar", "c", "-C", folder / "data", *digests], stdout=subprocess.PIPE) as packing:
        unpacked = subprocess.run(
            [*execute, "sh", "-c", "mkdir /srv && exec tar x -C /srv"],
            stdin=packing.stdout,
            capture_output=True,
            env=environment,
            timeout=400,
        )
    assert packing.returncode == 0
    assert unpacked.returncode == 0 and unpacked.stdout + unpacked.stderr == b"", unpacked
    print(f"in: {time.monotonic() - began:.1f} s")
    seen = running.berth("exec", task_id(task), "--", "sh", "-c", "cd /srv && sha256sum *", check=True)
    assert seen.stdout.decode() == listing

    began = time.monotonic()
    line = [*execute, "tar", "c", "-C", "/srv", *digests]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment) as packing:
        subprocess.run(["tar", "x", "-C", folder / "back"], stdin=packing.stdout, check=True, timeout=400)
    assert packing.returncode == 0
    print(f"out: {time.monotonic() - began:.1f} s")
    back = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "back").iterdir()}
    assert back == digests


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


@pytest.fixture
def tmux(tmp_path, running):
    terminal = Tmux(tmp_path, running.environment())
    yield terminal
    terminal.end()


def test_a_terminal_of_tmux_is_resized_interrupted_and_ended(running, task, tmux):
    tmux.start([str(product.BERTH), "exec", "-it", "-e", "PS1=ready> ", task_id(task), "--", "sh"], columns=80, rows=24)
    tmux.expect("ready> ")
    tmux.type("echo $(tty) has $(stty size), it is $TERM")
    assert re.search(r"/dev/pts/\d+ has 24 80, it is (tmux|screen)", tmux.expect(", it is [ts]"))
    for columns, rows in [(132, 43), (40, 10)]:
        tmux.resize(columns, rows)
        tmux.type(f'until [ "$(stty size)" = "{rows} {columns}" ]; do sleep 0.2; done; echo now $(stty size)')
        tmux.expect(f"now {rows} {columns}")

    def sleeps():
        look = "ps -o args | grep -q '^[s]leep 3600$'"
        return running.berth("exec", task_id(task), "--", "sh", "-c", look).returncode == 0

    tmux.type("sleep 3600")
    tmux.wait_until(sleeps, "the command runs")
    tmux.press("C-c")
    tmux.type("echo it gave $?")
    # Killed by a signal, 2.
    tmux.expect("it gave 130")
    assert not sleeps() and tmux.exit_code() is None
    tmux.type("exit 5")
    tmux.wait_until(lambda: tmux.exit_code() is not None, "the client ends")
    assert tmux.exit_code() == 5


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


def test_what_joins_a_container_never_has_more_rights_than_it(running, images, tasks):
    # It looks at every process that it can see, and tells of each set of rights that is new.
    line = """seen=
while true; do
    for rights in $(grep -hs CapPrm /proc/[0-9]*/status | grep -o '[0-9a-f]\\{16\\}'); do
        case "$seen" in *$rights*) ;; *) seen="$seen $rights"; echo $rights >> /tmp/rights ;; esac
    done
done"""
    task = tasks.start(
        images.busybox,
        line,
        stopTimeout=2,
        linuxParameters={"capabilities": {"add": ["SYS_PTRACE"]}},
        healthCheck={"command": ["CMD", "true"], "interval": 5, "retries": 1},
    )
    for _ in range(10):
        running.berth("exec", task_id(task), "--", "sh", "-c", "exit 0", check=True)
    own = running.berth("exec", task_id(task), "--", "grep", "CapPrm", "/proc/self/status", check=True).stdout.split()[1]
    seen = running.berth("exec", task_id(task), "--", "cat", "/tmp/rights", check=True).stdout.split()
    assert seen == [own]


# ECS's ExecuteCommand.


@pytest.fixture
def enabled(images, tasks):
    definition = tasks.define(images.busybox, "trap 'exit 0' TERM; while true; do sleep 1; done", stopTimeout=2)
    return tasks.wait(tasks.run(definition, enableExecuteCommand=True), "RUNNING")


def session(tasks, task, command="sh", **options):
    answer = tasks.ecs.execute_command(task=task["taskArn"], command=command, interactive=True, **options)
    assert answer["taskArn"] == task["taskArn"] and answer["clusterArn"] == task["clusterArn"]
    assert answer["containerName"] == "main" and answer["interactive"] is True
    assert answer["containerArn"] == task["containers"][0]["containerArn"]
    return answer["session"]


def refusal(call, **arguments):
    with pytest.raises(botocore.exceptions.ClientError) as refused:
        call(**arguments)
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def test_a_session_of_ecs_is_a_terminal(running, tasks, enabled):
    offered = session(tasks, enabled, container="main")
    assert re.fullmatch(r"ecs-execute-command-[0-9a-f]{17}", offered["sessionId"])
    assert offered["streamUrl"].startswith(f"ws://127.0.0.1:{running.port}/v1/data-channel/{offered['sessionId']}?")
    assert len(base64.b64decode(offered["tokenValue"])) == 48

    # A wrong token opens nothing, and the session still waits for its own.
    with pytest.raises((AssertionError, websocket.WebSocketException, OSError)):
        Terminal({**offered, "tokenValue": "A" * 64})
    late = websocket.create_connection(offered["streamUrl"], timeout=session_manager.SECONDS)
    terminal = Terminal(offered, columns=132, rows=43)
    # Nobody has it twice.
    late.send(json.dumps({"MessageSchemaVersion": "1.0", "TokenValue": offered["tokenValue"]}))
    assert late.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE
    with pytest.raises(websocket.WebSocketBadStatusException):
        Terminal(offered)

    terminal.expect(rb"[#$] ")
    terminal.type(b"tty; stty size; echo TERM=$TERM\r")
    terminal.expect(rb"/dev/pts/\d+\r\n43 132\r\nTERM=xterm-256color\r\n")
    terminal.resize(100, 30)
    terminal.type(b"stty size\r")
    terminal.expect(rb"30 100\r\n")
    terminal.socket.ping("keepalive")
    # A key interrupts what runs, and not the shell.
    terminal.type(b"echo begun; sleep 3600\r")
    terminal.expect(rb"\nbegun\r\n")
    terminal.type(b"\x03")
    terminal.type(b"echo still $((40 + 2))\r")
    terminal.expect(rb"still 42\r\n")
    terminal.type(rb"printf '\303\251\360\237\230\200\n'" + b"\r")
    terminal.expect("é😀\r\n".encode())
    terminal.type(b"exit 5\r")
    assert terminal.end()[1] == ""
    assert offered["tokenValue"] not in running.said()


def test_a_session_of_ecs_passes_all_of_the_output(tasks, enabled):
    size = 300_000
    line = f"stty -opost; head -c {size} /dev/urandom > /tmp/data; sha256sum < /tmp/data; cat /tmp/data"
    terminal = Terminal(session(tasks, enabled, f"sh -c '{line}'"))
    output, told = terminal.end()
    digest, data = output[:64].decode(), output.split(b"\n", 1)[1]
    assert len(data) == size and hashlib.sha256(data).hexdigest() == digest and told == ""

    # Much input, which the command takes later than it comes.
    terminal = Terminal(session(tasks, enabled, "sh -c 'stty raw -echo; echo ready; sleep 3; head -c 200000 | sha256sum'"))
    terminal.expect(rb"ready\n")
    data = os.urandom(200_000)
    terminal.type(data)
    assert hashlib.sha256(data).hexdigest().encode() in terminal.end()[0]

    # The words are run as they are, with no shell; what is no program is told.
    output, _ = Terminal(session(tasks, enabled, "echo $HOME '*' \"a  b\"")).end()
    assert output == b"$HOME * a  b\r\n"
    output, told = Terminal(session(tasks, enabled, "no-such-program")).end()
    assert output == b"" and "Unable to start command: Failed to start pty: " in told and "not found" in told

    # The command ends with its client.
    terminal = Terminal(session(tasks, enabled, "sh -c 'echo $$ > /tmp/pid; echo up; exec sleep 3600'"))
    terminal.expect(rb"up\r\n")
    terminal.hang_up()
    look = "sh -c 'while kill -0 $(cat /tmp/pid); do sleep 1; done 2> /dev/null; echo gone'"
    assert Terminal(session(tasks, enabled, look)).end()[0] == b"gone\r\n"


def test_what_ecs_refuses_to_execute(running, images, tasks, task, enabled):
    execute = tasks.ecs.execute_command
    good = {"task": enabled["taskArn"], "command": "true", "interactive": True}
    agent = enabled["containers"][0]["managedAgents"]
    assert [(it["name"], it["lastStatus"]) for it in agent] == [("ExecuteCommandAgent", "RUNNING")]
    assert enabled["enableExecuteCommand"] is True and "lastStartedAt" in agent[0]
    assert "managedAgents" not in task["containers"][0]
    assert refusal(execute, **{**good, "interactive": False}) == (
        "InvalidParameterException",
        "Interactive is the only mode supported currently.",
    )
    code, message = refusal(execute, **{**good, "task": task["taskArn"]})
    assert code == "InvalidParameterException" and "execute command was not enabled when the task was run" in message
    assert refusal(execute, **{**good, "cluster": "nowhere"})[0] == "ClusterNotFoundException"
    assert refusal(execute, **{**good, "task": "0" * 32}) == (
        "InvalidParameterException",
        "The referenced task was not found.",
    )
    assert refusal(execute, **{**good, "container": "nobody"})[0] == "InvalidParameterException"
    assert "is not closed" in refusal(execute, **{**good, "command": "echo 'a"})[1]
    assert refusal(execute, **{**good, "command": "x" * 9000})[0] == "InvalidParameterException"
    # Nobody connects to what was not offered.
    with pytest.raises(websocket.WebSocketBadStatusException):
        websocket.create_connection(f"ws://127.0.0.1:{running.port}/v1/data-channel/ecs-execute-command-0")
    tasks.stop(enabled)
    assert "agent isn’t running" in refusal(execute, **good)[1]


def test_the_aws_cli_executes_a_command(running, tasks, enabled, tmp_path, monkeypatch):
    plugin = tmp_path / "session-manager-plugin"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(session_manager.__file__)} "$@"\n')
    plugin.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = running.aws(
        *("ecs", "execute-command", "--task", task_id(enabled), "--container", "main", "--interactive"),
        *("--command", "sh -c 'echo it is $((40 + 2)); hostname'"),
    )
    hostname = "ip-" + enabled["containers"][0]["networkInterfaces"][0]["privateIpv4Address"].replace(".", "-")
    assert f"it is 42\n{hostname}\n" in said.replace("\r", "") and "Exiting session with sessionId: ecs-execute-" in said
