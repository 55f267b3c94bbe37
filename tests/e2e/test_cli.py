"""The berth command line, as a person at a shell uses it."""

import json
import os
import signal
import subprocess
import time

import product
import pytest
from tasks import container, task_id

# In the emulator a quarter of a processor, the default, takes four times as long to start.
WHOLE_VCPU = ["--cpu", "1024", "--memory", "2048"]


def run(running, *arguments, **options):
    return running.berth("run", *WHOLE_VCPU, *arguments, **options)


def without_progress(stderr):
    return b"".join(line for line in stderr.splitlines(keepends=True) if not line.startswith(b"berth: "))


@pytest.fixture(autouse=True)
def _cleaned(tasks):
    """Stops what a test leaves."""


def test_run_passes_output_and_exit_code(running, images):
    done = run(running, "--rm", images.busybox, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.returncode == 7, done
    assert done.stdout == b"out\n"
    assert without_progress(done.stderr) == b"err\n"
    # Not on a terminal: a line for each phase.
    assert b"berth: " in done.stderr


def test_quiet_run_writes_nothing_of_its_own(running, images):
    done = run(running, "-q", "--rm", images.busybox, "sh", "-c", "printf 'no newline'; printf '\\000\\377' >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"no newline", b"\x00\xff")


def test_run_gives_the_environment(running, images, tmp_path):
    file = tmp_path / "env"
    file.write_text("# for the test\nFROM_FILE=file\nGIVEN=file\n")
    done = run(
        running,
        *("-q", "--rm", "-e", "GIVEN=line", "--env-file", str(file)),
        *(images.busybox, "sh", "-c", "echo $GIVEN $FROM_FILE"),
    )
    assert done.stdout == b"line file\n"


def test_run_of_an_image_that_is_not_there_exits_with_125(running, images):
    done = run(running, "--rm", f"{images.registry.host}/nothing-here")
    assert done.returncode == 125
    assert done.stdout == b""
    assert b"CannotPullContainerError" in done.stderr


def test_run_again_uses_the_same_definition(running, images, tasks):
    for _ in range(2):
        assert run(running, "-q", "--name", "twice", images.busybox, "true").returncode == 0
    assert run(running, "-q", "--name", "twice", images.busybox, "echo").returncode == 0
    listed = tasks.ecs.list_task_definitions(familyPrefix="twice")["taskDefinitionArns"]
    assert [arn.rsplit(":", 1)[1] for arn in listed] == ["1", "2"]


def test_run_with_rm_leaves_no_definition(running, images, tasks):
    assert run(running, "-q", "--rm", "--name", "gone", images.busybox, "true").returncode == 0
    assert tasks.ecs.list_task_definitions(familyPrefix="gone")["taskDefinitionArns"] == []


def test_interrupted_run_stops_its_task(running, images, tasks):
    process = subprocess.Popen(
        [product.BERTH, "run", *WHOLE_VCPU, images.busybox, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; sleep 3600 & wait"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=running.environment(),
    )
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (3, b"bye\n"), err
    assert tasks.ecs.list_tasks()["taskArns"] == []


def test_detached_task_is_listed_read_described_and_stopped(running, images, tasks):
    script = "echo first; sleep 2; echo second; trap 'exit 0' TERM; sleep 3600 & wait"
    done = run(running, "-d", "--name", "background", images.busybox, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    name = done.stdout.decode().strip()
    assert len(name) == 32
    tasks.wait({"taskArn": name}, "RUNNING")
    tasks.wait_for_output(name, "second")

    listed = running.berth("ps", check=True).stdout.decode()
    assert listed.splitlines()[0].split()[:2] == ["TASK", "DEFINITION"]
    (row,) = [line for line in listed.splitlines() if line.startswith(name[:12])]
    assert "background:1" in row and "RUNNING" in row
    (shown,) = [task for task in json.loads(running.berth("ps", "--json", check=True).stdout) if task_id(task) == name]
    assert shown["lastStatus"] == "RUNNING"

    assert running.berth("logs", name[:8], check=True).stdout == b"first\nsecond\n"
    assert running.berth("stop", name[:8], "--reason", "enough", check=True).stdout.decode().strip() == name
    described = json.loads(running.berth("describe", name[:8], "--json", check=True).stdout)
    assert (described["lastStatus"], described["stoppedReason"]) == ("STOPPED", "enough")
    page = running.berth("describe", name[:8], check=True).stdout.decode()
    assert "stopped reason" in page and "enough" in page
    assert name[:12] not in running.berth("ps", check=True).stdout.decode()
    assert name[:12] in running.berth("ps", "-a", check=True).stdout.decode()


def test_metrics_count_what_a_machine_does(running, images, tasks):
    task = tasks.start(images.busybox, "dd if=/dev/zero of=/file bs=1M count=8 && sync && echo done; sleep 3600", stopTimeout=2)
    tasks.wait_for_output(task, "done")
    metrics = json.loads(running.berth("metrics", task_id(task), "--json", check=True).stdout)
    # Nothing waits for the host's disk on account of one that ends with its task; for a volume's see test_volumes.py.
    assert metrics["blockWriteBytes"] >= 8 << 20 and metrics["blockFlushOps"] == 0, metrics
    if os.environ.get("BERTH_LAB") == "nested":
        # Its kernel has io_uring, and the image and the disk are files on a disk.
        assert metrics["blockIoUringDrives"] == 2, metrics
    assert metrics["vsockRxBytes"] > 0 and metrics["vsockTxBytes"] > 0 and metrics["deviceErrors"] == 0, metrics
    assert 0 <= metrics["startWorkingSetUs"] < metrics["startUs"] < 120_000_000, metrics
    assert metrics["cpuUsageUs"] > 0 and metrics["memoryBytes"] > 8 << 20 and metrics["oomKills"] == 0, metrics
    text = running.berth("metrics", task_id(task), check=True).stdout.decode()
    assert any(line.startswith("blockWriteBytes ") for line in text.splitlines()), text
    tasks.stop(task)
    done = running.berth("metrics", task_id(task))
    assert done.returncode == 1 and b"is STOPPED, and has no machine" in done.stderr, done


def test_logs_follow_to_the_end(running, images, tasks):
    task = tasks.run(tasks.define(images.busybox, "for i in 1 2 3; do echo $i; sleep 1; done"))
    done = running.berth("logs", "-f", task_id(task), check=True)
    assert done.stdout == b"1\n2\n3\n"


def test_unknown_tasks_are_refused_with_the_next_step(running):
    for arguments in [("logs", "ffffffffffffffff"), ("stop", "not-hex"), ("describe", "")]:
        done = running.berth(*arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("berth: ") and "berth ps -a" in line


def test_bill_is_exact_in_text_and_json(running, images, tasks):
    task = tasks.finish(images.busybox, "true", cpu="256", memory="512")
    bill = json.loads(running.berth("bill", "--task", task_id(task)[:8], "--json", check=True).stdout)
    assert bill["totalNanos"] == 168_667 + 37_042
    text = running.berth("bill", "--task", task_id(task), check=True).stdout.decode()
    assert text.splitlines()[-1] == "1 task, 0.000205709 USD in all"
    assert json.loads(running.berth("bill", "--since", "1h", "--json", check=True).stdout)["lines"]
    later = running.berth("bill", "--since", "2200-01-01", "--json", check=True).stdout
    assert json.loads(later)["lines"] == []


def test_doctor_finds_the_lab_ready(running):
    environment = {**os.environ, "BERTH_GUEST_DIR": str(product.GUEST)}
    arguments = ["doctor", f"--vmm={product.VMM}", f"--data-dir={running.data_dir}"]
    done = subprocess.run(
        [product.BERTH, *arguments, "--json"], stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=60
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["ready"]) == (0, True), report
    checks = {check["check"]: check["status"] for check in report["checks"]}
    assert checks["kvm"] == checks["cpu"] == checks["nftables"] == "ok", report


def test_doctor_says_what_to_do_about_a_miss(running):
    done = running.berth("doctor", "--kernel=/nowhere/vmlinux", f"--data-dir={running.data_dir}")
    assert done.returncode == 1
    lines = done.stdout.decode().splitlines()
    (index,) = [index for index, line in enumerate(lines) if "/nowhere/vmlinux" in line]
    assert lines[index].startswith("missing")
    assert "cargo xtask guest" in lines[index + 1]


def test_exports_of_the_daemon_are_all_a_client_needs(running):
    script = f"{running.exports}\n{product.BERTH} ps"
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"TASK")


def test_daemon_that_is_not_there_is_named_with_the_next_step(running):
    done = running.berth("ps", "--endpoint-url", "http://127.0.0.1:1")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "http://127.0.0.1:1" in line and "berth serve" in line


def test_run_outlives_a_restart_of_the_daemon(running, images):
    process = subprocess.Popen(
        [product.BERTH, "run", "-q", *WHOLE_VCPU, images.busybox, "sh", "-c", "for i in $(seq 20); do echo $i; sleep 0.5; done; exit 4"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=running.environment(),
    )
    assert process.stdout.readline() == b"1\n"
    running.kill()
    time.sleep(1)
    running.start()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 4, err
    assert out == b"".join(b"%d\n" % number for number in range(2, 21))
