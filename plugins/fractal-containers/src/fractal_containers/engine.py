"""An engine, as the runtime needs it: a dozen requests in plain values, bounded in time, errors told as ours.

What an engine's own SDK does is abstract here. Output, commands and images go as streams over an interface that Docker
and Podman have in common (Docker Engine API), read by asyncio itself, see `streams`.

Requests of an SDK run in threads of our own and not in the agent's workers: a hung engine must not hold up anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

from fractal.api.app import Command
from fractal.api.building import ImageBuild
from fractal.api.errors import BackendError, Misconfigured
from fractal_containers.advice import advised
from fractal_containers.config import EngineConfig
from fractal_containers.found import Container, Image, Network
from fractal_containers.streams import CHUNK, Wire, frames
from fractal_containers.wanted import Filling, Wanted

T = TypeVar("T")
THREADS = 12


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    exit_code: int | None
    output: bytes


class Engine(ABC):
    """Requests to one engine. `what` names the object in errors: `group.app.3: service web`.

    Every request raises NotFound, Conflict and BackendError (retryable if the engine did not answer). A cancellation goes
    on at once; the engine may carry out what was sent all the same.
    """

    name: str
    """`docker` or `podman`."""
    package: str
    """Debian's package that brings it."""
    oldest: str
    """The oldest version that is supported, as people call it."""
    version: str
    """Version of the Docker Engine API that its streams are asked for by."""
    repeats_checks: bool
    """Whether it runs health commands by itself. Otherwise the runtime does."""

    def __init__(self, config: EngineConfig) -> None:
        if not Path(config.socket).is_absolute():
            raise Misconfigured("socket", f"{config.socket!r} is not the absolute path of a Unix socket")
        self.socket = Path(config.socket)
        self.timeout = config.timeout
        self.pull_timeout = config.pull_timeout
        self.wire = Wire(self.socket, self.name, self.version, self.oldest)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=self.name)
        self._trusted = False

    async def __aenter__(self) -> Self:
        """The engine need not run yet, nor answer."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Take no further requests. One that the engine has not answered ends by its time-out."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._close()

    # -- for each engine: how it is asked

    @abstractmethod
    def _close(self) -> None:
        """Close the SDK's connections."""

    @abstractmethod
    def _translated(self, error: Exception, where: str) -> BackendError | None:
        """One of the SDK's errors as ours; None if it is none of the SDK's."""

    @abstractmethod
    def _distrusted(self) -> str:
        """Why the engine cannot be used, and what to do, or "". Asked once, in a thread, as soon as it answers."""

    async def ask(self, what: str, function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        """Run `function`, of the SDK, in a thread."""
        if not self._trusted:
            if reason := await self._run("info", self._distrusted):
                raise Misconfigured("socket", f"{self.name} at {self.socket}: {reason}")
            self._trusted = True
        return await self._run(what, function, *arguments, **options)

    async def _run(self, what: str, function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        loop = asyncio.get_running_loop()
        with self._errors(what):
            async with asyncio.timeout(self.timeout + 5.0):
                return await loop.run_in_executor(self._threads, lambda: function(*arguments, **options))

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        where = f"{self.name} at {self.socket}: {what}"
        try:
            yield
        except TimeoutError as error:
            raise BackendError(f"{where}: no answer in time; is the engine hung?", retryable=True) from error
        except BackendError:
            raise
        except Exception as error:
            found = self._translated(error, where)
            if found is None:
                raise
            message = advised(str(found), self.name, self.oldest)
            raise type(found)(message, retryable=found.retryable) from error

    @abstractmethod
    async def about(self) -> str:
        """Its name and version."""

    # -- for each engine: containers

    @abstractmethod
    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """Those that have all these labels, running or not."""

    @abstractmethod
    async def inspect(self, identity: str) -> Container:
        """One container."""

    @abstractmethod
    async def create(self, wanted: Wanted, what: str) -> str:
        """Make a container; its identity."""

    @abstractmethod
    async def start(self, identity: str, what: str) -> None:
        """Start it. It may run before this returns."""

    @abstractmethod
    async def signal(self, identity: str, signal: str, what: str) -> None:
        """Send its first process a signal."""

    @abstractmethod
    async def remove(self, identity: str, what: str) -> None:
        """Remove it, running or not, and what is its alone."""

    # -- for each engine: networks, volumes, images

    @abstractmethod
    async def networks(self, labels: Mapping[str, str]) -> list[Network]:
        """Those that have all these labels."""

    @abstractmethod
    async def create_network(self, network: Network, what: str) -> None:
        """Make a bridge network whose members find each other by name. Conflict if there is one of that name."""

    @abstractmethod
    async def remove_network(self, name: str, what: str) -> None:
        """Remove it."""

    @abstractmethod
    async def volumes(self, labels: Mapping[str, str]) -> list[str]:
        """Names of those that have all these labels."""

    @abstractmethod
    async def create_volume(
        self, name: str, options: Mapping[str, str], labels: Mapping[str, str], what: str
    ) -> None:
        """Make a volume of the `local` driver, by the options that it takes (`type`, `device`, `o`). One of that name stays."""

    @abstractmethod
    async def remove_volume(self, name: str, what: str) -> None:
        """Remove it."""

    @abstractmethod
    async def fill(self, filling: Filling, what: str) -> Path:
        """Make a volume of the engine's, holding what an image has at a place; its folder on this device.

        A container of the same name that never runs may be made for it.
        """

    @abstractmethod
    async def drop(self, name: str, what: str) -> None:
        """Remove what `fill` made. Nothing to do if there is none."""

    @abstractmethod
    async def image(self, name: str) -> Image:
        """A local image."""

    @abstractmethod
    async def tag(self, image: str, name: str) -> None:
        """Give an image a name."""

    def reference(self, name: str) -> str:
        """An image's name as this engine must be given it to mean what Compose means."""
        return name

    # -- alike for all: streams

    async def logs(
        self, identity: str, what: str, *, tail: int, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """Output, both kinds; `tail` lines of it (0: all that is kept), then live if `follow`."""
        query = f"stdout=1&stderr=1&follow={int(follow)}&tail={tail or 'all'}"
        async with self.wire.request(what, "GET", f"/containers/{identity}/logs?{query}") as (reader, _):
            async for chunk in frames(reader):
                yield chunk

    async def command(self, identity: str, command: Command, stdin: bytes, limit: int, what: str) -> Ended:
        """Run a command in a container that runs; the first `limit` bytes of its output. Ours to end if it is cancelled."""
        wanted = {
            "Cmd": list(command.argv),
            "Env": [f"{name}={value}" for name, value in command.env.items()],
            "User": command.user,
            "WorkingDir": command.working_dir,
            "AttachStdin": bool(stdin),
            "AttachStdout": True,
            "AttachStderr": True,
        }
        made = await self.wire.answer(what, "POST", f"/containers/{identity}/exec", wanted)
        output = await self._converse(str(made["Id"]), stdin, limit, what)
        found = await self.wire.answer(what, "GET", f"/exec/{made['Id']}/json")
        return Ended(found.get("ExitCode"), output)

    async def _converse(self, command: str, stdin: bytes, limit: int, what: str) -> bytes:
        body = json.dumps({"Detach": False, "Tty": False}).encode()
        kept = bytearray()
        path = f"/exec/{command}/start"
        async with self.wire.request(what, "POST", path, body=body, hijack=True) as (reader, writer):
            giving = asyncio.create_task(_give(writer, stdin)) if stdin else None
            try:
                async for chunk in frames(reader):
                    kept += chunk[: limit - len(kept)]
            finally:
                if giving is not None:
                    giving.cancel()
                    await asyncio.wait([giving])
        return bytes(kept)

    async def pull(self, name: str, platform: str = "") -> None:
        """Bring an image from its registry; for this machine unless `platform` (`linux/arm64`) says otherwise."""
        repository, tag = split(self.reference(name))
        path = f"/images/create?fromImage={quote(repository, safe='')}&tag={quote(tag, safe='')}"
        if platform:
            path += f"&platform={quote(platform, safe='')}"
        await self.wire.told(f"pulling {name}", path, None, self.pull_timeout)

    async def save(self, digest: str, what: str) -> AsyncIterator[bytes]:
        """A local image as a docker archive, without its names: loading it moves no tag of anybody else's."""
        path = f"/images/{digest}/get"
        async with self.wire.request(what, "GET", path, patience=self.pull_timeout) as (reader, _):
            while True:
                # For the engine alone: whoever takes the chunks may be slow.
                async with asyncio.timeout(self.pull_timeout):
                    chunk = await reader.read(CHUNK)
                if not chunk:
                    return
                yield chunk

    async def load(self, chunks: AsyncIterator[bytes], what: str) -> str:
        """Load an archive; what the engine said."""
        return await self.wire.told(what, "/images/load?quiet=1", chunks, self.pull_timeout)

    def build(
        self, build: ImageBuild, size: int, context: AsyncIterator[bytes], what: str
    ) -> AsyncGenerator[dict[str, object], None]:
        """Build an image of a tar archive of `size` bytes; the engine's messages."""
        asked: dict[str, Any] = {
            "dockerfile": build.file,
            "buildargs": json.dumps(dict(build.args)),
            "labels": json.dumps(dict(build.labels)),
            "extrahosts": json.dumps([f"{name}:{address}" for name, address in build.hosts.items()]),
            "target": build.target,
            "networkmode": build.network,
            "platform": build.platform,
            "shmsize": build.shm_size or "",
            "nocache": int(build.fresh) or "",
            "pull": int(build.pull) or "",
            "rm": 1,
            "forcerm": 1,
        }
        query = urlencode({name: value for name, value in asked.items() if value not in ("", "{}", "[]")})
        return self.wire.progress(what, f"/build?{query}", context, self.pull_timeout, size=size)


async def _give(writer: asyncio.StreamWriter, stdin: bytes) -> None:
    try:
        writer.write(stdin)
        await writer.drain()
        writer.write_eof()
    except ConnectionError:
        return  # the command ended without reading all of it


def split(name: str) -> tuple[str, str]:
    """Repository, and tag or digest, of an image's name."""
    repository, at, digest = name.partition("@")
    head, slash, last = repository.rpartition("/")
    last, _, tag = last.partition(":")
    return head + slash + last, digest if at else tag or "latest"
