"""The `memory` coordination backend: logs that live in one process, for tests and simulation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fractal.api.context import Context
from fractal.api.coordination import Page, Signal
from fractal.api.errors import InvalidInput, NotFound
from fractal.builtin.log_limits import check_entry, check_limit, check_name, check_signal, group_of
from fractal.builtin.memory_log_config import MemoryLogConfig

KEPT_MESSAGES = 256
"""Signals addressed to one device that are kept for it."""


@dataclass(slots=True)
class _Log:
    entries: list[bytes] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    """Set and replaced at every append."""
    last: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Sender -> number and payload of its last broadcast."""
    messages: dict[str, deque[Signal]] = field(default_factory=dict)
    signalled: int = 0


class MemoryHub:
    """What the coordinators of one test share. Belongs to one event loop."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}

    def create(self, group: str) -> None:
        """Make an empty log; nothing if it exists."""
        self._logs.setdefault(group, _Log())

    def log(self, address: str) -> _Log:
        """The log of an address. Raises InvalidInput, NotFound."""
        group = group_of(address, "memory")
        log = self._logs.get(group)
        if log is None:
            raise NotFound(f"memory log has no group {group}: was it created with another hub?")
        return log


@asynccontextmanager
async def open_memory_log(context: Context, config: MemoryLogConfig) -> AsyncIterator[MemoryCoordinator]:
    """A coordinator on the configured hub, or on one of its own."""
    yield MemoryCoordinator(context, config.hub or MemoryHub())


class MemoryCoordinator:
    """A `Coordinator` on a `MemoryHub`."""

    def __init__(self, context: Context, hub: MemoryHub) -> None:
        self._context = context
        self._hub = hub
        self._heard: dict[str, int] = {}

    @property
    def staleness(self) -> float:
        """Every read sees every append."""
        return 0.0

    async def create(self, group: str, name: str) -> str:  # noqa: ARG002 - names are not for the log's eyes
        """Make a log."""
        self._hub.create(check_name("group token", group))
        return f"memory#{group}"

    async def join(self, address: str) -> str:
        """Look whether the log is in the hub."""
        self._hub.log(address)
        return address

    async def leave(self, address: str) -> None:
        """Forget this device's signals."""
        await self.remove(address, self._context.device)

    async def append(self, address: str, token: str, entry: bytes) -> None:
        """Append and wake those who wait."""
        log = self._hub.log(address)
        check_entry(entry)
        if check_name("token", token) in log.tokens:
            return
        log.tokens.add(token)
        log.entries.append(bytes(entry))
        log.grown.set()
        log.grown = asyncio.Event()

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        """Read, after waiting up to `wait` seconds for something new."""
        log = self._hub.log(address)
        check_limit(limit)
        start = _position(after, len(log.entries))
        if start == len(log.entries) and wait > 0:
            await self._wait(log.grown, wait)
        entries = tuple(log.entries[start : start + limit])
        end = start + len(entries)
        return Page(entries, str(end), head=end == len(log.entries))

    async def _wait(self, grown: asyncio.Event, seconds: float) -> None:
        waiters = [
            asyncio.ensure_future(grown.wait()),
            asyncio.ensure_future(self._context.clock.sleep(seconds)),
        ]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
            await asyncio.wait(waiters)

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        """Keep the payload as this device's last broadcast, or as one more message to `to`."""
        log = self._hub.log(address)
        check_signal(payload)
        sender = self._context.device
        if to is None:
            log.signalled += 1
            log.last[sender] = (log.signalled, bytes(payload))
        else:
            kept = log.messages.setdefault(check_name("device", to), deque(maxlen=KEPT_MESSAGES))
            kept.append(Signal(sender, bytes(payload)))

    async def signals(self, address: str) -> Sequence[Signal]:
        """New broadcasts of others, and messages to this device."""
        log = self._hub.log(address)
        heard = self._heard.get(address, 0)
        self._heard[address] = log.signalled
        new = sorted(
            (number, sender, payload) for sender, (number, payload) in log.last.items() if number > heard
        )
        found = [Signal(sender, payload) for _, sender, payload in new if sender != self._context.device]
        return [*found, *log.messages.pop(self._context.device, ())]

    async def invite(self, address: str, member: str) -> str:  # noqa: ARG002 - the address is enough
        """Nothing but a look: the address is enough to join."""
        self._hub.log(address)
        return address

    async def remove(self, address: str, member: str) -> None:
        """Forget a device's signals; there is no access to take away."""
        log = self._hub.log(address)
        log.last.pop(member, None)
        log.messages.pop(member, None)


def _position(cursor: str | None, length: int) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19) or int(cursor) > length:
        raise InvalidInput(f"{cursor[:40]!r} is not a cursor of this log")
    return int(cursor)
