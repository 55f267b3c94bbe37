"""What the tests share: one registry with its images, one daemon, and the check that nothing of any task is left."""

import os
import shutil
import time

import pytest

import host
import journal
import product
import vmm
from daemon import Daemon
from images import Images
from registry import Registry
from tasks import Tasks


def pytest_configure(config):
    # An emulated processor stalls now and then for good: there, and only there, a failed test has one more try, which the
    # summary names.
    if os.environ.get("BERTH_LAB") == "nested":
        config.option.reruns = 1
    vmm.Machine.before = host.on_the_last_processor()
    if journal.path():
        config.pluginmanager.register(journal.Journal(journal.path()), "journal")
    missing = product.missing()
    if missing:
        pytest.exit(f"missing: {', '.join(missing)}; run the suite with `cargo xtask test --e2e`", returncode=4)


@pytest.fixture(scope="session")
def registry():
    registry = Registry().start()
    yield registry
    registry.stop()


# alice's password is "correct horse".
ALICE = ("alice", "$2b$04$F9yWkqe3hQaCiRaBverdTuGp0d25nU165hH8Bt0DWgBpfNMyQMcNS")


@pytest.fixture(scope="session")
def private_registry():
    registry = Registry(ALICE).start()
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def images(registry):
    return Images(registry)


@pytest.fixture(scope="session")
def daemon(images, private_registry):
    """The daemon that every test uses; at its end, nothing of any task may be left on the host."""
    before = host.snapshot(product.SCRATCH / "data")
    assert before["machines"] == [], "another Berth runs on this host"
    # The emulated lab's own kernel does not bear many clones at once (lab/README.md); `test_templates` and `test_crashes` make
    # a few.
    arguments = ["--isolation=strict"] if os.environ.get("BERTH_LAB") == "nested" else []
    daemon = Daemon(product.SCRATCH / "data", [images.registry.host, private_registry.host], arguments)
    daemon.start()
    try:
        # What the daemon makes once, at its first task, is no leak: the snapshot is taken after that.
        tasks = Tasks(daemon, default_network(daemon))
        assert tasks.finish(images.busybox, "true")["containers"][0]["exitCode"] == 0
        settled = _settled(daemon)
    except BaseException:
        daemon.kill()
        raise

    yield daemon

    if not daemon.is_alive():
        daemon.start()
    left = daemon.client("ecs").list_tasks()["taskArns"]
    tasks = Tasks(daemon, default_network(daemon))
    tasks.stop(*({"taskArn": arn} for arn in left))
    leaks = host.wait_for_no_difference(settled, daemon.data_dir)
    assert daemon.stop() == 0, daemon.tail()
    assert not leaks, "tasks left something behind:\n" + "\n".join(leaks)
    # The daemon itself: what it keeps for its networks is not of any task.
    after = host.snapshot(daemon.data_dir)
    for kind in ["mounts", "loop devices", "control groups", "machines", "machine folders"]:
        kept = [line for line in after[kind] if line not in before[kind] and not line.startswith("/run/netns")]
        assert not kept, f"{kind} left behind: {kept}"
    assert host.husks() == {}
    shutil.rmtree(product.SCRATCH, ignore_errors=True)


def _settled(daemon):
    """A snapshot that did not change for two seconds, with no task in it."""
    deadline = time.monotonic() + 60
    last = host.snapshot(daemon.data_dir)
    while time.monotonic() < deadline:
        time.sleep(2)
        now = host.snapshot(daemon.data_dir)
        if now == last and not (now["machines"] or now["control groups"] or now["machine folders"]):
            return now
        last = now
    raise AssertionError(f"the first task left something behind: {last}")


def default_network(daemon):
    networks = daemon.wire.berth("DescribeNetworks")
    subnet = next(subnet for subnet in networks["subnets"] if subnet["isDefault"])
    return {"subnets": [subnet["subnetId"]], "assignPublicIp": "DISABLED"}


@pytest.fixture
def running(daemon):
    """The daemon, alive at the start of the test even if the one before killed it. One that hangs fails this test, and no
    other one after it."""
    if not daemon.is_alive():
        daemon.start()
    elif (silence := daemon.silence()) is not None:
        threads = "\n".join(host.threads(daemon.process.pid))
        daemon.kill()
        pytest.fail(f"the daemon does not answer ({silence}) and was killed; its threads were\n{threads}")
    return daemon


@pytest.fixture
def daemon_with(daemon):
    """Starts the daemon anew with more options, without any template; after the test as it was."""
    usual = daemon.arguments

    def restart(*options):
        assert daemon.stop() == 0
        daemon.arguments = daemon.arguments_without("isolation") + list(options)
        daemon.start()

    yield restart
    assert daemon.stop() == 0
    daemon.arguments = usual
    daemon.start()


@pytest.fixture
def tasks(running):
    """The tasks of the default cluster. Those that a test leaves are stopped after it."""
    tasks = Tasks(running, default_network(running))
    yield tasks
    if not running.is_alive():
        running.start()
    tasks.stop(*({"taskArn": arn} for arn in tasks.ecs.list_tasks()["taskArns"]))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the end of the daemon's log, what its threads wait for, and what the kernel said."""
    report = (yield).get_result()
    daemon = item.funcargs.get("daemon") or item.funcargs.get("running")
    if not report.failed or daemon is None:
        return
    report.sections.append(("daemon log", daemon.tail()))
    if daemon.is_alive():
        report.sections.append(("daemon threads", "\n".join(host.threads(daemon.process.pid))))
    report.sections.append(("kernel log", "\n".join(host.kernel_log()[-40:])))
