"""The `sqlite` coordination backend: one ordered log per group in one file, shared by the agents of one machine.

A log's address is `sqlite#<token>`; which file it is in, each device's configuration says. Whoever can open the file can
read and write every log in it: entries are signed and sealed before they come here, so the file is as trusted as any
other log server, which is not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from fractal.api.context import Context
from fractal.api.coordination import Page, Signal
from fractal.api.errors import BackendError, Misconfigured
from fractal.builtin.log_limits import check_entry, check_limit, check_name, check_signal, group_of
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.builtin.sqlite_file import BusyError, LogFile

T = TypeVar("T")

LOOK, LOOK_QUIET = 0.05, 0.2
"""Seconds between looks at the file's time stamps while a long poll waits, and where nothing was appended for `QUIET`."""
QUIET = 5.0
LOOK_INSIDE = 0.5
"""Seconds after which a waiting poll queries the file although no stamp changed: two commits within one tick of the
file system's clock may leave the same stamp."""


@asynccontextmanager
async def open_sqlite(context: Context, config: SqliteConfig) -> AsyncIterator[SqliteCoordinator]:
    """Open or create the file. Raises Misconfigured, BackendError."""
    path = Path(config.path) if config.path else context.state_dir / "log.sqlite"
    if not path.is_absolute():
        raise Misconfigured("path", f"{config.path!r} is not absolute")
    if not 0 < config.timeout <= 60:
        raise Misconfigured("timeout", f"{config.timeout} is not between 0 and 60 seconds")
    file = LogFile(path)
    try:
        await _patiently(context, config.timeout, file.open)
        yield SqliteCoordinator(context, config, file)
    finally:
        file.close()  # here and not on a worker, so that cancellation cannot skip it


class SqliteCoordinator:
    """A `Coordinator` on a `LogFile`."""

    def __init__(self, context: Context, config: SqliteConfig, file: LogFile) -> None:
        self._context = context
        self._timeout = config.timeout
        self._file = file
        self._heard: dict[str, int] = {}
        self._moved: dict[str, float] = {}
        """When an entry of a log was last read or written here."""

    @property
    def staleness(self) -> float:
        """Every read sees every acknowledged append."""
        return 0.0

    async def create(self, group: str, name: str) -> str:  # noqa: ARG002 - names are not for the log's eyes
        """Make a log. Its name is not stored: nothing in the file says what a group is called."""
        await self._run(self._file.create, check_name("group token", group))
        return f"sqlite#{group}"

    async def join(self, address: str) -> str:
        """Look whether the log is in our file; there is nothing else to do."""
        await self._run(self._file.require, group_of(address, "sqlite"))
        return address

    async def leave(self, address: str) -> None:
        """Forget this device's signals."""
        await self._run(self._file.forget, group_of(address, "sqlite"), self._context.device)

    async def append(self, address: str, token: str, entry: bytes) -> None:
        """Append, durable when this returns."""
        group = group_of(address, "sqlite")
        self._moved[group] = self._context.clock.boottime()
        await self._run(self._file.append, group, check_name("token", token), check_entry(entry))

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        """Read; with `wait`, look at the file's stamps until something was committed or the time is over."""
        group = group_of(address, "sqlite")
        clock = self._context.clock
        end = clock.boottime() + wait
        check_limit(limit)
        before: tuple[int, ...] = ()
        while True:
            mark, looked = self._file.mark(), clock.boottime()
            page = await self._run(self._file.read, group, after, limit)
            if page.entries:
                self._moved[group] = clock.boottime()
            if page.entries or clock.boottime() >= end:
                return page
            # A stamp that was there a whole `LOOK_INSIDE` before this query is none that a later commit could still leave.
            until = end if mark == before else min(end, looked + LOOK_INSIDE)
            before = mark
            pause = LOOK if looked - self._moved.setdefault(group, looked) < QUIET else LOOK_QUIET
            while (now := clock.boottime()) < until and self._file.mark() == mark:
                await clock.sleep(min(pause, until - now))

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        """Keep the payload as this device's last broadcast, or as one more message to `to`."""
        group = group_of(address, "sqlite")
        to = to if to is None else check_name("device", to)
        await self._run(self._file.signal, group, self._context.device, check_signal(payload), to)

    async def signals(self, address: str) -> Sequence[Signal]:
        """New broadcasts of others, and messages to this device."""
        group = group_of(address, "sqlite")
        found, seen = await self._run(
            self._file.signals, group, self._context.device, self._heard.get(group, 0)
        )
        self._heard[group] = max(seen, self._heard.get(group, 0))
        return found

    async def invite(self, address: str, member: str) -> str:  # noqa: ARG002 - the address is enough
        """Nothing but a look: the address is enough to join."""
        await self._run(self._file.require, group_of(address, "sqlite"))
        return address

    async def remove(self, address: str, member: str) -> None:
        """Forget a device's signals. A file cannot keep a process out that may open it; the sealed log does."""
        await self._run(self._file.forget, group_of(address, "sqlite"), check_name("device", member))

    async def _run(self, function: Callable[..., T], /, *arguments: object) -> T:
        return await _patiently(self._context, self._timeout, function, *arguments)


async def _patiently(
    context: Context, timeout: float, function: Callable[..., T], /, *arguments: object
) -> T:
    """Run on a worker; while another process holds the file, try again until the time-out, cancellable in between."""
    end = context.clock.boottime() + timeout
    while True:
        try:
            return await context.workers.run(function, *arguments)
        except BusyError as error:
            if context.clock.boottime() >= end:
                raise BackendError(
                    f"{error}: another process held the file for {timeout:g} s", retryable=True
                ) from error
        await context.clock.sleep(context.entropy.uniform(0.005, 0.05))
