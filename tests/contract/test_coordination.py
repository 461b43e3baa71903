"""The coordination builtins against the contract, and the contract against backends that break it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fractal.api.context import Context
from fractal.api.coordination import Coordinator, Page, Signal
from fractal.api.errors import InvalidInput, NotFound
from fractal.builtin.memory_log import MemoryCoordinator, MemoryHub, open_memory_log
from fractal.builtin.memory_log_config import MemoryLogConfig
from fractal.builtin.sqlite import open_sqlite
from fractal.builtin.sqlite_config import SqliteConfig
from fractal.testing.context import real_context
from fractal.testing.coordination import CoordinationContract
from fractal.testing.coordination_parts import LogBed
from fractal.testing.suite import broken, failures, run_suites


def sqlite_bed(folder: Path) -> LogBed:
    @asynccontextmanager
    async def open_device(device: str) -> AsyncIterator[Coordinator]:
        config = SqliteConfig(path=str(folder / "log.sqlite"))
        async with (
            real_context(folder / device, device=device) as context,
            open_sqlite(context, config) as log,
        ):
            yield log

    return LogBed(open_device)


def memory_bed(folder: Path) -> LogBed:
    hub = MemoryHub()

    @asynccontextmanager
    async def open_device(device: str) -> AsyncIterator[Coordinator]:
        async with (
            real_context(folder / device, device=device) as context,
            open_memory_log(context, MemoryLogConfig(hub=hub)) as log,
        ):
            yield log

    return LogBed(open_device)


class TestSqlite(CoordinationContract):
    """The real thing on one file."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> LogBed:
        return sqlite_bed(tmp_path)


class TestMemory(CoordinationContract):
    """For tests and simulation, so it must behave like the others."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> LogBed:
        return memory_bed(tmp_path)


# --- backends that each break one rule -------------------------------------------------------------------------------


class Sound(MemoryCoordinator):
    """Breaks nothing: what the others are made of must pass."""


class RepeatsOnRetry(MemoryCoordinator):
    """Forgets tokens."""

    async def append(self, address: str, token: str, entry: bytes) -> None:
        self._hub.log(address).tokens.clear()
        await super().append(address, token, entry)


class RemembersTokensUntilRestart(MemoryCoordinator):
    """Keeps tokens in the coordinator only."""

    def __init__(self, context: Context, hub: MemoryHub) -> None:
        super().__init__(context, hub)
        self._mine: set[str] = set()

    async def append(self, address: str, token: str, entry: bytes) -> None:
        log = self._hub.log(address)
        if token not in self._mine:
            self._mine.add(token)
            log.tokens.discard(token)
            await super().append(address, token, entry)


class ComparesBytes(MemoryCoordinator):
    """Takes equal entries for repeated ones (a Matrix state event does)."""

    async def append(self, address: str, token: str, entry: bytes) -> None:
        if entry not in self._hub.log(address).entries:
            await super().append(address, token, entry)


class SkipsBetweenPages(MemoryCoordinator):
    """Loses an entry whenever a page was full (a limited timeline that nobody fills)."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=limit, wait=wait)
        return page if page.head else Page(page.entries, str(int(page.cursor) + 1), page.head)


class CapsPages(MemoryCoordinator):
    """Reads at most 100 entries and calls that the head."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=min(limit, 100), wait=wait)
        return Page(page.entries, page.cursor, head=page.head or len(page.entries) == 100)


class RepeatsLastEntry(MemoryCoordinator):
    """Its cursors are inclusive."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=limit, wait=wait)
        cursor = str(max(0, int(page.cursor) - 1)) if page.entries and not page.head else page.cursor
        return Page(page.entries, cursor, page.head)


class OwnEntriesFirst(MemoryCoordinator):
    """Shows each device its own entries before those of others (two federated servers)."""

    async def append(self, address: str, token: str, entry: bytes) -> None:
        await super().append(address, token, entry)
        owners = self._hub.__dict__.setdefault("owners", {})
        owners.setdefault(entry, self._context.device)

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=limit, wait=wait)
        owners = self._hub.__dict__.get("owners", {})
        mine = sorted(page.entries, key=lambda entry: owners.get(entry) != self._context.device)
        return Page(tuple(mine), page.cursor, page.head)


class NewestFirst(MemoryCoordinator):
    """Pages backwards."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=limit, wait=wait)
        return Page(page.entries[::-1], page.cursor, page.head)


class NeverWaits(MemoryCoordinator):
    """Takes `wait` for a suggestion."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        return await super().read(address, after, limit=limit)


class SleepsThroughNews(MemoryCoordinator):
    """Waits its whole time, whatever happens."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        await self._context.clock.sleep(wait)
        return await super().read(address, after, limit=limit)


class AlwaysAtHead(MemoryCoordinator):
    """Says `head` to be polite."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=limit, wait=wait)
        return Page(page.entries, page.cursor, head=True)


class NeverAtHead(MemoryCoordinator):
    """Is never sure."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=limit, wait=wait)
        return Page(page.entries, page.cursor, head=False)


class IgnoresLimit(MemoryCoordinator):
    """Returns what it likes."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        return await super().read(address, after, wait=wait)


