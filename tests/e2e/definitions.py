"""Task definitions as data, each with what a task of it does: what `test_definitions` runs."""

import dataclasses

from tasks import ROLE

MIB = 1 << 20
PARAMETER = "/definitions/parameter"
SECRET_VALUE = "of the parameter"


@dataclasses.dataclass
class Case:
    """A definition, and what becomes of a task of it.

    `containers` are members of container definitions; `image` is `busybox` or `web`, and `line` a command for the shell.
    `ends` has for each container its exit code, or its reason, and `says` what it writes; a text is all of it, and a
    list are texts that are in it somewhere.
    """

    name: str
    containers: list
    ends: dict = dataclasses.field(default_factory=lambda: {"main": 0})
    says: dict = dataclasses.field(default_factory=dict)
    # Of the definition, of RunTask, and of the task as it is described in the end.
    members: dict = dataclasses.field(default_factory=dict)
    run: dict = dataclasses.field(default_factory=dict)
    described: dict = dataclasses.field(default_factory=dict)
    cpu: str = "256"
    memory: str = "512"


def main(line=None, **members):
    return container("main", line, **members)


def side(line, name="side", **members):
    return container(name, line, essential=False, **members)


def container(name, line, **members):
    described = {"name": name, "image": "busybox", "startTimeout": 120, "stopTimeout": 20, **members}
    if line is not None:
        described["command"] = ["sh", "-c", line]
    return described


def after(**conditions):
    return [{"containerName": name, "condition": condition} for name, condition in conditions.items()]


def mount(path, **more):
    return {"sourceVolume": "shared", "containerPath": path, **more}


def ulimit(name, soft, hard):
    return {"name": name, "softLimit": soft, "hardLimit": hard}


def control(namespace, value):
    return {"namespace": namespace, "value": value}


def variables(**values):
    return [{"name": name, "value": value} for name, value in values.items()]


VOLUME = {"volumes": [{"name": "shared", "host": {}}]}
SHELL_CHECK = {"interval": 5, "timeout": 60, "retries": 3, "startPeriod": 1}
# Ends when the file is there, or badly after so many seconds.
WAIT_FOR = "n=0; until [ -e {} ]; do n=$((n+1)); [ $n -lt 240 ] || exit 9; sleep 0.5; done"
FOREVER = "while :; do sleep 1; done"
NOT_REACHED = 'container "side" ended with the exit code 3'

