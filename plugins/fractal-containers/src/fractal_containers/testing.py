"""Real engines for tests, in namespaces of their own, so that nothing of one outlives it: networks, mounts, processes.

Needs root. Each engine's plugin says how its own is started: `fractal_docker.testing`, `fractal_podman.testing`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fractal.api.context import Context
from fractal.testing.context import real_context
from fractal_containers.cgroup import RunCgroup
from fractal_containers.config import EngineConfig
from fractal_containers.engine import Engine
from fractal_containers.runtime import ContainerRuntime

if TYPE_CHECKING:
    import docker

CLONE_NEWNET = 0x40000000
READY = 60.0
API = "1.41"


def absent(packages: str, *tools: str) -> str:
    """Why no engine can be started here, or ""."""
    if os.geteuid() != 0:
        return "an engine of its own needs root"
    gone = [tool for tool in (*tools, "busybox", "unshare", "setpriv") if shutil.which(tool) is None]
    return f"{', '.join(gone)}: not installed (Debian: {packages} busybox-static util-linux)" if gone else ""


class AtHand(Protocol):
    """An engine that runs, and how the plugin talks to it."""

    runs: set[str]
    """Names of cgroups that tests made for it."""

    def config(self, **settings: Any) -> EngineConfig:
        """The runtime's settings for it."""

    def engine(self, config: EngineConfig) -> Engine:
        """The plugin's way to it."""


class TestEngine(ABC):
    """An engine that can be started, once, in a folder of its own."""

    __test__ = False
    name: ClassVar[str]
    program: ClassVar[str]
    """Name of the process that serves the socket."""

    def __init__(self, folder: Path, *, netns: Path | None = None) -> None:
        self.folder = folder
        """Holds all that the engine keeps."""
        self.netns = netns
        """File of the network namespace that it works in, such as /run/netns/NAME; None: one of its own."""
        self.leader = 0
        """Pid of `unshare`; with it ends everything."""
        self.runs: set[str] = set()
        """Names of cgroups that tests made for it."""

    # -- for each engine

    @abstractmethod
    def config(self, **settings: Any) -> EngineConfig:
        """The runtime's settings for it."""

    @abstractmethod
    def engine(self, config: EngineConfig) -> Engine:
        """The plugin's way to it."""

    @abstractmethod
    def argv(self) -> Sequence[str]:
        """How to start it."""

    @abstractmethod
    def import_image(self, data: bytes, name: str, changes: Sequence[str]) -> None:
        """Make an image of a tar archive and lines of a Dockerfile."""

    def env(self) -> Mapping[str, str]:
        """What it needs in its environment beside ours."""
        return {}

    def private(self) -> Sequence[str]:
        """Folders that all engines of this kind on a machine share unless each is given its own."""
        return ()

    # -- alike for all

    @property
    def socket(self) -> Path:
        """The engine's socket."""
        return self.folder / f"{self.name}.sock"

    @property
    def log(self) -> Path:
        """What it said."""
        return self.folder / "log"

    @property
    def pid(self) -> int:
        """Of the engine itself, for signals."""
        for pid in _children(_children(self.leader)[0]):
            if Path(f"/proc/{pid}/comm").read_text().strip() == self.program:
                return pid
        raise RuntimeError(f"{self.program} has ended: {self.log.read_text()[-2000:]}")

    def start(self) -> subprocess.Popen[bytes]:
        """Start it in namespaces of its own, with which everything of it ends; wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        namespaces = ["--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "--mount-proc"]
        enter = ["unshare", "--net"] if self.netns is None else ["nsenter", f"--net={self.netns}", "unshare"]
        # The shell is the namespace's first process, reaps what the engine leaves, and starts it again as systemd would.
        lines = ["ip link set lo up"]
        for path in self.private():
            own = self.folder / "private" / path.strip("/").replace("/", "-")
            lines.append(f"mkdir -p {path} {own} && mount --bind {own} {path}")
        script = "\n".join([*lines, 'while :; do "$@"; sleep 0.2; done'])
        argv = [
            "setpriv",
            "--pdeathsig=KILL",
            *enter,
            *namespaces,
            "--",
            "sh",
            "-c",
            script,
            "sh",
            *self.argv(),
        ]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, **self.env()},
            )
        self.leader = process.pid
        try:
            self.await_answer()
        except RuntimeError:
            process.kill()
            process.wait()
            raise
        return process

    def await_answer(self) -> None:
        """Wait until it answers. Raises RuntimeError with its last words."""
        client = self.api()
        try:
            end = time.monotonic() + READY
            while not _answers(client):
                if time.monotonic() > end:
                    raise RuntimeError(f"{self.program} does not answer: {self.log.read_text()[-2000:]}")
                time.sleep(0.05)
        finally:
            client.close()

    def kill(self) -> None:
        """SIGKILL it, and wait until it is there again."""
        before = self.pid
        os.kill(before, signal.SIGKILL)
        end = time.monotonic() + READY
        while Path(f"/proc/{before}").exists():
            if time.monotonic() > end:
                raise RuntimeError(f"{self.program} outlives SIGKILL")
            time.sleep(0.02)
        self.await_answer()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start it; ends it and everything in it, also after failure and if this process is killed."""
        process = self.start()
        try:
            yield
        finally:
            for name in self.runs:  # under v1 what is frozen does not even die with its namespace
                RunCgroup(name).release()
            process.kill()
            process.wait()
            _forget_folder(self.folder)
            for name in self.runs:
                RunCgroup(name).remove()

    def network(self) -> contextlib.AbstractContextManager[None]:
        """Put this thread, and threads that it starts, into the engine's network: its loopback is then ours."""
        return entered(Path(f"/proc/{self.pid}/ns/net"))

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
        """A client for looking at it from outside the plugins: Docker's, whose questions Podman answers too."""
        import docker

        return docker.APIClient(base_url=f"unix://{self.socket}", version=API, timeout=60)


@contextlib.contextmanager
def entered(netns: Path) -> Iterator[None]:
    """Put this thread, and threads that it starts, into a network namespace."""
    with Path("/proc/thread-self/ns/net").open("rb") as home:
        with netns.open("rb") as there:
            _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


@contextlib.asynccontextmanager
async def opened(
    engine: AtHand, folder: Path, *, device: str = "0" * 20, **settings: Any
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
    engine: AtHand, folder: Path, *, device: str = "0" * 20, **settings: Any
) -> AsyncIterator[RememberingRuntime]:
    """A runtime beside another one, as after a restart of the agent."""
    config = engine.config(**settings)
    # Tests of one machine may run side by side: no two folders share the name of a run.
    device = f"{device}-{folder}"
    async with real_context(folder, device=device) as context, engine.engine(config) as connection:
        runtime = RememberingRuntime(context, config, connection, engine.runs)
        runtime.unpause_all()
        try:
            yield runtime
        finally:
            await runtime.close()


class RememberingRuntime(ContainerRuntime):
    """Knows each run that it was asked about, so that a test can clear up after a failure too."""

    def __init__(self, context: Context, config: EngineConfig, engine: Engine, cgroups: set[str]) -> None:
        super().__init__(context, config, engine)
        self.named: set[str] = set()
        self._cgroups = cgroups

    def _cgroup(self, key: str) -> RunCgroup:
        found = super()._cgroup(key)
        self.named.add(key)
        self._cgroups.add(found.name)
        return found


def _answers(client: docker.APIClient) -> bool:
    import docker.errors

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