class ReadsFromReplica(MemoryCoordinator):
    """Acknowledges before others can see it, and declares no staleness."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        page = await super().read(address, after, limit=limit, wait=wait)
        replica = self._hub.__dict__.setdefault("replica", {})
        known = replica.get((self._context.device, address), 0)
        replica[self._context.device, address] = len(self._hub.log(address).entries)
        start = int(after or 0)
        seen = page.entries[: max(0, known - start)]
        return Page(seen, str(start + len(seen)), page.head)


class LosesHighBytes(MemoryCoordinator):
    """Sends entries as text."""

    async def append(self, address: str, token: str, entry: bytes) -> None:
        await super().append(address, token, entry.decode("utf-8", "replace").encode() or b"?")


class StripsWhite(MemoryCoordinator):
    """Keeps entries as lines."""

    async def append(self, address: str, token: str, entry: bytes) -> None:
        await super().append(address, token, entry.strip() or entry[:1])


class TakesAnySize(MemoryCoordinator):
    """Cuts what is too long, and fills what is empty."""

    async def append(self, address: str, token: str, entry: bytes) -> None:
        await super().append(address, token, entry[: 48 * 1024] or b"\0")


class CreatesAnew(MemoryCoordinator):
    """Makes another log each time it is asked."""

    async def create(self, group: str, name: str) -> str:
        made = self._hub.__dict__.setdefault("made", [])
        made.append(group)
        return await super().create(f"{group}.{len(made)}", name)


class EmptiesOnCreate(MemoryCoordinator):
    """Begins the log again."""

    async def create(self, group: str, name: str) -> str:
        self._hub._logs.pop(group, None)
        return await super().create(group, name)


class OneLogForAll(MemoryCoordinator):
    """Keeps every group in one log."""

    async def create(self, group: str, name: str) -> str:
        address = await super().create(group, name)
        first = next(iter(self._hub._logs.values()))
        self._hub._logs[group] = first
        return address


class JoinsAnything(MemoryCoordinator):
    """Makes the log that it is to join."""

    async def join(self, address: str) -> str:
        return await super().create(address.partition("#")[2] or "x", "")


class RaisesKeyError(MemoryCoordinator):
    """Lets its own exceptions out."""

    async def join(self, address: str) -> str:
        self._hub._logs[address.partition("#")[2]]
        return address


class DeletesOnLeave(MemoryCoordinator):
    """The last one out need not turn off the light."""

    async def leave(self, address: str) -> None:
        self._hub.log(address).entries.clear()


class LeavesOnce(MemoryCoordinator):
    """Does not like to be told twice."""

    async def leave(self, address: str) -> None:
        left = self._hub.__dict__.setdefault("left", set())
        if (address, self._context.device) in left:
            raise NotFound("not joined")
        left.add((address, self._context.device))


class CursorsOfThisRun(MemoryCoordinator):
    """Keeps what cursors mean in the coordinator."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        known: dict[str, str] = self.__dict__.setdefault("known", {})
        page = await super().read(address, known.get(after or ""), limit=limit, wait=wait)
        cursor = f"c{len(known)}"
        known[cursor] = page.cursor
        return Page(page.entries, cursor, page.head)


class ReadsOnlyOnce(MemoryCoordinator):
    """Moves a place of its own instead of the reader's cursor, before the reader has the page."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        places: dict[Any, str] = self._hub.__dict__.setdefault("places", {})
        key = (self._context.device, address)
        page = await super().read(address, places.get(key), limit=limit, wait=wait)
        places[key] = page.cursor
        return page


class BeginsAgain(MemoryCoordinator):
    """Reads from the beginning at a cursor that it does not know."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        try:
            return await super().read(address, after, limit=limit, wait=wait)
        except InvalidInput:
            return await super().read(address, None, limit=limit, wait=wait)


class OneCallAtATime(MemoryCoordinator):
    """Holds a lock while it waits."""

    def __init__(self, context: Context, hub: MemoryHub) -> None:
        super().__init__(context, hub)
        import asyncio

        self._lock = asyncio.Lock()

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        async with self._lock:
            return await super().read(address, after, limit=limit, wait=wait)

    async def append(self, address: str, token: str, entry: bytes) -> None:
        async with self._lock:
            await super().append(address, token, entry)


class ShieldsItsWait(MemoryCoordinator):
    """Cannot be cancelled."""

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        import asyncio

        try:
            return await super().read(address, after, limit=limit, wait=wait)
        except asyncio.CancelledError:
            return Page((), after or "0", head=True)


class ForgetsOnRestart(MemoryCoordinator):
    """Lives in its coordinators."""

    def __init__(self, context: Context, hub: MemoryHub) -> None:
        super().__init__(context, hub)
        opened = hub.__dict__.setdefault("opened", set())
        if context.device in opened and context.device.startswith("a"):
            for log in hub._logs.values():
                log.entries.clear()
                log.tokens.clear()
        opened.add(context.device)


class SignalsAreEntries(MemoryCoordinator):
    """Has only one channel."""

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        await super().signal(address, payload, to=to)
        self._hub.log(address).entries.append(payload)


