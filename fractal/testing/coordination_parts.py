"""The town that the coordination suite plays in: one log, three devices."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from fractal.api.coordination import Coordinator, Page
from fractal.shell.entropy import SystemEntropy

ATTIC, KITCHEN, SHED = "a" * 20, "b" * 20, "c" * 20


@dataclass(frozen=True, slots=True)
class LogBed:
    """Where the backend under test runs."""

    open: Callable[[str], AbstractAsyncContextManager[Coordinator]]
    """Opens the coordinator of the device with that id (20 hex digits)."""
    patience: float = 20.0
    """Seconds after which something that does not happen counts as never happening."""
    address_kind: str = ""
    """A sound address of a log that does not exist; empty: the suite alters one that does."""


@dataclass(slots=True)
class Town:
    """One log with three devices on it."""

    bed: LogBed
    stack: AsyncExitStack
    address: str
    attic: Coordinator
    kitchen: Coordinator
    shed: Coordinator

    async def read_all(
        self, log: Coordinator, *, expect: int = 0, limit: int = 500, after: str | None = None
    ) -> list[bytes]:
        """Everything after a cursor, page by page; waits out the backend's staleness for `expect` entries."""
        entries: list[bytes] = []
        async with asyncio.timeout(self.bed.patience + log.staleness):
            while True:
                page = await log.read(self.address, after, limit=limit)
                check_page(page, limit)
                entries += page.entries
                after = page.cursor
                if page.head and (len(entries) >= expect or not log.staleness):
                    return entries
                # A backend that never suspends must not keep the time-out from coming.
                await asyncio.sleep(0.05 if page.head else 0)

    async def let_in(self, log: Coordinator, *, to: str = "") -> None:
        """Have the attic invite a device, which joins."""
        address = to or self.address
        assert await log.join(await self.attic.invite(address, "")) == address

    async def restarted(self, device: str) -> Coordinator:
        """The coordinator of that device as its agent finds it after a restart."""
        return await self.stack.enter_async_context(self.bed.open(device))


def check_page(page: Page, limit: int) -> None:
    assert isinstance(page.entries, tuple)
    assert all(isinstance(entry, bytes) for entry in page.entries)
    assert isinstance(page.cursor, str)
    assert len(page.entries) <= limit


_counter = itertools.count()


def new_group() -> str:
    """A token for a new group, unlike any other of this run or of another one against the same server."""
    return f"suite-{next(_counter)}-{SystemEntropy().bytes(8).hex()}"


def altered(address: str) -> str:
    """Another address of the same form."""
    at = next(i for i in reversed(range(len(address))) if address[i].isalnum())
    return address[:at] + ("0" if address[at] != "0" else "1") + address[at + 1 :]
