"""Images for tests, made of what this machine has: no registry is asked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractal_containers.testing import TestEngine

BUSYBOX = "localhost/fractal-test/busybox:1"
PYTHON = "localhost/fractal-test/python:1"
PYTHON_ENV = ("PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1")
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "ensurepip",
    "site-packages",
    "dist-packages",
    "tkinter",
    "turtledemo",
}


def busybox_image(
    engine: TestEngine, name: str = BUSYBOX, marker: str = "", changes: Sequence[str] = ()
) -> str:
    """A small image; its digest. `marker` makes its content another one's."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        busybox_tar(tar, marker=marker)
    return _imported(engine, archive.getvalue(), name, ['CMD ["sleep", "1000000"]', *changes])


def python_image(engine: TestEngine) -> str:
    """This machine's own Python with its libraries beside busybox: made in two seconds, without a registry."""
    return _imported(engine, _python(), PYTHON, [f"ENV {' '.join(PYTHON_ENV)}"])


def python_archive() -> bytes:
    """The same image as a docker archive (`docker save`), which every engine loads."""
    layer, output = _python(), io.BytesIO()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin", *PYTHON_ENV]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PYTHON], "Layers": ["layer.tar"]}]
    parts = {"config.json": json.dumps(config).encode(), "layer.tar": layer}
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in {**parts, "manifest.json": json.dumps(manifest).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return output.getvalue()


@cache
def _python() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        busybox_tar(tar, marker="")
        binary = os.path.realpath(sys.executable)
        _add(tar, binary)
        stdlib = sysconfig.get_path("stdlib")
        for folder, folders, files in os.walk(stdlib):
            folders[:] = [f for f in folders if f not in LEFT_OUT and not f.startswith("config-")]
            for file in files:
                _add(tar, f"{folder}/{file}")
        modules = [str(path) for path in Path(stdlib, "lib-dynload").glob("*.so")]
        for library in sorted({library for program in (binary, *modules) for library in _libraries(program)}):
            _add(tar, library)
        for link in ("usr/bin/python3", "usr/bin/python"):
            _link(tar, link, binary)
    return archive.getvalue()


def busybox_tar(tar: tarfile.TarFile, applets: str = "", marker: str = "") -> None:
    """What an image of busybox consists of, with more of its programs if need be."""
    for folder, mode in (("bin", 0o755), ("usr/bin", 0o755), ("tmp", 0o1777), ("etc", 0o755), ("run", 0o755)):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        tar.addfile(entry)
    tar.add(shutil.which("busybox") or "busybox", "bin/busybox")
    for folder, mode in (("srv", 0o755), ("srv/site", 0o750)):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, 1000, 1000
        tar.addfile(entry)
    _link(tar, "srv/site/outside", "/etc")
    applets += " sh sleep cat echo ls id env hostname wget httpd nc mount true false touch kill pwd stat test nslookup grep"
    for applet in applets.split():
        _link(tar, f"bin/{applet}", "/bin/busybox")
    text = f"root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\n#{marker}\n".encode()
    entry = tarfile.TarInfo("etc/passwd")
    entry.size = len(text)
    tar.addfile(entry, io.BytesIO(text))


def _add(tar: tarfile.TarFile, path: str) -> None:
    """A file at its own place, and what its symbolic link leads to as a file too."""
    entry = tar.gettarinfo(os.path.realpath(path), path.lstrip("/"))
    with Path(path).open("rb") as file:
        tar.addfile(entry, file)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _libraries(binary: str) -> list[str]:
    """Absolute paths of the shared libraries that a program needs."""
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    return sorted({word for word in listed.split() if word.startswith("/")})


def _imported(engine: TestEngine, data: bytes, name: str, changes: list[str]) -> str:
    engine.import_image(data, name, ["ENV PATH=/usr/bin:/bin", *changes])
    client = engine.api()
    try:
        return str(client.inspect_image(name)["Id"])
    finally:
        client.close()
