"""What `cargo xtask demo` shows: a registry with an image, the daemon, and a container run as a task in a microVM.

Everything is real: the image is pushed with skopeo to Debian's docker-registry on loopback and pulled from there.
"""

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "e2e"))

import images
import product
from daemon import Daemon
from registry import Registry

SCRIPT = 'echo "hello from $(hostname)"; echo "$(uname -sr), $(nproc) vCPU, this shell is process $$"; exit 7'
# As the script says.
EXIT_CODE = 7


def say(text):
    print(f"\n==> {text}", flush=True)


def main():
    say("An image in a registry on this machine")
    registry = Registry().start()
    try:
        folder = product.SCRATCH / "image"
        digest = images.write_layout(folder, [images.busybox_layer()], {"Cmd": ["sh"]})
        registry.push(folder, "busybox")
        image = f"{registry.host}/busybox:latest"
        print(f"{image} is {digest}", flush=True)
        say("The daemon: berth serve")
        daemon = Daemon(product.SCRATCH / "data", [registry.host]).start()
        print(daemon.exports.strip(), flush=True)
        try:
            return tour(daemon, image)
        finally:
            daemon.stop()
    finally:
        registry.stop()
        shutil.rmtree(product.SCRATCH, ignore_errors=True)


def tour(daemon, image):
    def berth(*arguments):
        command = [product.BERTH, *arguments]
        return subprocess.run(command, env=daemon.environment(), stdin=subprocess.DEVNULL, timeout=600).returncode

    say(f"A container as a task: berth run --cpu 256 --memory 512 {image} sh -c '{SCRIPT}'")
    exit_code = berth("run", "--cpu", "256", "--memory", "512", image, "sh", "-c", SCRIPT)
    print(f"exit code {exit_code}", flush=True)
    say("The same task, seen by the real aws CLI: aws ecs list-tasks --desired-status STOPPED")
    print(daemon.aws("ecs", "list-tasks", "--desired-status", "STOPPED").strip(), flush=True)
    say("Its bill: berth bill")
    billed = berth("bill")
    return 0 if (exit_code, billed) == (EXIT_CODE, 0) else 1


if __name__ == "__main__":
    sys.exit(main())
