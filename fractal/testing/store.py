"""The contract of a store: `class TestMine(StoreContract)` with the fixture `backend`, an opened and empty store.

Optional fixtures, each of which turns skipped tests on: `second`, another handle on the same objects (another process or
device would hold it); `peek`, an `async (key) -> bytes | None` that reads what is kept without asking the store.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fractal.api.errors import Conflict, InvalidInput, NotFound, NotSupported
from fractal.api.store import ObjectInfo, Store, SupportsLinks
from fractal.testing.suite import Contract, requires

CHUNK = 1 << 20
LONGEST_LAG = 10.0
"""Seconds; a store staler than this needs a shorter lag configured for its tests."""
BAD_KEYS = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "../a",
    "a/./b",
    "a/../../b",
    "A",
    "a b",
    "a\\b",
    "a\0b",
    "a\n",
    "ä",
    "a*",
    "x" * 401,
)
ODD_KEYS = (
    "a",
    "-",
    "_",
    "...",
    "..a",
    "a..",
    ".tmp/x",
    "tmp/x",
    "a.o",
    "a.o/b",
    "0/1/2/3/4/5/6/7/8/9",
    "x" * 400,
    "x" * 255 + "/y",
    "x" * 254,
    "x" * 256,
    "x" * 399 + "y",
    "/".join("ab" * 66),
)


async def read(store: Store, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    """A whole object, or part of one."""
    return b"".join([chunk async for chunk in store.get(key, offset=offset, length=length)])


async def keys(store: Store, prefix: str = "") -> list[str]:
    """Keys as the store lists them."""
    return [info.key async for info in store.list(prefix)]


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """A stream that lets others run between its chunks."""
    for part in parts:
        await asyncio.sleep(0)
        yield part


class StoreContract(Contract[Store]):
    """What every store must do. See `fractal.api.store.Store` for the words behind each test."""

    optional: ClassVar[Mapping[str, type[Any]]] = {"SupportsLinks": SupportsLinks}
    deletes: ClassVar[bool] = True
    """False for an append-only store, which must refuse `delete`."""

    @pytest.fixture
    def second(self) -> Store | None:
        """Another handle on the same objects."""
        return None

    @pytest.fixture
    def peek(self) -> Callable[[str], Awaitable[bytes | None]] | None:
        """Reads what is kept behind the store's back."""
        return None

    async def lag(self, backend: Store) -> None:
        """Wait until reads and listings must show what was acknowledged."""
        assert backend.staleness <= LONGEST_LAG, "configure a shorter lag for the tests"
        await asyncio.sleep(backend.staleness)

    async def fill(self, backend: Store, *names: str) -> None:
        """Create small objects, each with its key as content."""
        for name in names:
            await backend.put_new(name, name.encode())
        await self.lag(backend)

    async def test_declarations_are_sane(self, backend: Store) -> None:
        assert isinstance(backend.fencing, bool)
        assert not (backend.fencing and backend.weakness)
        assert backend.staleness >= 0
        assert math.isfinite(backend.staleness)

    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
    async def test_what_is_put_is_got(self, backend: Store, size: int) -> None:
        data = bytes(index * 7 % 251 for index in range(997)) * (size // 997 + 1)
        await backend.put_new("g/object", data[:size])
        await self.lag(backend)
        assert await read(backend, "g/object") == data[:size]
        assert await backend.head("g/object") == ObjectInfo("g/object", size)
        assert [info async for info in backend.list("")] == [ObjectInfo("g/object", size)]

    async def test_a_stream_is_stored_whole(self, backend: Store) -> None:
        parts = [b"a", b"", b"b" * (2 * CHUNK + 1), b"c" * 10, b""]
        await backend.put_new("g/streamed", pieces(*parts))
        await backend.put_new("g/nothing", pieces())
        await self.lag(backend)
        assert await read(backend, "g/streamed") == b"".join(parts)
        assert await read(backend, "g/nothing") == b""

    async def test_chunks_are_bounded(self, backend: Store) -> None:
        await backend.put_new("big", b"x" * (2 * CHUNK + 1))
        await self.lag(backend)
        sizes = [len(chunk) async for chunk in backend.get("big")]
        assert max(sizes) <= CHUNK
        assert min(sizes) > 0

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_nothing_is_overwritten(self, backend: Store, streamed: bool) -> None:
        await backend.put_new("lock/1", b"first")
        with pytest.raises(Conflict):
            await backend.put_new("lock/1", pieces(b"sec", b"ond") if streamed else b"second")
        with pytest.raises(Conflict):
            await backend.put_new("lock/1", b"first")
        await self.lag(backend)
        assert await read(backend, "lock/1") == b"first"

    async def test_of_racing_creates_one_wins(self, backend: Store) -> None:
        if not backend.fencing:
            pytest.skip("the store does not claim fencing")
        writers = [bytes([number]) * (1000 + number) for number in range(16)]
        for attempt in range(4):
            key = f"epoch/{attempt}"
            # Half as streams, which end at different times.
            tasks = [
                backend.put_new(
                    key,
                    data if number % 2 else pieces(*(data[at : at + 100] for at in range(0, len(data), 100))),
                )
                for number, data in enumerate(writers)
            ]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            winners = [data for data, result in zip(writers, results, strict=True) if result is None]
            assert all(isinstance(result, Conflict) for result in results if result is not None), results
            assert len(winners) == 1
            await self.lag(backend)
            assert await read(backend, key) == winners[0]

    async def test_an_unfinished_object_is_not_seen(self, backend: Store) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"one" * CHUNK
            begun.set()
            await go_on.wait()
            yield b"two"

        put = asyncio.create_task(backend.put_new("a/slow", slow()))
        waiter = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait([put, waiter], timeout=30, return_when=asyncio.FIRST_COMPLETED)
            with pytest.raises(NotFound):
                await backend.head("a/slow")
            with pytest.raises(NotFound):
                await read(backend, "a/slow")
            assert await keys(backend) == []
        finally:
            waiter.cancel()
            go_on.set()
            await put
        await self.lag(backend)
        assert await read(backend, "a/slow") == b"one" * CHUNK + b"two"

    async def test_a_stream_that_fails_leaves_nothing(self, backend: Store) -> None:
        class BrokenDiskError(Exception):
            pass

        async def failing() -> AsyncIterator[bytes]:
            yield b"x" * CHUNK
            raise BrokenDiskError

        with pytest.raises(BrokenDiskError):
            await backend.put_new("a/failed", failing())
        await self.lag(backend)
        assert await keys(backend) == []
        await backend.put_new("a/failed", b"now")

    async def test_a_cancelled_create_leaves_nothing(self, backend: Store) -> None:
        begun = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield b"x" * CHUNK
            begun.set()
            await asyncio.Event().wait()

        put = asyncio.create_task(backend.put_new("a/cancelled", endless()))
        waiter = asyncio.create_task(begun.wait())
        await asyncio.wait([put, waiter], timeout=30, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        put.cancel()
        await asyncio.wait([put], timeout=30)
        assert put.cancelled()
        await self.lag(backend)
        assert await keys(backend) == []
        await backend.put_new("a/cancelled", b"now")

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (0, 4, b"0123"),
            (3, 4, b"3456"),
            (8, 100, b"89"),
            (10, None, b""),
            (99, 5, b""),
            (4, 0, b""),
        ],
    )
    async def test_ranges(self, backend: Store, offset: int, length: int | None, expected: bytes) -> None:
        await backend.put_new("digits", b"0123456789")
        await self.lag(backend)
        assert await read(backend, "digits", offset=offset, length=length) == expected

    async def test_a_range_over_chunks(self, backend: Store) -> None:
        data = bytes(range(256)) * (3 * CHUNK // 256)
        await backend.put_new("long", data)
        await self.lag(backend)
        assert (
            await read(backend, "long", offset=CHUNK - 3, length=CHUNK + 7) == data[CHUNK - 3 : 2 * CHUNK + 4]
        )

    async def test_negative_ranges_are_refused(self, backend: Store) -> None:
        await self.fill(backend, "digits")
        with pytest.raises(InvalidInput):
            await read(backend, "digits", offset=-1)
        with pytest.raises(InvalidInput):
            await read(backend, "digits", length=-1)

    async def test_what_is_absent_is_not_found(self, backend: Store) -> None:
        await self.fill(backend, "a/1/base")
        for key in ("a", "a/1", "a/1/bas", "a/1/base/x", "b"):
            with pytest.raises(NotFound):
                await backend.head(key)
            with pytest.raises(NotFound):
                await anext(backend.get(key))
        assert await keys(backend, "b") == []

    async def test_a_listing_is_sorted_and_complete(self, backend: Store) -> None:
        names = ["a-b", "a.b", "a/10", "a/2", "a/2/x", "a0", "a_", "b/c/d/e", "b/c"] + [
            f"many/{n:03}" for n in range(60)
        ]
        await self.fill(backend, *reversed(names))
        assert await keys(backend) == sorted(names)

    async def test_a_prefix_may_end_anywhere(self, backend: Store) -> None:
        names = ["g/epoch/a/1", "g/epoch/a/1/base", "g/epoch/a/10", "g/epoch/ab/1", "g2/epoch/a/1", "h"]
        await self.fill(backend, *names)
        for prefix in (
            "",
            "g",
            "g/",
            "g/epoch/a",
            "g/epoch/a/",
            "g/epoch/a/1",
            "g/epoch/a/1/",
            "h",
            "h/",
            "z",
            "g/e",
        ):
            assert await keys(backend, prefix) == [
                name for name in sorted(names) if name.startswith(prefix)
            ], prefix

    async def test_a_strange_prefix_lists_nothing(self, backend: Store) -> None:
        await self.fill(backend, "a/b")
        for prefix in ("..", "../", "a/../a", "/", "//", "a//", "./a"):
            assert await keys(backend, prefix) == [], prefix
        with pytest.raises(InvalidInput):
            await keys(backend, "A")

    async def test_a_listing_shows_all_that_was_there_when_it_began(self, backend: Store) -> None:
        before = [f"old/{number}" for number in range(10)]
        await self.fill(backend, *before)
        seen = []
        async for info in backend.list("old"):
            seen.append(info.key)
            await backend.put_new(f"old/new-{len(seen)}", b"")
        assert set(before) <= set(seen)
        assert len(seen) == len(set(seen))

    async def test_every_allowed_key_is_its_own_object(self, backend: Store) -> None:
        await self.fill(backend, *ODD_KEYS)
        assert await keys(backend) == sorted(ODD_KEYS)
        for key in ODD_KEYS:
            assert await read(backend, key) == key.encode()

    @pytest.mark.parametrize("key", BAD_KEYS, ids=repr)
    async def test_keys_outside_the_rules_are_refused(self, backend: Store, key: str) -> None:
        await self.fill(backend, "a")
        with pytest.raises(InvalidInput):
            await backend.put_new(key, b"x")
        with pytest.raises(InvalidInput):
            await read(backend, key)
        with pytest.raises(InvalidInput):
            await backend.head(key)
        if self.deletes:
            with pytest.raises(InvalidInput):
                await backend.delete(key)
        assert await keys(backend) == ["a"]

    async def test_a_deleted_object_is_gone_and_nothing_else(self, backend: Store) -> None:
        if not self.deletes:
            pytest.skip("the store is append-only")
        await self.fill(backend, "a/1", "a/1/base", "a/10", "a/2")
        await backend.delete("a/1")
        await self.lag(backend)
        with pytest.raises(NotFound):
            await read(backend, "a/1")
        assert await keys(backend) == ["a/1/base", "a/10", "a/2"]
        await backend.put_new("a/1", b"again")
        await self.lag(backend)
        assert await read(backend, "a/1") == b"again"

    async def test_deleting_what_is_absent_does_nothing(self, backend: Store) -> None:
        if not self.deletes:
            pytest.skip("the store is append-only")
        await self.fill(backend, "a/1/base")
        for key in ("a", "a/1", "a/1/base/x", "b/c"):
            await backend.delete(key)
        assert await keys(backend) == ["a/1/base"]

    @requires("SupportsLinks")
    async def test_a_file_becomes_an_object_and_an_object_a_file(
        self, backend: Store, tmp_path: Path
    ) -> None:
        """Neither is copied, and neither name depends on the other."""
        assert isinstance(backend, SupportsLinks)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(b"spooled")
        assert await backend.adopt("a/1", source)
        source.unlink()
        assert await read(backend, "a/1") == b"spooled"
        assert await backend.lend("a/1", target)
        assert target.read_bytes() == b"spooled"
        await backend.delete("a/1")
        assert target.read_bytes() == b"spooled"

    @requires("SupportsLinks")
    async def test_nothing_is_overwritten_by_a_file(self, backend: Store, tmp_path: Path) -> None:
        assert isinstance(backend, SupportsLinks)
        source = tmp_path / "source"
        source.write_bytes(b"second")
        await backend.put_new("a/1", b"first")
        with pytest.raises(Conflict):
            await backend.adopt("a/1", source)
        assert await read(backend, "a/1") == b"first" and source.read_bytes() == b"second"
        with pytest.raises(NotFound):
            await backend.lend("a/2", tmp_path / "none")

    async def test_an_append_only_store_refuses_to_delete(self, backend: Store) -> None:
        if self.deletes:
            pytest.skip("the store deletes")
        await self.fill(backend, "a")
        with pytest.raises(NotSupported):
            await backend.delete("a")
        assert await keys(backend) == ["a"]

    async def test_another_handle_sees_the_same(self, backend: Store, second: Store | None) -> None:
        if second is None:
            pytest.skip("the fixture `second` is not given")
        await backend.put_new("a/1", b"one")
        with pytest.raises(Conflict):
            await second.put_new("a/1", b"two")
        await self.lag(backend)
        assert await read(second, "a/1") == b"one"
        assert await keys(second) == ["a/1"]

    async def test_what_is_kept_are_the_very_bytes(
        self, backend: Store, peek: Callable[[str], Awaitable[bytes | None]] | None
    ) -> None:
        if peek is None:
            pytest.skip("the fixture `peek` is not given")
        await backend.put_new("a/1", b"\0one\xff")
        assert await peek("a/1") == b"\0one\xff"
        assert await peek("a/2") is None
