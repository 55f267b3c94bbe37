"""OCI images made by hand, good and hostile ones, without Docker: layers are tar files written here."""

import gzip
import hashlib
import io
import json
import struct
import subprocess
import tarfile
import zlib

import product

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"
MIB = 1 << 20
GIB = 1 << 30


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layer:
    def __init__(self, blob, diff_id):
        self.blob, self.diff_id = blob, diff_id


class Entries:
    """The entries of one layer, in the order they are added."""

    def __init__(self):
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(
            fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )

    def _add(self, name, kind, mode, data=b"", link="", owner=(0, 0), mtime=0, xattrs=None):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
        info.uid, info.gid = owner
        info.mtime = mtime
        for attribute, value in (xattrs or {}).items():
            info.pax_headers[f"SCHILY.xattr.{attribute}"] = value.decode("utf-8", "surrogateescape")
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name, mode=0o755, **options):
        return self._add(name, tarfile.DIRTYPE, mode, **options)

    def file(self, name, data, mode=0o644, **options):
        return self._add(name, tarfile.REGTYPE, mode, data if isinstance(data, bytes) else data.encode(), **options)

    def hole(self, name, size):
        """A file of `size` bytes of which none is stored."""
        info = tarfile.TarInfo(name)
        info.pax_headers["GNU.sparse.size"] = str(size)
        self._tar.addfile(info)
        return self

    def symlink(self, name, target, **options):
        return self._add(name, tarfile.SYMTYPE, 0o777, link=target, **options)

    def hardlink(self, name, target, **options):
        return self._add(name, tarfile.LNKTYPE, 0o644, link=target, **options)

    def fifo(self, name, mode, **options):
        return self._add(name, tarfile.FIFOTYPE, mode, **options)

    def layer(self):
        self._tar.close()
        tar = self._buffer.getvalue()
        return Layer(gzip.compress(tar, compresslevel=1, mtime=0), sha256(tar))


def busybox_layer():
    entries = Entries()
    for name in ["bin", "dev", "etc", "home", "mnt", "proc", "run", "sys", "usr", "usr/bin", "usr/sbin", "var"]:
        entries.directory(name)
    entries.directory("tmp", 0o1777).directory("root", 0o700)
    entries.file("etc/passwd", PASSWD).file("etc/group", GROUP)
    entries.file("bin/busybox", product.BUSYBOX.read_bytes(), 0o755)
    applets = subprocess.run([product.BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in sorted(set(applets) - {"busybox"}):
        entries.symlink(f"bin/{applet}", "busybox")
    return entries.layer()


def webserver_layer():
    return Entries().file("usr/bin/webserver", product.WEBSERVER.read_bytes(), 0o755).layer()


def dotdot_layer(name):
    """A file that would land outside the image by `..`."""
    return Entries().file(f"../../../../../../../..{name}", "escaped").layer()


def symlink_layer(directory):
    """A link to a directory of the host, and a file behind it."""
    return Entries().symlink("way-out", str(directory)).file("way-out/escaped", "escaped").layer()


def hardlink_layer(path):
    """A second name for a file of the host, by its absolute path through a link to the root."""
    return Entries().symlink("way-out", "/").hardlink("stolen", f"way-out{path}").layer()


def bomb_layer(size):
    """A small blob that unpacks to a file of `size` bytes of zeros; made without making the zeros.

    A deflate stream flushed in full is made of blocks that stand alone, so one MiB of zeros, compressed once, can be
    repeated. The checksum at its end is wrong: it is not to come so far.
    """
    info = tarfile.TarInfo("bomb")
    info.size = size
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = deflate.compress(info.tobuf(tarfile.GNU_FORMAT)) + deflate.flush(zlib.Z_FULL_FLUSH)
    mib = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    tail = deflate.flush(zlib.Z_FINISH) + struct.pack("<II", 0, size % (1 << 32))
    blob = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + head + mib * (size // MIB) + tail
    return Layer(blob, sha256(b"never computed"))


def write_layout(folder, layers, config):
    """An OCI image layout with one image; returns the digest of its manifest."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data, media_type):
        digest = sha256(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    described = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [PATH], **config},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(json.dumps(described).encode(), CONFIG),
        "layers": [blob(layer.blob, LAYER) for layer in layers],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), MANIFEST)]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return index["manifests"][0]["digest"]


class Images:
    """Makes images and puts them into a registry, each once."""

    def __init__(self, registry):
        self.registry = registry
        self.digests = {}
        self._base = busybox_layer()
        self._web = webserver_layer()
        self.busybox = self.add("busybox", [self._base], {"Cmd": ["sh"]})
        self.web = self.add("web", [self._base, self._web], {"Cmd": ["webserver"], "ExposedPorts": {"80/tcp": {}}})

    def add(self, name, layers, config=None, registry=None, push=()):
        """Pushes an image and returns its reference."""
        registry = registry or self.registry
        folder = product.SCRATCH / "layouts" / f"{registry.port}-{name}"
        self.digests[name] = write_layout(folder, layers, config or {})
        registry.push(folder, name, *push)
        return f"{registry.host}/{name}:latest"

    def on_base(self, name, layers, config=None, **options):
        """An image with a shell, and these layers on top."""
        return self.add(name, [self._base, *layers], {"Cmd": ["true"], **(config or {})}, **options)

    def with_tree(self, name, layers):
        """An image that can say what it is seen to hold (`webserver tree`), with these layers on top."""
        return self.add(name, [self._base, self._web, *layers], {"Cmd": ["webserver", "tree", "/shape"]})

    def hostile(self, name, layer):
        """A good base with a hostile layer on top."""
        return self.add(name, [self._base, layer], {"Cmd": ["true"]})
