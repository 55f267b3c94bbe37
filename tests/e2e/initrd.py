"""Initial RAM file systems of a test's own: busybox and a script, which speaks through the serial port."""

import product

PREPARE = """\
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /dev
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
exec > /dev/ttyS0
"""


def initrd(name, script, prepare=PREPARE):
    """An initial RAM file system (cpio, newc) of busybox and a script as init."""
    archive = bytearray()

    def add(path, mode, data=b""):
        fields = [len(archive) + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path) + 1, 0]
        archive.extend(b"070701" + b"".join(b"%08x" % field for field in fields) + path.encode() + b"\0")
        archive.extend(bytes(-len(archive) % 4) + data)
        archive.extend(bytes(-len(archive) % 4))

    add("bin", 0o040755)
    add("bin/busybox", 0o100755, product.BUSYBOX.read_bytes())
    add("init", 0o100755, (prepare + script).encode())
    add("TRAILER!!!", 0)
    path = product.SCRATCH / f"{name}.cpio"
    path.write_bytes(archive)
    return path
