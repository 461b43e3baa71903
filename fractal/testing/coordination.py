"""Contract suite for coordination backends. An author writes one fixture:

    class TestMine(CoordinationContract):
        @pytest.fixture
        async def backend(self, tmp_path):
            yield LogBed(open_device)   # open_device("a" * 20) opens that device's coordinator

Every coordinator of one bed reaches the same logs, as devices of one group do; opening a device again is what happens when its
agent restarts, so the bed must not keep the coordinator for it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import ClassVar

import pytest

from fractal.api.coordination import MAX_ENTRY, MAX_SIGNAL, Coordinator, Signal
from fractal.api.errors import BackendError, Denied, InvalidInput, NotFound
from fractal.testing.coordination_parts import (
    ATTIC,
    KITCHEN,
    SHED,
    LogBed,
    Town,
    altered,
    check_page,
    new_group,
)
from fractal.testing.suite import Contract

SIGNAL_TRIES = 20
"""Signals may be lost: one of so many has to arrive."""


class CoordinationContract(Contract[LogBed]):
    """What every coordination backend must do."""

    many: ClassVar[int] = 120
    """Entries of a long log: more than the backend hands out at once."""

    @pytest.fixture
    async def town(self, backend: LogBed) -> AsyncIterator[Town]:
        """A fresh log, created by one device and joined by two."""
        async with AsyncExitStack() as stack, asyncio.timeout(4 * backend.patience):
            attic, kitchen, shed = [
                await stack.enter_async_context(backend.open(d)) for d in (ATTIC, KITCHEN, SHED)
            ]
            address = await attic.create(new_group(), "Group 1")
            town = Town(backend, stack, address, attic, kitchen, shed)
            await town.let_in(kitchen)
            await town.let_in(shed)
            yield town

    # --- logs ---

    async def test_new_log_is_empty(self, town: Town) -> None:
        """And its cursor is as good as any."""
        page = await town.attic.read(town.address, None)
        check_page(page, 500)
        assert page.entries == () and page.head
        assert await town.read_all(town.attic, after=page.cursor) == []
        await town.attic.append(town.address, "t1", b"first")
        assert await town.read_all(town.attic, after=page.cursor, expect=1) == [b"first"]

    async def test_create_is_idempotent_by_group(self, town: Town) -> None:
        """A creator that died before it noted the address asks again, and finds its log."""
        group = new_group()
        address = await town.attic.create(group, "Group 2")
        await town.attic.append(address, "t", b"kept")
        assert await town.attic.create(group, "Group 2") == address
        again = await town.restarted(ATTIC)
        assert await again.create(group, "Group 2") == address
        assert (await again.read(address, None)).entries == (b"kept",)

    async def test_logs_are_apart(self, town: Town) -> None:
        """Same tokens, same devices, other log."""
        other = await town.attic.create(new_group(), "Group 1")
        assert other != town.address
        await town.attic.append(town.address, "t", b"here")
        await town.attic.append(other, "t", b"there")
        assert (await town.attic.read(other, None)).entries == (b"there",)
        assert await town.read_all(town.attic, expect=1) == [b"here"]

    async def test_join_is_idempotent(self, town: Town) -> None:
        """Joining again changes nothing."""
        await town.attic.append(town.address, "t", b"x")
        await town.kitchen.join(town.address)
        await town.kitchen.join(town.address)
        assert await town.read_all(town.kitchen, expect=1) == [b"x"]

    async def test_invitation_lets_in_again(self, town: Town) -> None:
        """A device that died while it joined uses its code once more, also after a restart; its address is everybody's."""
        invitation = await town.attic.invite(town.address, "")
        await town.kitchen.leave(town.address)
        assert await town.kitchen.join(invitation) == town.address
        assert await town.kitchen.join(invitation) == town.address
        again = await town.restarted(KITCHEN)
        assert await again.join(invitation) == town.address
        await again.append(town.address, "t", b"x")
        assert await town.read_all(town.attic, expect=1) == [b"x"]

    async def test_unknown_log_is_refused(self, town: Town) -> None:
        """By every call, and without making it."""
        unknown = town.bed.address_kind or altered(town.address)
        for _ in range(2):
            with pytest.raises((NotFound, Denied, InvalidInput)):
                await town.kitchen.join(unknown)
            with pytest.raises((NotFound, Denied, InvalidInput)):
                await town.kitchen.read(unknown, None)
            with pytest.raises((NotFound, Denied, InvalidInput)):
                await town.kitchen.append(unknown, "t", b"x")

    @pytest.mark.parametrize(
        "address", ["", "nonsense", "#", "\0", "a" * 5000, "sqlite:../../etc/passwd#x", "☃"]
    )
    async def test_garbage_address_is_refused(self, town: Town, address: str) -> None:
        """Addresses come out of codes that people paste."""
        with pytest.raises((NotFound, Denied, InvalidInput)):
            await town.attic.join(address)

    async def test_leaving_takes_nothing_from_others(self, town: Town) -> None:
        """Twice, too."""
        await town.attic.append(town.address, "t", b"x")
        await town.kitchen.leave(town.address)
        await town.kitchen.leave(town.address)
        await town.shed.append(town.address, "u", b"y")
        assert await town.read_all(town.attic, expect=2) == [b"x", b"y"]
        assert await town.read_all(town.shed, expect=2) == [b"x", b"y"]

    async def test_leaver_may_come_back(self, town: Town) -> None:
        """With its old cursor."""
        await town.attic.append(town.address, "t", b"x")
        await town.read_all(town.kitchen, expect=1)
        cursor = (await town.kitchen.read(town.address, None)).cursor
        await town.kitchen.leave(town.address)
        await town.let_in(town.kitchen)
        await town.attic.append(town.address, "u", b"y")
        assert await town.read_all(town.kitchen, after=cursor, expect=1) == [b"y"]

    async def test_invite_and_remove_harm_nobody_else(self, town: Town) -> None:
        """Whatever access the backend has, the log of the others goes on."""
        await town.attic.append(town.address, "t", b"x")
        await town.attic.remove(town.address, SHED)
        await town.attic.remove(town.address, SHED)
        await town.kitchen.append(town.address, "u", b"y")
        assert await town.read_all(town.attic, expect=2) == [b"x", b"y"]

    # --- entries ---

    @pytest.mark.parametrize(
        "entry",
        [
            b"\0",
            bytes(range(256)),
            b"\xff\xfe\xfd",
            b'{"a":1}',
            b" \r\n\t ",
            b"\xc3\x28" * 100,
            b"x" * MAX_ENTRY,
        ],
        ids=["nul", "all", "high", "json", "white", "latin", "largest"],
    )
    async def test_any_bytes_come_back_as_they_were(self, town: Town, entry: bytes) -> None:
        """Entries are opaque."""
        await town.attic.append(town.address, "t", entry)
        assert await town.read_all(town.kitchen, expect=1) == [entry]

    @pytest.mark.parametrize("size", [0, MAX_ENTRY + 1])
    async def test_entries_of_other_sizes_are_refused(self, town: Town, size: int) -> None:
        """And leave nothing behind."""
        with pytest.raises(InvalidInput):
            await town.attic.append(town.address, "t", bytes(size))
        assert await town.read_all(town.attic) == []

    async def test_acknowledged_entry_is_seen_by_all_at_once(self, town: Town) -> None:
        """Reads up to the head lag by no more than the declared staleness; leases stand on it."""
        assert town.attic.staleness >= 0
        for number in range(10):
            writer, reader = (town.attic, town.kitchen) if number % 2 else (town.kitchen, town.attic)
            await writer.append(town.address, f"t{number}", b"%d" % number)
            assert len(await town.read_all(reader, expect=number + 1)) == number + 1

    async def test_repeated_token_appends_nothing(self, town: Town) -> None:
        """In a row, at once, with other bytes, and after a restart."""
        await town.attic.append(town.address, "token", b"once")
        await town.attic.append(town.address, "token", b"once")
        await town.attic.append(town.address, "token", b"other bytes")
        await asyncio.gather(*[town.attic.append(town.address, "second", b"twice") for _ in range(5)])
        again = await town.restarted(ATTIC)
        await again.append(town.address, "token", b"once")
        await again.append(town.address, "third", b"thrice")
        assert await town.read_all(town.kitchen, expect=3) == [b"once", b"twice", b"thrice"]

    async def test_equal_bytes_with_other_tokens_are_other_entries(self, town: Town) -> None:
        """A log does not compare."""
        for token in ("t1", "t2", "t3"):
            await town.attic.append(town.address, token, b"same")
        assert await town.read_all(town.kitchen, expect=3) == [b"same"] * 3

    async def test_one_order_for_all(self, town: Town) -> None:
        """Three writers at once; those who follow live and those who replay see one order, each writer's own kept."""
        count = 8
        writers = {b"a": town.attic, b"b": town.kitchen, b"c": town.shed}

        async def write(name: bytes, log: Coordinator) -> None:
            for number in range(count):
                await log.append(town.address, f"{name.decode()}{number}", name + b"%d" % number)

        follow = [self._follow(town, log, 3 * count) for log in (town.attic, town.kitchen)]
        *_, first, second = await asyncio.gather(*itertools.starmap(write, writers.items()), *follow)
        replays = [await town.read_all(log, expect=3 * count) for log in writers.values()]
        assert replays[0] == replays[1] == replays[2] == first == second
        for name in writers:
            mine = [entry for entry in replays[0] if entry.startswith(name)]
            assert mine == [name + b"%d" % number for number in range(count)]

    @staticmethod
    async def _follow(town: Town, log: Coordinator, count: int) -> list[bytes]:
        seen: list[bytes] = []
        cursor: str | None = None
        async with asyncio.timeout(2 * town.bed.patience):
            while len(seen) < count:
                page = await log.read(town.address, cursor, limit=5, wait=0.5)
                seen += page.entries
                cursor = page.cursor
                await asyncio.sleep(0)  # a backend that never suspends must not keep the time-out from coming
        return seen

    # --- pages ---

    @pytest.mark.parametrize("limit", [1, 7, 500])
    async def test_pages_lose_and_repeat_nothing(self, town: Town, limit: int) -> None:
        """Whatever their size; `head` comes at the end and not before."""
        written = [b"entry %d" % number for number in range(20)]
        for number, entry in enumerate(written):
            await town.attic.append(town.address, f"t{number}", entry)
        assert await town.read_all(town.kitchen, expect=20, limit=limit) == written
        page = await town.kitchen.read(town.address, None, limit=limit)
        assert page.head <= (len(page.entries) == 20)

    async def test_long_log_is_read_whole(self, town: Town) -> None:
        """Longer than any page the backend likes."""
        written = {b"entry %d" % number for number in range(self.many)}
        for number in range(0, self.many, 10):
            batch = range(number, min(number + 10, self.many))
            await asyncio.gather(*[town.attic.append(town.address, f"t{n}", b"entry %d" % n) for n in batch])
        entries = await town.read_all(town.shed, expect=self.many)
        assert len(entries) == self.many and set(entries) == written

    async def test_cursors_outlive_restarts(self, town: Town) -> None:
        """A device reads on where its notes say it was."""
        for number in range(4):
            await town.attic.append(town.address, f"t{number}", b"%d" % number)
        await town.read_all(town.kitchen, expect=4)
        cursor = (await town.kitchen.read(town.address, None, limit=3)).cursor
        await town.attic.append(town.address, "t4", b"4")
        again = await town.restarted(KITCHEN)
        assert await town.read_all(again, after=cursor, expect=2) == [b"3", b"4"]

    async def test_old_cursors_stay_good(self, town: Town) -> None:
        """Reading does not consume: two readers of one device, or one that did not note its page."""
        await town.attic.append(town.address, "t1", b"1")
        await town.read_all(town.attic, expect=1)
        cursor = (await town.attic.read(town.address, None)).cursor
        await town.attic.append(town.address, "t2", b"2")
        assert await town.read_all(town.attic, after=cursor, expect=1) == [b"2"]
        assert await town.read_all(town.attic, after=cursor, expect=1) == [b"2"]
        assert await town.read_all(town.attic, expect=2) == [b"1", b"2"]

    @pytest.mark.parametrize("cursor", ["nonsense", "-1", "999999999", "☃", "0 OR 1=1", "\0"])
    async def test_garbage_cursor_is_refused(self, town: Town, cursor: str) -> None:
        """Silently beginning anywhere would hide entries, or the log's end."""
        await town.attic.append(town.address, "t", b"x")
        with pytest.raises((InvalidInput, BackendError)):
            await town.attic.read(town.address, cursor)

    # --- waiting ---

    async def test_waiting_reader_is_woken(self, town: Town) -> None:
        """By another device's append, long before its wait is over."""
        cursor = (await town.kitchen.read(town.address, None)).cursor
        waiting = asyncio.create_task(town.kitchen.read(town.address, cursor, wait=10 * town.bed.patience))
        await asyncio.sleep(0.1)
        assert not waiting.done(), "it had nothing to return"
        await town.attic.append(town.address, "t", b"news")
        async with asyncio.timeout(town.bed.patience + town.kitchen.staleness):
            assert (await waiting).entries == (b"news",)

    async def test_wait_ends(self, town: Town) -> None:
        """With an empty page that says so."""
        async with asyncio.timeout(town.bed.patience):
            page = await town.kitchen.read(town.address, None, wait=0.2)
        assert page.entries == () and page.head

    async def test_wait_is_not_waited_when_there_is_something(self, town: Town) -> None:
        """What is there is returned at once."""
        await town.attic.append(town.address, "t", b"x")
        async with asyncio.timeout(town.bed.patience + town.kitchen.staleness):
            page = await town.kitchen.read(town.address, None, wait=10 * town.bed.patience)
        assert page.entries == (b"x",)

    async def test_cancelled_wait_loses_nothing(self, town: Town) -> None:
        """The reader goes on from its cursor as if it had never asked."""
        cursor = (await town.kitchen.read(town.address, None)).cursor
        waiting = asyncio.create_task(town.kitchen.read(town.address, cursor, wait=10 * town.bed.patience))
        await asyncio.sleep(0.05)
        waiting.cancel()
        async with asyncio.timeout(town.bed.patience):
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await town.attic.append(town.address, "t", b"x")
        assert await town.read_all(town.kitchen, after=cursor, expect=1) == [b"x"]

    async def test_waiting_does_not_block_the_same_coordinator(self, town: Town) -> None:
        """An agent appends, signals and reads while its long poll waits."""
        waits = [
            asyncio.create_task(town.attic.read(town.address, None, wait=10 * town.bed.patience))
            for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(town.bed.patience + town.attic.staleness):
            await town.attic.signal(town.address, b"alive")
            assert (await town.attic.read(town.address, None)).entries == ()
            await town.attic.append(town.address, "t", b"x")
            assert [page.entries for page in await asyncio.gather(*waits)] == [(b"x",)] * 3

    # --- durability ---

    async def test_entries_outlive_all_coordinators(self, backend: LogBed) -> None:
        """Everybody's agent restarts; the log is what it was."""
        async with asyncio.timeout(4 * backend.patience), AsyncExitStack() as stack:
            async with backend.open(ATTIC) as attic:
                address = await attic.create(new_group(), "Group 1")
                await attic.append(address, "t", b"kept")
            attic = await stack.enter_async_context(backend.open(ATTIC))
            kitchen = await stack.enter_async_context(backend.open(KITCHEN))
            town = Town(backend, stack, address, attic, kitchen, kitchen)
            await town.let_in(kitchen)
            assert await town.read_all(kitchen, expect=1) == [b"kept"]
            await attic.append(address, "t", b"kept")
            assert await town.read_all(attic, expect=1) == [b"kept"]

    # --- signals ---

    async def test_broadcast_reaches_the_others(self, town: Town) -> None:
        """With its sender's id; bytes as they were."""
        payload = bytes(range(256))
        for log in (town.kitchen, town.shed):
            heard = await self._heard(town, log, lambda: town.attic.signal(town.address, payload))
            assert set(heard) == {Signal(ATTIC, payload)}

    async def test_last_broadcast_of_each_sender_is_kept(self, town: Town) -> None:
        """A device that was away hears one word of each, the newest."""
        for number in range(5):
            await town.attic.signal(town.address, b"attic %d" % number)
            await town.kitchen.signal(town.address, b"kitchen %d" % number)
        heard = await self._heard(
            town, town.shed, lambda: town.attic.signal(town.address, b"attic 5"), of=ATTIC
        )
        assert [signal for signal in heard if signal.sender == ATTIC][-1].payload == b"attic 5"
        assert len([signal for signal in heard if signal.sender == KITCHEN]) <= 1

    async def test_signals_are_heard_once(self, town: Town) -> None:
        """Else a dead device would seem to live."""
        await self._heard(town, town.kitchen, lambda: town.attic.signal(town.address, b"alive"))
        await asyncio.sleep(0.1)
        await town.kitchen.signals(town.address)
        assert list(await town.kitchen.signals(town.address)) == []

    async def test_addressed_signal_reaches_its_device_alone(self, town: Town) -> None:
        """And is no broadcast to the others."""
        heard = await self._heard(
            town, town.kitchen, lambda: town.attic.signal(town.address, b"for the kitchen", to=KITCHEN)
        )
        assert set(heard) == {Signal(ATTIC, b"for the kitchen")}
        assert list(await town.shed.signals(town.address)) == []

    async def test_signals_are_no_entries(self, town: Town) -> None:
        """A group that idles writes nothing."""
        await town.attic.signal(town.address, b"alive")
        await town.attic.signal(town.address, b"you there", to=KITCHEN)
        assert await town.read_all(town.kitchen) == []

    async def test_signals_of_another_log_stay_there(self, town: Town) -> None:
        """Two groups, same devices."""
        other = await town.attic.create(new_group(), "Group 2")
        await town.let_in(town.kitchen, to=other)
        await town.attic.signal(other, b"there")
        await town.attic.signal(other, b"there too", to=KITCHEN)
        await asyncio.sleep(0.05)
        assert list(await town.kitchen.signals(town.address)) == []

    async def test_signal_sizes(self, town: Town) -> None:
        """32 KiB pass, more is refused."""
        payload = b"\xff" * MAX_SIGNAL
        heard = await self._heard(town, town.kitchen, lambda: town.attic.signal(town.address, payload))
        assert heard[-1].payload == payload
        with pytest.raises(InvalidInput):
            await town.attic.signal(town.address, bytes(MAX_SIGNAL + 1))

    @staticmethod
    async def _heard(
        town: Town, log: Coordinator, send: Callable[[], object], of: str = ""
    ) -> Sequence[Signal]:
        """What arrives after `send` was repeated until something (of that sender) did."""
        for _ in range(SIGNAL_TRIES):
            sending = send()
            assert asyncio.iscoroutine(sending)
            await sending
            async with asyncio.timeout(town.bed.patience):
                heard = await log.signals(town.address)
            if any(signal.sender == of or not of for signal in heard):
                return heard
            await asyncio.sleep(town.bed.patience / SIGNAL_TRIES)
        pytest.fail("no signal ever arrived")
