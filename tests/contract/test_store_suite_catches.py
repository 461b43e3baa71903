"""The store suite must fail broken stores, each by the test that is about its fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from fractal.api.errors import Conflict, FractalError, NotFound
from fractal.api.store import ObjectInfo
from fractal.builtin.memory_store import MemoryStore, MemoryStoreConfig
from fractal.testing.store import StoreContract
from fractal.testing.suite import Outcome, broken, failures, run_suites


class Overwriting(MemoryStore):
    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        self._objects.pop(key, None)
        await super().put_new(key, data)


class LookingBeforeReading(MemoryStore):
    """Looks whether the key exists, then reads the data, then writes: two may pass the look."""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        if key in self._objects:
            raise Conflict(key)
        await asyncio.sleep(0)
        content = data if isinstance(data, bytes) else b"".join([chunk async for chunk in data])
        await super().delete(key)
        await super().put_new(key, content)


class ConflictOnlyForOthersData(MemoryStore):
    """Takes the same bytes again for a repetition of its own: two creators of equal bytes would both win."""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        if self._objects.get(key) != data:
            await super().put_new(key, data)


class ShowingUnfinished(MemoryStore):
    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        if isinstance(data, bytes):
            return await super().put_new(key, data)
        await super().put_new(key, b"")
        try:
            async for chunk in data:
                self._objects[key] += chunk
        except BaseException:
            del self._objects[key]
            raise
        return None


class KeepingFailed(MemoryStore):
    """Keeps what came before the stream failed, or before the caller was cancelled."""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        content = b""
        try:
            if isinstance(data, bytes):
                content = data
            else:
                async for chunk in data:
                    content += chunk
        finally:
            await super().put_new(key, content)


class KeepingCancelled(KeepingFailed):
    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        try:
            await super().put_new(key, data)
        except Exception:
            await self.delete(key)
            raise


class IgnoringOffset(MemoryStore):
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        return super().get(key, length=length)


class IgnoringLength(MemoryStore):
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        return super().get(key, offset=offset)


class Unbounded(MemoryStore):
    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        yield b"".join([chunk async for chunk in super().get(key, offset=offset, length=length)])


class CuttingLong(MemoryStore):
    """Loses the tail of what is longer than one chunk."""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        await super().put_new(key, data[: 1 << 20] if isinstance(data, bytes) else data)


class FirstChunkOnly(MemoryStore):
    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        await super().put_new(key, data if isinstance(data, bytes) else await anext(data, b""))


class Unsorted(MemoryStore):
    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in reversed([info async for info in super().list(prefix)]):
            yield info


class FirstPageOnly(MemoryStore):
    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        found = [info async for info in super().list(prefix)]
        for info in found[:50]:
            yield info


class FoldersOnly(MemoryStore):
    """Understands a prefix as a folder."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return super().list(prefix and prefix.rstrip("/") + "/")


class WrongSize(MemoryStore):
    async def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, (await super().head(key)).size + 28)


class EmptyForAbsent(MemoryStore):
    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        try:
            async for chunk in super().get(key, offset=offset, length=length):
                yield chunk
        except NotFound:
            return


class LeakingKeyErrors(MemoryStore):
    async def head(self, key: str) -> ObjectInfo:
        try:
            return await super().head(key)
        except NotFound as error:
            raise KeyError(key) from error


class TakingAnyKey(MemoryStore):
    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        try:
            await super().put_new(key, data)
        except Conflict:
            raise
        except FractalError:
            self._objects[key] = b""


class FoldingCase(MemoryStore):
    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        await super().put_new(key.lower(), data)


class NormalisingPaths(MemoryStore):
    """Joins keys like paths: `a//b` and `a/./b` are `a/b`."""

    async def head(self, key: str) -> ObjectInfo:
        return await super().head("/".join(part for part in key.split("/") if part not in {"", "."}))


class OneOfFileAndFolder(MemoryStore):
    """Maps keys to paths without care: a key cannot be a prefix of another at a slash."""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        if any(other.startswith(key + "/") or key.startswith(other + "/") for other in self._objects):
            raise Conflict(key)
        await super().put_new(key, data)


class CuttingNames(MemoryStore):
    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        await super().put_new(key[:255].rstrip("/") if len(key) <= 400 else key, data)


