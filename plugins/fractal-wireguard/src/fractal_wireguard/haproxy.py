"""HAProxy as our child: started with a configuration that never changes, told everything else by its runtime socket.

The format of `show sess all` is not promised; what is read of it is the same from version 2.4 to 3.0, and a test would see a change.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import resource
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError
from fractal_wireguard.daemon import Daemon, kill_orphans

_ANSWER_LIMIT = 10.0
_PATH_LIMIT = 90
"""Bytes; the kernel allows 107, and HAProxy appends something while it starts. So names are short."""
_RUNTIME_SOCKET, _ROOT = "s", "r"
_SESSION = re.compile(r"^(0x[0-9a-f]+): .* source=(\S+)$")
_FRONTEND = re.compile(r"^  frontend=(\S+) .* addr=(\S+)$")
_SERVER = re.compile(r"^  server=\S+ .* addr=(\S+)$")
_SERVER_SIDE = re.compile(r"^  scb=\S+ .* state=(\w+)")


@dataclass(frozen=True, slots=True)
class Session:
    """One connection that passes through."""

    id: str
    frontend: str
    source: str
    """Who connected: address and port."""
    came_to: str
    """At which of our addresses."""
    leads_to: str
    """Address of the server; what it was while there is none yet."""
    established: bool
    """Whether the server's side stands. If not, it is being tried, again and again."""


class Haproxy:
    """One process."""

    def __init__(self, context: Context, folder: Path, started: Callable[[], Awaitable[None]]) -> None:
        self._context = context
        self._file = folder / "haproxy.cfg"
        self._socket = folder / _RUNTIME_SOCKET
        self._started = started
        self._daemon: Daemon | None = None

    async def open(self, settings: str) -> None:
        """Start it. Raises BackendError with HAProxy's words, such as a port that is in use."""
        if len(os.fsencode(self._socket)) + 2 > _PATH_LIMIT:
            raise BackendError(
                f"transport wireguard: {self._socket} is too long for a socket: choose a runtime folder of fewer characters"
            )
        kill_orphans("haproxy", str(self._file))
        self._file.write_text(settings)
        argv = ["haproxy", "-db", "-f", str(self._file)]
        self._daemon = Daemon(self._context, argv, ready=self._ready, started=self._started)
        await self._daemon.open()

    async def close(self) -> None:
        """End it, with all connections."""
        if self._daemon is not None:
            await self._daemon.close()

    @property
    def up(self) -> bool:
        """Whether it runs and knows what it has to."""
        return self._daemon is not None and self._daemon.up

    async def command(self, text: str) -> str:
        """What it answers to one command. Raises BackendError if it does not."""
        try:
            async with asyncio.timeout(_ANSWER_LIMIT):
                reader, writer = await asyncio.open_unix_connection(self._socket, limit=1 << 20)
                try:
                    writer.write(text.encode() + b"\n")
                    await writer.drain()
                    return (await reader.read(-1)).decode("utf-8", "replace").strip()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise BackendError(
                f"transport wireguard: haproxy does not answer: {str(error) or 'time-out'}", retryable=True
            ) from error

    async def tell(self, commands: Iterable[str]) -> None:
        """Commands that answer nothing when they succeed. Raises BackendError with the first answer."""
        for command in commands:
            if answer := await self.command(command):
                raise BackendError(f"transport wireguard: haproxy: {answer[:500]}")

    async def replace_map(self, file: Path, lines: Iterable[str]) -> None:
        """The whole map at once: nobody sees a part of it."""
        version = re.search(r"New version created: ([0-9]+)", await self.command(f"prepare map {file}"))
        if version is None:
            raise BackendError(f"transport wireguard: haproxy does not know the map {file}")
        await self.tell(f"add map @{version[1]} {file} {line}" for line in lines)
        await self.tell([f"commit map @{version[1]} {file}"])

    async def sessions(self) -> list[Session]:
        """Those that pass through now."""
        return parse_sessions(await self.command("show sess all"))

    async def shut(self, sessions: Sequence[Session]) -> None:
        """End these. One that ended by itself in the meantime is no problem."""
        for session in sessions:
            await self.command(f"shutdown session {session.id}")

    async def _ready(self) -> None:
        await self.command("show info")


def parse_sessions(text: str) -> list[Session]:
    """Sessions of an answer to `show sess all`."""
    found: list[Session] = []
    for block in re.split(r"^(?=0x[0-9a-f]+: )", text, flags=re.MULTILINE):
        lines = block.splitlines()
        first = _SESSION.match(lines[0]) if lines else None
        frontend, server, side = (_first(pattern, lines) for pattern in (_FRONTEND, _SERVER, _SERVER_SIDE))
        if first is None or frontend is None:
            continue
        found.append(
            Session(
                id=first[1],
                source=first[2],
                frontend=frontend[1],
                came_to=_host(frontend[2]),
                leads_to=_host(server[1]) if server else "",
                established=side is not None and side[1] == "EST",
            )
        )
    return found


def _first(pattern: re.Pattern[str], lines: Iterable[str]) -> re.Match[str] | None:
    return next((match for line in lines if (match := pattern.match(line))), None)


def _host(address: str) -> str:
    return address.rpartition(":")[0] or address


def common_settings(folder: Path, connections: int) -> str:
    """The section `global`, without more rights than needed once the ports are bound."""
    root = folder / _ROOT
    root.mkdir(mode=0o755, exist_ok=True)
    root.chmod(0o755)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Four sockets for each connection at most (entry, its way to the front, the front, the app), and some of its own.
    most = connections if hard == resource.RLIM_INFINITY else max(10, min(connections, (hard - 200) // 4))
    lines = [
        "global",
        f"  stats socket {folder / _RUNTIME_SOCKET} mode 600 level admin",
        f"  maxconn {2 * most}",
        "  tune.bufsize 32768",
        "  ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
    ]
    if os.geteuid() == 0:
        user = _unprivileged()
        lines += [f"  chroot {root}", f"  uid {user.pw_uid}", f"  gid {user.pw_gid}"]
    return "\n".join(lines) + "\n"


def _unprivileged() -> pwd.struct_passwd:
    for name in ("haproxy", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise BackendError(
        "transport wireguard: there is neither a user haproxy nor a user nobody to run HAProxy as"
    )


def front_socket(folder: Path) -> tuple[Path, str, str]:
    """Where the front listens, as its process connects to it, and the options that let it."""
    path = folder / _ROOT / "s"
    if os.geteuid() == 0:
        return path, "/s", f"uid {_unprivileged().pw_uid} mode 600"
    return path, str(path), "mode 600"
