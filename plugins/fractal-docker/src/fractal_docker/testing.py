"""A real engine for tests, in namespaces of its own, so that nothing of it outlives it: networks, mounts, processes.

Needs root, and Debian's `docker.io` and `busybox-static`.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker

from fractal.api.context import Context
from fractal.testing.context import real_context
from fractal_docker.cgroup import RunCgroup
from fractal_docker.config import DockerConfig
from fractal_docker.engine import API, Engine, open_engine
from fractal_docker.runtime import DockerRuntime

BUSYBOX = "fractal-test/busybox:1"
PYTHON = "fractal-test/python:1"
CLONE_NEWNET = 0x40000000
READY = 60.0
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


def missing() -> str:
    """Why no engine can be started here, or ""."""
    if os.geteuid() != 0:
        return "an engine of its own needs root"
    gone = [tool for tool in ("dockerd", "busybox", "unshare", "setpriv") if shutil.which(tool) is None]
    return f"{', '.join(gone)}: not installed (Debian: docker.io busybox-static util-linux)" if gone else ""


@dataclass(frozen=True, slots=True)
class TestEngine:
    """A running engine."""

    __test__ = False

    folder: Path
    leader: int
    """Pid of `unshare`; with it ends everything."""
    runs: set[str] = field(default_factory=set)
    """Names of cgroups that tests made for it."""

    @property
    def socket(self) -> Path:
        """The engine's socket."""
        return self.folder / "docker.sock"

    @property
    def pid(self) -> int:
        """Of dockerd itself, for signals."""
        for pid in _children(_children(self.leader)[0]):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "dockerd":
                return pid
        raise RuntimeError("dockerd has ended; see its log")

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Put this thread, and threads that it starts, into the engine's network: its loopback is then ours."""
        with Path("/proc/thread-self/ns/net").open("rb") as home:
            with Path(f"/proc/{self.pid}/ns/net").open("rb") as there:
                _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """The engine as SIGSTOP leaves it."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def api(self) -> docker.APIClient:
        """A client for looking at it from outside."""
        return docker.APIClient(base_url=f"unix://{self.socket}", version=API, timeout=60)


@contextlib.contextmanager
def running_engine(folder: Path) -> Iterator[TestEngine]:
    """Start an engine below `folder`; ends it and everything in it, also after failure and if this process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    options += [f"--host=unix://{folder}/docker.sock", "--exec-opt=native.cgroupdriver=cgroupfs"]
    namespaces = [
        "--net",
        "--mount",
        "--propagation=slave",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    # The shell is the namespace's first process and reaps what dockerd leaves.
    script = 'ip link set lo up; dockerd "$@" & wait'
    argv = ["setpriv", "--pdeathsig=KILL", "unshare", *namespaces, "--", "sh", "-c", script, "sh", *options]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
    engine = TestEngine(folder, process.pid)
    client = engine.api()
    try:
        end = time.monotonic() + READY
        while not _answers(client):
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"dockerd does not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield engine
    finally:
        client.close()
        for name in engine.runs:  # under v1 what is frozen does not even die with its namespace
            RunCgroup(name).release()
        process.kill()
        process.wait()
        _forget_folder(folder)
        for name in engine.runs:
            RunCgroup(name).remove()


@contextlib.asynccontextmanager
async def opened(
    engine: TestEngine, folder: Path, *, device: str = "0" * 20, **settings: float
) -> AsyncIterator[RememberingRuntime]:
    """A runtime on that engine. Every run that it ever named is killed and removed on exit."""
    async with again(engine, folder, device=device, **settings) as runtime:
        try:
            yield runtime
        finally:
            for key in sorted(runtime.named):
                await runtime.kill(key)
                await runtime.remove(key)


@contextlib.asynccontextmanager
async def again(
    engine: TestEngine, folder: Path, *, device: str = "0" * 20, **settings: float
) -> AsyncIterator[RememberingRuntime]:
    """A runtime beside another one, as after a restart of the agent."""
    config = DockerConfig(socket=str(engine.socket), **settings)  # type: ignore[arg-type]  # numbers only
    # Tests of one machine may run side by side: no two folders share the name of a run.
    device = f"{device}-{folder}"
    async with real_context(folder, device=device) as context, open_engine(config) as opened_engine:
        runtime = RememberingRuntime(context, config, opened_engine, engine.runs)
        runtime.unpause_all()
        try:
            yield runtime
        finally:
            await runtime.close()


class RememberingRuntime(DockerRuntime):
    """Knows each run that it was asked about, so that a test can clear up after a failure too."""

    def __init__(self, context: Context, config: DockerConfig, engine: Engine, cgroups: set[str]) -> None:
        super().__init__(context, config, engine)
        self.named: set[str] = set()
        self._cgroups = cgroups

    def _cgroup(self, key: str) -> RunCgroup:
        found = super()._cgroup(key)
        self.named.add(key)
        self._cgroups.add(found.name)
        return found


def busybox_image(client: docker.APIClient, name: str = BUSYBOX, marker: str = "") -> str:
    """A small image; its digest. `marker` makes its content another one's."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        _base(tar, marker)
    return _imported(client, archive.getvalue(), name, ['CMD ["sleep", "1000000"]'])


def python_image(client: docker.APIClient) -> str:
    """This machine's own Python with its libraries beside busybox: made in two seconds, without a registry."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        _base(tar, "")
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
    return _imported(client, archive.getvalue(), PYTHON, ["ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1"])


def _base(tar: tarfile.TarFile, marker: str) -> None:
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
    applets = "sh sleep cat echo ls id env hostname wget httpd nc mount true false touch kill pwd stat test nslookup grep"
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


def _imported(client: docker.APIClient, data: bytes, name: str, changes: list[str]) -> str:
    repository, _, tag = name.rpartition(":")
    client.import_image_from_data(
        data, repository=repository, tag=tag, changes=["ENV PATH=/usr/bin:/bin", *changes]
    )
    return str(client.inspect_image(name)["Id"])


def _answers(client: docker.APIClient) -> bool:
    try:
        return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _forget_folder(folder: Path) -> None:
    """Processes of a killed namespace take a moment to let go of files."""
    end = time.monotonic() + 10.0
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=time.monotonic() < end)
        if folder.exists():
            time.sleep(0.05)