class DeletingFolders(MemoryStore):
    async def delete(self, key: str) -> None:
        await super().delete(key)
        for other in [other for other in self._objects if other.startswith(key + "/")]:
            del self._objects[other]


class DeletingNothing(MemoryStore):
    async def delete(self, key: str) -> None:
        pass


class RaisingOnAbsentDelete(MemoryStore):
    async def delete(self, key: str) -> None:
        await self.head(key)
        await super().delete(key)


class Unsteady(MemoryStore):
    """Lists by position: an object created meanwhile shifts one out of sight, or shows one twice."""

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        at = 0
        while True:
            found = [info async for info in super().list(prefix)]
            if at >= len(found) or at > 200:
                return
            yield found[at]
            at += 1 if at < 2 else 2


class Negative(MemoryStore):
    @property
    def staleness(self) -> float:
        return -1.0


class StaleWithoutSayingSo(MemoryStore):
    """Lists what there was one listing ago."""

    _seen: tuple[ObjectInfo, ...] = ()

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        shown, self._seen = (
            self._seen,
            tuple([info async for info in super().list(prefix)]),
        )
        for info in shown:
            yield info


EXPECTED: dict[type[MemoryStore], str] = {
    Overwriting: "test_nothing_is_overwritten",
    LookingBeforeReading: "test_of_racing_creates_one_wins",
    ConflictOnlyForOthersData: "test_nothing_is_overwritten",
    ShowingUnfinished: "test_an_unfinished_object_is_not_seen",
    KeepingFailed: "test_a_stream_that_fails_leaves_nothing",
    KeepingCancelled: "test_a_cancelled_create_leaves_nothing",
    IgnoringOffset: "test_ranges",
    IgnoringLength: "test_a_range_over_chunks",
    Unbounded: "test_chunks_are_bounded",
    CuttingLong: "test_what_is_put_is_got",
    FirstChunkOnly: "test_a_stream_is_stored_whole",
    Unsorted: "test_a_listing_is_sorted_and_complete",
    FirstPageOnly: "test_a_listing_is_sorted_and_complete",
    FoldersOnly: "test_a_prefix_may_end_anywhere",
    WrongSize: "test_what_is_put_is_got",
    EmptyForAbsent: "test_what_is_absent_is_not_found",
    LeakingKeyErrors: "test_what_is_absent_is_not_found",
    TakingAnyKey: "test_keys_outside_the_rules_are_refused",
    FoldingCase: "test_keys_outside_the_rules_are_refused",
    NormalisingPaths: "test_keys_outside_the_rules_are_refused",
    OneOfFileAndFolder: "test_a_prefix_may_end_anywhere",
    CuttingNames: "test_every_allowed_key_is_its_own_object",
    DeletingFolders: "test_a_deleted_object_is_gone_and_nothing_else",
    DeletingNothing: "test_a_deleted_object_is_gone_and_nothing_else",
    RaisingOnAbsentDelete: "test_deleting_what_is_absent_does_nothing",
    Unsteady: "test_a_listing_shows_all_that_was_there_when_it_began",
    Negative: "test_declarations_are_sane",
    StaleWithoutSayingSo: "test_what_is_put_is_got",
}


def opening(kind: type[MemoryStore]) -> Callable[[Path], AbstractAsyncContextManager[MemoryStore]]:
    @asynccontextmanager
    async def opened(_: Path) -> AsyncIterator[MemoryStore]:
        yield kind(MemoryStoreConfig())

    return opened


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    kinds: list[type[MemoryStore]] = [MemoryStore, *EXPECTED]
    return run_suites({kind.__name__: broken(StoreContract, opening(kind)) for kind in kinds}, "--tb=line")


def test_the_unbroken_store_passes(outcomes: dict[str, list[Outcome]]) -> None:
    assert {outcome.result for outcome in outcomes["MemoryStore"]} == {"passed", "skipped"}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_a_broken_store_is_caught(outcomes: dict[str, list[Outcome]], kind: type[MemoryStore]) -> None:
    assert EXPECTED[kind] in failures(outcomes[kind.__name__])


def test_an_append_only_store_that_deletes_is_caught() -> None:
    suite = broken(StoreContract, opening(MemoryStore), deletes=False)
    assert failures(run_suites({"deleting": suite})["deleting"]) == {
        "test_an_append_only_store_refuses_to_delete"
    }
