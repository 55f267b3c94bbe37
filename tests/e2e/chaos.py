"""A mixed load under random faults: what breaks, who breaks it, and what must hold once all is quiet."""

import contextlib
import os
import secrets
import signal
import time

import botocore.exceptions
import host
import images as oci
import product
from tasks import ROLE, Tasks, task_id

# What a client may see while its server is dying.
CUT = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError, RuntimeError)
REFUSALS = "state-commit=enospc*5,log-lines-arrived=enospc*5,blob-downloaded=enospc*2,rootfs-packed=enospc*1"
# Numbered, so that a line that is lost, doubled or out of order shows.
COUNT = "i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); {pause}; done; exit {code}"


class Load:
    """The tasks that come and go meanwhile."""

    def __init__(self, running, images, network, chance, secret, most):
        self.running, self.images, self.network, self.chance, self.most = running, images, network, chance, most
        self.secret = secret
        # ARN → how many lines it prints if it comes to its own end, and its exit code then.
        self.tasks = {}
        ecs = running.client("ecs")
        running.client("ssm").put_parameter(Name="/chaos/secret", Value=secret, Type="SecureString", Overwrite=True)
        self.definitions = [self._define(ecs, *kind) for kind in [(20, "true", 0), (40, "sleep 0.1", 7), (400, "sleep 0.2", 3)]]

    def _define(self, ecs, lines, pause, code, image=None):
        main = {
            "name": "main",
            "image": image or self.images.busybox,
            "command": ["sh", "-c", COUNT.format(lines=lines, pause=pause, code=code)],
            "secrets": [{"name": "SECRET", "valueFrom": "/chaos/secret"}],
            "stopTimeout": 2,
        }
        beside = {"name": "beside", "image": self.images.busybox, "essential": False, "command": ["sleep", "3600"], "stopTimeout": 2}
        definition = ecs.register_task_definition(
            family=f"chaos-{secrets.token_hex(4)}",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu="1024",
            memory="2048",
            executionRoleArn=ROLE,
            containerDefinitions=[main, *([beside] if code == 7 else [])],
        )["taskDefinition"]["taskDefinitionArn"]
        return definition, lines, code

    def alive(self, status=None):
        described = self._described(self.running.client("ecs"))
        return [task for task in described if task["lastStatus"] in ([status] if status else ACTIVE)]

    def _described(self, ecs):
        arns, found = list(self.tasks), []
        for start in range(0, len(arns), 100):
            found += ecs.describe_tasks(tasks=arns[start : start + 100])["tasks"]
        return found

    def add(self):
        """One more task, if there is room, of one kind or another; some with an image that nobody has seen."""
        if len(self.alive()) >= self.most:
            return None
        ecs = self.running.client("ecs")
        chosen = self.chance.choice(self.definitions)
        if self.chance.random() < 0.25:
            layer = oci.Entries().file("data", self.chance.randbytes(1 << 18)).layer()
            image = self.images.on_base(f"chaos-{len(self.tasks)}", [layer])
            chosen = self._define(ecs, chosen[1], "true", chosen[2], image)
        definition, lines, code = chosen
        task = Tasks(self.running, self.network).run(definition, clientToken=f"{self.chance.getrandbits(128):032x}")
        self.tasks[task["taskArn"]] = lines, code
        return task_id(task)

    def stop_one(self):
        task = self.chance.choice(self.alive() or [None])
        if task:
            self.running.client("ecs").stop_task(task=task["taskArn"], reason="chaos")
        return task and task_id(task)

    def stop_all(self):
        """The described tasks, all of them stopped."""
        tasks = Tasks(self.running, self.network)
        for task in self.alive():
            self.running.client("ecs").stop_task(task=task["taskArn"], reason="the end of it")
        return [tasks.wait({"taskArn": arn}, "STOPPED") for arn in self.tasks]


ACTIVE = ["PROVISIONING", "PENDING", "ACTIVATING", "RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING"]


class Faults:
    """What goes wrong, chosen by `chance`."""

    def __init__(self, running, registry, load, chance):
        self.running, self.registry, self.load, self.chance = running, registry, load, chance
        self.kinds = [self.kill_daemon, self.stop_daemon, self.full_disk, self.kill_machine, self.panic_guest, self.registry_away]
        if own_disk():
            self.kinds.append(self.really_full_disk)
        if may_set_the_clock():
            self.kinds += [self.clock_forth, self.clock_back]

    def one(self):
        """Does one of them and gives its name, and what it met."""
        kind = self.chance.choice(self.kinds)
        return kind.__name__, kind()

    def kill_daemon(self):
        self.running.kill()
        time.sleep(self.chance.uniform(0, 2))
        self.running.start()

    def stop_daemon(self):
        self.running.stop()
        self.running.start()

    def full_disk(self):
        """By the daemon's own fault points."""
        self.running.kill()
        self.running.start(REFUSALS)

    def really_full_disk(self):
        """The file system of the data directory, whose rest is taken by a file for a moment."""
        filler = product.SCRATCH / "filler"
        free = os.statvfs(product.SCRATCH)
        try:
            with open(filler, "wb") as file, contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, free.f_bfree * free.f_frsize)
            with open(filler, "ab") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            time.sleep(self.chance.uniform(1, 4))
        finally:
            filler.unlink(missing_ok=True)

    def kill_machine(self):
        return self._machine(lambda task: os.kill(host.machine_of(task), signal.SIGKILL))

    def panic_guest(self):
        return self._machine(self.running.panic_guest)

    def _machine(self, act):
        """Acts on the machine of a running task; its own end may be faster."""
        task = self.chance.choice(self.load.alive("RUNNING") or [None])
        if task:
            with contextlib.suppress(OSError, AssertionError):
                act(task_id(task))
        return task and task_id(task)

    def registry_away(self):
        """Its connections are reset, and for a moment nobody listens."""
        self.registry.stop()
        time.sleep(self.chance.uniform(0, 3))
        self.registry.start()

    def clock_forth(self):
        set_clock(self.chance.uniform(1, 90))

    def clock_back(self):
        set_clock(-self.chance.uniform(1, 90))


def own_disk():
    """Whether the daemon's data is on a file system that holds nothing else."""
    return os.stat(product.SCRATCH).st_dev != os.stat("/").st_dev and os.path.ismount(product.SCRATCH.parent)


def may_set_the_clock():
    """A host's clock is not ours to set, an emulated lab's is."""
    return os.environ.get("BERTH_LAB") == "nested"


def set_clock(seconds):
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)


def mostly_one_to_one(seconds, load, faults, chance, say):
    """Adds, stops and breaks by turns for so long. What a client sees while its server dies is no matter."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        act = chance.choices([load.add, load.stop_one, faults.one], [6, 1, 3])[0]
        try:
            say(f"{act.__name__} {act()}")
        except CUT as error:
            say(f"{act.__name__} was cut off: {type(error).__name__} {str(error)[:200]}")
        if not faults.running.is_alive():
            faults.running.start()
        time.sleep(chance.uniform(0, 1.5))


def clock_is_right_again(started):
    """The wall clock goes on as the monotonic one did; `started` is what both were."""
    wall, monotonic = started
    if may_set_the_clock():
        time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - monotonic)