class KeepsEverySignal(MemoryCoordinator):
    """Treats broadcasts as messages."""

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        for device in ("a" * 20, "b" * 20, "c" * 20):
            if device != self._context.device:
                await super().signal(address, payload, to=device)


class RepeatsSignals(MemoryCoordinator):
    """Returns the last broadcasts whenever it is asked."""

    async def signals(self, address: str) -> Sequence[Signal]:
        self._heard.clear()
        return await super().signals(address)


class DropsSignals(MemoryCoordinator):
    """Loses all of them."""

    async def signals(self, address: str) -> Sequence[Signal]:
        return ()


class ShoutsPrivateSignals(MemoryCoordinator):
    """Ignores `to`."""

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        await super().signal(address, payload)


class AnonymousSignals(MemoryCoordinator):
    """Does not say who."""

    async def signals(self, address: str) -> Sequence[Signal]:
        return [Signal("", signal.payload) for signal in await super().signals(address)]


class MixesSignalsOfLogs(MemoryCoordinator):
    """One mailbox for all groups."""

    async def signals(self, address: str) -> Sequence[Signal]:
        found: list[Signal] = []
        for group in self._hub._logs:
            found += await super().signals(f"memory#{group}")
        return found


BREAKS: dict[type[MemoryCoordinator], str] = {
    RepeatsOnRetry: "test_repeated_token_appends_nothing",
    RemembersTokensUntilRestart: "test_repeated_token_appends_nothing",
    ComparesBytes: "test_equal_bytes_with_other_tokens_are_other_entries",
    SkipsBetweenPages: "test_pages_lose_and_repeat_nothing",
    CapsPages: "test_long_log_is_read_whole",
    RepeatsLastEntry: "test_pages_lose_and_repeat_nothing",
    OwnEntriesFirst: "test_one_order_for_all",
    NewestFirst: "test_pages_lose_and_repeat_nothing",
    NeverWaits: "test_waiting_reader_is_woken",
    SleepsThroughNews: "test_waiting_reader_is_woken",
    AlwaysAtHead: "test_pages_lose_and_repeat_nothing",
    NeverAtHead: "test_new_log_is_empty",
    IgnoresLimit: "test_pages_lose_and_repeat_nothing",
    ReadsFromReplica: "test_acknowledged_entry_is_seen_by_all_at_once",
    LosesHighBytes: "test_any_bytes_come_back_as_they_were",
    StripsWhite: "test_any_bytes_come_back_as_they_were",
    TakesAnySize: "test_entries_of_other_sizes_are_refused",
    CreatesAnew: "test_create_is_idempotent_by_group",
    EmptiesOnCreate: "test_create_is_idempotent_by_group",
    OneLogForAll: "test_logs_are_apart",
    JoinsAnything: "test_unknown_log_is_refused",
    RaisesKeyError: "test_garbage_address_is_refused",
    DeletesOnLeave: "test_leaving_takes_nothing_from_others",
    LeavesOnce: "test_leaving_takes_nothing_from_others",
    CursorsOfThisRun: "test_cursors_outlive_restarts",
    ReadsOnlyOnce: "test_old_cursors_stay_good",
    BeginsAgain: "test_garbage_cursor_is_refused",
    OneCallAtATime: "test_waiting_does_not_block_the_same_coordinator",
    ShieldsItsWait: "test_cancelled_wait_loses_nothing",
    ForgetsOnRestart: "test_entries_outlive_all_coordinators",
    SignalsAreEntries: "test_signals_are_no_entries",
    KeepsEverySignal: "test_last_broadcast_of_each_sender_is_kept",
    RepeatsSignals: "test_signals_are_heard_once",
    DropsSignals: "test_broadcast_reaches_the_others",
    ShoutsPrivateSignals: "test_addressed_signal_reaches_its_device_alone",
    AnonymousSignals: "test_broadcast_reaches_the_others",
    MixesSignalsOfLogs: "test_signals_of_another_log_stay_there",
}


def bed_of(kind: type[MemoryCoordinator]) -> Callable[[Path], AbstractAsyncContextManager[LogBed]]:
    @asynccontextmanager
    async def open_bed(folder: Path) -> AsyncIterator[LogBed]:
        hub = MemoryHub()

        @asynccontextmanager
        async def open_device(device: str) -> AsyncIterator[Coordinator]:
            async with real_context(folder / device, device=device) as context:
                yield kind(context, hub)

        yield LogBed(open_device, patience=0.4)

    return open_bed


def test_every_broken_backend_fails_the_test_that_is_about_it() -> None:
    missed, unsound = [], []
    for test in sorted(set(BREAKS.values())):
        kinds: list[type[MemoryCoordinator]] = [
            Sound,
            *(kind for kind, about in BREAKS.items() if about == test),
        ]
        suites = {kind.__name__: broken(CoordinationContract, bed_of(kind)) for kind in kinds}
        outcomes = run_suites(suites, "-k", test)
        unsound += [outcome for outcome in outcomes.pop("Sound") if outcome.result != "passed"]
        missed += [name for name, found in outcomes.items() if test not in failures(found)]
    assert (missed, unsound) == ([], [])