CASES = [
    Case(
        "essential",
        [main("sleep 3; echo main"), side("echo side; exit 5")],
        ends={"main": 0, "side": 5},
        says={"main": "main\n", "side": "side\n"},
        described={"stopCode": "EssentialContainerExited", "stoppedReason": "Essential container in task exited"},
    ),
    Case(
        "depends-on-start-complete-success",
        [
            main("cat /s/*", dependsOn=after(third="SUCCESS"), mountPoints=[mount("/s")]),
            side("echo third > /s/3", "third", dependsOn=after(second="COMPLETE"), mountPoints=[mount("/s")]),
            side("sleep 1; echo second > /s/2; exit 4", "second", dependsOn=after(first="START"), mountPoints=[mount("/s")]),
            side("echo first > /s/1", "first", mountPoints=[mount("/s")]),
        ],
        members=VOLUME,
        ends={"main": 0, "third": 0, "second": 4, "first": 0},
        says={"main": "first\nsecond\nthird\n"},
    ),
    Case(
        "depends-on-healthy",
        [
            main("cat /s/healthy", dependsOn=after(side="HEALTHY"), mountPoints=[mount("/s")]),
            side(
                f"trap 'exit 0' TERM; echo healthy > /s/healthy; {FOREVER}",
                healthCheck={"command": ["CMD", "test", "-e", "/s/healthy"], **SHELL_CHECK},
                mountPoints=[mount("/s")],
            ),
        ],
        members=VOLUME,
        ends={"main": 0, "side": 0},
        says={"main": "healthy\n"},
    ),
    Case(
        "depends-on-success-that-fails",
        [main("echo never", dependsOn=after(side="SUCCESS")), side("exit 3")],
        ends={"main": f"CannotStartContainerError: {NOT_REACHED}", "side": 3},
        says={"main": ""},
        described={"stopCode": "TaskFailedToStart", "stoppedReason": f"CannotStartContainerError: {NOT_REACHED}"},
    ),
    Case(
        "start-timeout",
        [main("echo never", dependsOn=after(side="COMPLETE")), side(FOREVER, startTimeout=2, stopTimeout=2)],
        ends={"side": 137},
        says={"main": ""},
        described={
            "stoppedReason": 'CannotStartContainerError: container "side" did not reach COMPLETE within 2 s',
        },
    ),
    Case(
        "stop-timeout",
        [
            # The others' traps are set before it ends.
            main(f"{WAIT_FOR.format('/s/deaf')}; {WAIT_FOR.format('/s/polite')}; exit 7", mountPoints=[mount("/s")]),
            side(f"trap '' TERM; touch /s/deaf; {FOREVER}", "deaf", stopTimeout=2, mountPoints=[mount("/s")]),
            side(
                f"trap 'echo heard; exit 6' TERM; touch /s/polite; {FOREVER}",
                "polite",
                dependsOn=after(deaf="START"),
                mountPoints=[mount("/s")],
            ),
        ],
        members=VOLUME,
        ends={"main": 7, "deaf": 137, "polite": 6},
        says={"polite": "heard\n"},
    ),
    Case(
        "health-check",
        [
            main(
                WAIT_FOR.format("/tmp/checked") + "; cat /tmp/checked",
                user="nobody",
                environment=variables(WHO="checked"),
                healthCheck={"command": ["CMD-SHELL", "echo $WHO by $(id -u) > /tmp/checked"], **SHELL_CHECK},
            )
        ],
        says={"main": "checked by 65534\n"},
    ),
    Case(
        "restart-policy-with-an-ignored-code",
        [main("exit 3", restartPolicy={"enabled": True, "ignoredExitCodes": [3], "restartAttemptPeriod": 60})],
        ends={"main": 3},
    ),
    Case(
        "cpu-shares",
        [
            main("cat /sys/fs/cgroup/cpu.weight", cpu=128),
            side("cat /sys/fs/cgroup/cpu.weight", cpu=64),
            side("cat /sys/fs/cgroup/cpu.weight", "neither"),
        ],
        ends={"main": 0},
        says={"main": "5\n", "side": "3\n", "neither": "100\n"},
    ),
    Case(
        "memory-of-a-container",
        [
            main(
                f"cat /sys/fs/cgroup/memory.max; {WAIT_FOR.format('/s/eats')}; sleep 2; echo unhurt",
                memory=256,
                mountPoints=[mount("/s")],
            ),
            side(
                "touch /s/eats; exec webserver eat 200", image="web", memory=64, stopTimeout=110, mountPoints=[mount("/s")]
            ),
        ],
        members=VOLUME,
        ends={"main": 0, "side": 137},
        says={"main": f"{256 * MIB}\nunhurt\n"},
        described={"containers": {"side": {"memory": "64", "reason": ["OutOfMemoryError"]}}},
    ),
    Case(
        "memory-reservation",
        [main("cat /sys/fs/cgroup/memory.low /sys/fs/cgroup/memory.max", memoryReservation=64)],
        says={"main": f"{64 * MIB}\nmax\n"},
        described={"containers": {"main": {"memoryReservation": "64"}}},
    ),
    Case(
        "entry-point-and-command",
        [{**main(), "entryPoint": ["echo", "of the"], "command": ["definition", "a b"]}],
        says={"main": "of the definition a b\n"},
    ),
    Case("command-of-the-image", [main()], says={"main": ""}),
    Case(
        "working-directory",
        [main("pwd; touch here && ls /srv/made/new", workingDirectory="/srv/made/new")],
        says={"main": "/srv/made/new\nhere\n"},
    ),
    Case(
        "user",
        [
            main("id -u; id -g; sleep 2", user="1000:1001"),
            side("id -u; id -g; touch /root/x 2>/dev/null || echo kept out", user="nobody:nogroup"),
        ],
        ends={"main": 0, "side": 0},
        says={"main": "1000\n1001\n", "side": "65534\n65534\nkept out\n"},
    ),
    Case(
        "environment",
        [main('echo "$A|$B|$HOME|$PATH"', environment=variables(A="1 2", B="", PATH="/bin"))],
        says={"main": "1 2||/root|/bin\n"},
    ),
    Case(
        "secrets",
        [main('echo "$GIVEN|$PLAIN"', secrets=[{"name": "GIVEN", "valueFrom": PARAMETER}], environment=variables(PLAIN="p"))],
        members={"executionRoleArn": ROLE},
        says={"main": f"{SECRET_VALUE}|p\n"},
    ),
    Case(
        "ulimits",
        [
            main(
                "cat /proc/self/limits",
                ulimits=[
                    ulimit("core", 0, 1024),
                    ulimit("cpu", 300, -1),
                    ulimit("data", 1 << 30, 1 << 30),
                    ulimit("fsize", 1 << 20, 1 << 21),
                    ulimit("locks", 10, 20),
                    ulimit("memlock", -1, -1),
                    ulimit("msgqueue", 1000, 2000),
                    ulimit("nice", 5, 10),
                    ulimit("nofile", 100, 200),
                    ulimit("nproc", 50, 60),
                    ulimit("rss", 4096, 8192),
                    ulimit("rtprio", 1, 2),
                    ulimit("rttime", 1000000, 2000000),
                    ulimit("sigpending", 30, 40),
                    ulimit("stack", 1 << 20, 1 << 21),
                ],
            )
        ],
        says={
            "main": [
                f"Max {name:<21} {soft:<20} {hard:<20} "
                for name, soft, hard in [
                    ("core file size", 0, 1024),
                    ("cpu time", 300, "unlimited"),
                    ("data size", 1 << 30, 1 << 30),
                    ("file size", 1 << 20, 1 << 21),
                    ("file locks", 10, 20),
                    ("locked memory", "unlimited", "unlimited"),
                    ("msgqueue size", 1000, 2000),
                    ("nice priority", 5, 10),
                    ("open files", 100, 200),
                    ("processes", 50, 60),
                    ("resident set", 4096, 8192),
                    ("realtime priority", 1, 2),
                    ("realtime timeout", 1000000, 2000000),
                    ("pending signals", 30, 40),
                    ("stack size", 1 << 20, 1 << 21),
                ]
            ]
        },
    ),
    Case(
        "ulimit-that-is-reached",
        [main("dd if=/dev/zero of=/big bs=4096 count=3; echo $?; wc -c < /big", ulimits=[ulimit("fsize", 8192, 8192)])],
        says={"main": ["153\n8192\n"]},
    ),
    Case(
        "init-process",
        [
            main(
                "[ $$ -ne 1 ] && echo not the first; sh -c 'sleep 0.2 & exec true'; sleep 2; ps -o stat | grep -c Z; exit 4",
                linuxParameters={"initProcessEnabled": True},
            )
        ],
        ends={"main": 4},
        says={"main": "not the first\n0\n"},
    ),
    Case(
        "tmpfs",
        [
            main(
                "stat -c '%a %u' /t; grep ' /t ' /proc/mounts; cp /bin/busybox /t/b 2>&1; /t/b true || echo not run",
                linuxParameters={
                    "tmpfs": [{"containerPath": "/t", "size": 16, "mountOptions": ["noexec", "mode=0711", "uid=7"]}]
                },
            )
        ],
        says={"main": ["711 7\n", "noexec", "size=16384k", "not run\n"]},
    ),
    Case(
        "capabilities",
        [
            main(
                "grep CapEff /proc/self/status; sleep 2",
                linuxParameters={"capabilities": {"add": ["SYS_PTRACE"], "drop": ["ALL"]}},
            ),
            side("grep CapBnd /proc/self/status", linuxParameters={"capabilities": {"drop": ["MKNOD", "NET_RAW"]}}),
        ],
        ends={"main": 0, "side": 0},
        says={"main": "CapEff:\t0000000000080000\n", "side": "CapBnd:\t00000000a00405fb\n"},
    ),
    Case(
        "read-only-root",
        [
            main(
                "touch /x 2>&1 || echo closed; touch /s/x && echo open; touch /dev/shm/x && echo shared memory",
                readonlyRootFilesystem=True,
                mountPoints=[mount("/s")],
            )
        ],
        members=VOLUME,
        says={"main": ["Read-only file system\nclosed\nopen\nshared memory\n"]},
    ),
    Case(
        "volumes",
        [
            main(
                f"{WAIT_FOR.format('/a/done')}; cat /a/done /b/c/done; touch /b/c/x 2>/dev/null || echo read-only",
                mountPoints=[mount("/a"), mount("/b/c", readOnly=True)],
            ),
            side("echo written > /w/new; mv /w/new /w/done", mountPoints=[mount("/w")]),
        ],
        members=VOLUME,
        ends={"main": 0, "side": 0},
        says={"main": "written\nwritten\nread-only\n"},
    ),
    Case(
        "volumes-from",
        [
            main(
                f"{WAIT_FOR.format('/w/done')}; cat /w/done; touch /w/x 2>/dev/null || echo read-only",
                volumesFrom=[{"sourceContainer": "side", "readOnly": True}],
            ),
            side("echo written > /w/new; mv /w/new /w/done", mountPoints=[mount("/w")]),
        ],
        members=VOLUME,
        ends={"main": 0, "side": 0},
        says={"main": "written\nread-only\n"},
    ),
    Case("docker-labels", [main("true", dockerLabels={"com.example.team": "a", "empty": ""})]),
    Case(
        "port-mappings-on-localhost-and-an-image-each",
        [
            main(
                "test -e /usr/bin/webserver || echo not here; n=0; "
                "until wget -q -O /dev/null http://127.0.0.1:80/; do n=$((n+1)); [ $n -lt 120 ] || exit 9; sleep 0.5; done; echo served",
                dependsOn=after(server="START"),
            ),
            {
                "name": "server",
                "image": "web",
                "essential": False,
                "stopTimeout": 2,
                "portMappings": [
                    {"containerPort": 80, "hostPort": 80, "protocol": "tcp", "name": "http", "appProtocol": "http"},
                    {"containerPortRange": "8000-8010", "protocol": "udp"},
                ],
            },
        ],
        says={"main": ["not here\n", "served\n"]},
    ),
    Case(
        "system-controls",
        [
            main(
                "cd /proc/sys; cat net/core/somaxconn net/ipv4/tcp_keepalive_time kernel/msgmax fs/mqueue/msg_max; sleep 3",
                systemControls=[
                    control("net.core.somaxconn", "1234"),
                    control("net.ipv4.tcp_keepalive_time", "290"),
                    control("kernel.msgmax", "4321"),
                    control("fs.mqueue.msg_max", "33"),
                ],
            ),
            side(
                "cd /proc/sys; cat net/core/somaxconn kernel/msgmax; echo 1 2>/dev/null > net/core/somaxconn || echo closed",
                dependsOn=after(main="START"),
            ),
        ],
        ends={"main": 0, "side": 0},
        says={"main": "1234\n290\n4321\n33\n", "side": "1234\n8192\nclosed\n"},
    ),
    Case(
        "system-control-that-is-not-there",
        [main("echo never", systemControls=[control("net.ipv4.no_such_thing", "1")])],
        ends={"main": ["CannotStartContainerError", "net.ipv4.no_such_thing"]},
        says={"main": ""},
        described={"stopCode": "TaskFailedToStart"},
    ),
    Case(
        "pid-mode-task",
        [
            main(
                # The long sleeps of the other container are seen, the one that it leaves behind is gone with it, and so is
                # nothing of this one's.
                "sleep 4444 & n=0; until ps -o args | grep -q '^sleep 3333'; do n=$((n+1)); [ $n -lt 120 ] || exit 9; sleep 0.5; done; "
                "echo seen; touch /s/seen; while ps -o args | grep -q '^sleep 3333'; do n=$((n+1)); [ $n -lt 240 ] || exit 8; sleep 0.5; done; "
                "echo gone; ps -o args | grep -c '^sleep 4444'; exit 5",
                mountPoints=[mount("/s")],
            ),
            side(f"setsid sleep 3333 & {WAIT_FOR.format('/s/seen')}; exit 6", mountPoints=[mount("/s")]),
        ],
        members={"pidMode": "task", **VOLUME},
        ends={"main": 5, "side": 6},
        says={"main": "seen\ngone\n1\n"},
    ),
    Case(
        "pid-mode-task-with-init-and-tracing",
        [
            main(
                # The first process of the namespace has no files to look at, no rights, and nobody's user.
                "grep -E '^(CapBnd|Uid)' /proc/1/status; ls -A /proc/1/root/; tr '\\0' ' ' < /proc/1/cmdline; echo; "
                "kill -9 1; sh -c 'sleep 0.2 & exec true'; sleep 2; ps -o stat | grep -c Z; "
                # The other one's trap is set before it sleeps.
                "n=0; until ps -o args | grep -q '^sleep 1$'; do n=$((n+1)); [ $n -lt 240 ] || exit 9; sleep 0.5; done; exit 3",
                linuxParameters={"initProcessEnabled": True, "capabilities": {"add": ["SYS_PTRACE"]}},
            ),
            side(f"trap 'exit 4' TERM; {FOREVER}", user="nobody"),
        ],
        members={"pidMode": "task"},
        ends={"main": 3, "side": 4},
        says={
            "main": "Uid:\t2147483646\t2147483646\t2147483646\t2147483646\nCapBnd:\t0000000000000000\nberth-pids \n0\n",
        },
    ),
    Case(
        "pid-mode-task-that-cannot-start",
        [{**main(), "entryPoint": ["/no/such/program"]}],
        members={"pidMode": "task"},
        ends={"main": ["CannotStartContainerError", "/no/such/program"]},
        described={"stopCode": "TaskFailedToStart"},
    ),
    Case(
        "ephemeral-storage",
        [main("df -m / | awk 'END { print ($2 > 28000 && $2 < 31000) ? \"thirty\" : $2 }'")],
        members={"ephemeralStorage": {"sizeInGiB": 30}},
        says={"main": "thirty\n"},
        described={"ephemeralStorage": {"sizeInGiB": 30}},
    ),
    Case(
        "runtime-platform",
        [main("uname -sm")],
        members={"runtimePlatform": {"cpuArchitecture": "X86_64", "operatingSystemFamily": "LINUX"}},
        says={"main": "Linux x86_64\n"},
    ),
    Case(
        "interactive",
        [main("timeout 2 cat || echo waited; sleep 2", interactive=True), side("cat; echo $?")],
        ends={"main": 0, "side": 0},
        says={"main": ["waited\n"], "side": "0\n"},
    ),
    Case(
        "pseudo-terminal",
        [main("test -t 0 && test -t 1 && test -t 2 && echo terminal; stty size; exit 3", pseudoTerminal=True, interactive=True)],
        ends={"main": 3},
        says={"main": "terminal\r\n24 80\r\n"},
    ),
    Case(
        "ten-containers",
        [main(f"{'; '.join(WAIT_FOR.format(f'/s/{n}') for n in range(9))}; ls /s | wc -l", mountPoints=[mount("/s")])]
        + [side(f"touch /s/{n}; exit {n}", f"side{n}", mountPoints=[mount("/s")]) for n in range(9)],
        members=VOLUME,
        ends={"main": 0, **{f"side{n}": n for n in range(9)}},
        says={"main": "9\n"},
    ),
    Case(
        "overrides",
        [
            main(
                "echo never",
                environment=variables(A="definition", B="definition"),
                cpu=10,
                memory=200,
                memoryReservation=100,
            ),
            side("echo side"),
        ],
        run={
            "overrides": {
                "cpu": "512",
                "memory": "1 GB",
                "ephemeralStorage": {"sizeInGiB": 25},
                "taskRoleArn": "arn:aws:iam::123456789012:role/other",
                "executionRoleArn": ROLE,
                "containerOverrides": [
                    {
                        "name": "main",
                        "command": [
                            "sh",
                            "-c",
                            "echo $A $B $C; cd /sys/fs/cgroup; cat cpu.weight memory.max memory.low; "
                            "df -m / | awk 'END { print ($2 > 23000 && $2 < 26000) ? \"twenty-five\" : $2 }'; sleep 2",
                        ],
                        "environment": variables(B="override", C="override"),
                        "cpu": 128,
                        "memory": 300,
                        "memoryReservation": 50,
                    }
                ],
            }
        },
        ends={"main": 0, "side": 0},
        says={
            "main": f"definition override override\n5\n{300 * MIB}\n{50 * MIB}\ntwenty-five\n",
            "side": "side\n",
        },
        described={
            "cpu": "512",
            "memory": "1024",
            "ephemeralStorage": {"sizeInGiB": 25},
            "containers": {"main": {"cpu": "128", "memory": "300", "memoryReservation": "50"}},
        },
    ),
]
