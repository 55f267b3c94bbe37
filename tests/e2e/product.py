"""Where the built product is, and where a run may write. Set by `cargo xtask test`; the defaults fit a checkout."""

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

BERTH = Path(os.environ.get("BERTH_BIN", TARGET / "release/berth"))
VMM = Path(os.environ.get("BERTH_VMM", TARGET / "x86_64-unknown-linux-gnu/machine/berth-vmm"))
# The same with what the tests of its jail have it do.
PROBING = Path(os.environ.get("BERTH_VMM_PROBING", VMM.with_name("berth-vmm-probing")))
GUEST = Path(os.environ.get("BERTH_GUEST", ROOT / "target/guest"))
# Built for x86_64-unknown-linux-gnu with crt-static: it runs in images that have no C library.
WEBSERVER = Path(os.environ.get("BERTH_WEBSERVER", TARGET / "x86_64-unknown-linux-gnu/release/webserver"))
HOSTILE = Path(os.environ.get("BERTH_HOSTILE", TARGET / "x86_64-unknown-linux-gnu/machine/hostile"))
BUSYBOX = Path("/bin/busybox")

# On a real file system where there is one: the lab's root is slow.
SCRATCH = Path(tempfile.mkdtemp(prefix="berth-e2e-", dir=os.environ.get("BERTH_LAB_DATA")))


def missing():
    """What the suite needs and does not find."""
    files = [BERTH, VMM, GUEST / "vmlinux", GUEST / "initrd.cpio", WEBSERVER, HOSTILE, BUSYBOX]
    return [str(path) for path in files if not path.is_file()]
