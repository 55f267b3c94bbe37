"""Tasks on their network: addresses of their own, traffic through their interfaces, and nobody else's addresses."""

import hashlib

from tasks import container, eni

MIB = 1 << 20


def test_tasks_have_addresses_of_their_own(images, tasks):
    definition = tasks.define(images.busybox, "ip -o -4 address show dev eth0; cat /sys/class/net/eth0/address; sleep 3600")
    pair = [tasks.wait(task, "RUNNING") for task in tasks.run(definition, count=2)]
    first, second = (eni(task) for task in pair)
    assert first["privateIPv4Address"] != second["privateIPv4Address"]
    assert first["macAddress"] != second["macAddress"]
    assert first["networkInterfaceId"] != second["networkInterfaceId"]
    for task in pair:
        output = tasks.wait_for_output(task, eni(task)["macAddress"])
        assert f"inet {eni(task)['privateIPv4Address']}/" in output


def test_one_task_reads_what_another_serves(images, tasks):
    server = tasks.start(images.web, environment={"PORT": "8080"})
    tasks.wait_for_output(server, "listening on port 8080")
    get = f"webserver get {eni(server)['privateIPv4Address']}:8080"
    reader = tasks.finish(images.web, f"{get} / && {get} /bytes/{4 * MIB} | sha256sum")
    assert container(reader)["exitCode"] == 0
    greeting, digest = tasks.output(reader, follow=True).decode().splitlines()
    assert greeting.startswith("hello from ")
    expected = hashlib.sha256((b"0123456789abcdef" * (4 * MIB // 16))).hexdigest()
    assert digest.split()[0] == expected
    # The server saw the reader's own address, not one of the host's.
    assert f"{eni(reader)['privateIPv4Address']} /" in tasks.wait_for_output(server, "/bytes")


def test_stolen_addresses_reach_nobody(images, tasks):
    receiver, victim = tasks.start(images.web), tasks.start(images.busybox, "sleep 3600")
    to, stolen = eni(receiver), eni(victim)
    target = f"{to['macAddress']} {to['privateIPv4Address']} 80"
    script = "; ".join(
        [
            "mac=$(cat /sys/class/net/eth0/address)",
            "ip=$(ip -o -4 address show dev eth0 | awk '{print $4}' | cut -d/ -f1)",
            f"webserver spoof eth0 $mac $ip {target} honest-before",
            f"webserver spoof eth0 {stolen['macAddress']} $ip {target} stolen-mac",
            f"webserver spoof eth0 $mac {stolen['privateIPv4Address']} {target} stolen-ip",
            f"webserver spoof eth0 {stolen['macAddress']} {stolen['privateIPv4Address']} {target} stolen-both",
            f"webserver spoof eth0 $mac $ip {target} honest-after",
        ]
    )
    attacker = tasks.finish(images.web, script)
    sent = tasks.output(attacker, follow=True).decode()
    assert sent.count("sent 5 frames") == 5, sent + tasks.output(attacker, stream="stderr").decode()
    heard = tasks.wait_for_output(receiver, "honest-after")
    # The same frames with the true addresses arrive, before and after: it is the address that makes the difference.
    assert f"datagram from {eni(attacker)['privateIPv4Address']}: honest-before" in heard
    assert "stolen" not in heard


def test_task_reaches_neither_the_host_nor_its_metadata(running, images, tasks):
    ports = f"127.0.0.1:{running.port}"
    script = (
        "gateway=$(ip route | awk '/^default/ {print $3}');"
        # The same client reaches what it may reach.
        " PORT=8081 webserver > /dev/null & sleep 2;"
        f" for target in 127.0.0.1:8081 $gateway:{running.port} {ports} 169.254.169.254:80; do"
        " webserver get $target / > /dev/null && echo reached $target; done; echo tried"
    )
    task = tasks.finish(images.web, script)
    assert tasks.output(task, follow=True) == b"reached 127.0.0.1:8081\ntried\n"
