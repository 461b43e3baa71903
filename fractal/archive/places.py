"""Further stores that hold an app's archive, beside the one that arbitrates: how they are named and opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fractal.api.context import Clock, Workers
from fractal.api.errors import BackendError, NotFound
from fractal.api.store import Store
from fractal.archive import spool
from fractal.archive.epochs import Notes
from fractal.archive.sealed import create


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A mirror: nothing that it says is believed, what it gives is checked by the hash that a record names."""

    id: str
    """Id of the store."""
    name: str
    """For people."""
    open: Callable[[], Awaitable[Store]]
    """The store, opened on first use. Raises BackendError."""


Places = Callable[[], Sequence[Place]]
"""The mirrors as they are now, in the order in which they are asked."""


def nowhere() -> Sequence[Place]:
    """No mirrors."""
    return ()


class Apart:
    """Notes about one mirror: what was seen there says nothing of any other store."""

    def __init__(self, notes: Notes, place: str) -> None:
        self._notes = notes
        self._prefix = f"mirror/{place}/"

    def get(self, key: str) -> bytes | None:
        """As `Notes.get`."""
        return self._notes.get(self._prefix + key)

    def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """As `Notes.scan`."""
        found = self._notes.scan(self._prefix + prefix)
        return [(key.removeprefix(self._prefix), value) for key, value in found]

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        """As `Notes.write`."""
        self._notes.write({self._prefix + key: value for key, value in changes.items()})


async def place(
    store: Store, key: str, path: Path, size: int, *, replace: bool, clock: Clock, workers: Workers
) -> None:
    """Have a segment's bytes, which were checked, under its name; with `replace` instead of what stands there.

    The store gets a copy of its own, never a second name of a file of ours: one bad block must not spoil two stores.
    Raises BackendError, NotSupported by a store that deletes nothing.
    """

    async def read() -> AsyncIterator[bytes]:
        offset = 0
        while chunk := await workers.run(spool.read_at, path, offset):
            offset += len(chunk)
            yield chunk

    if replace:
        await store.delete(key)
    if await create(store, key, read, clock):
        return
    try:
        standing = (await store.head(key)).size
    except NotFound:
        standing = -1  # somebody deleted it in between
    if standing != size:
        raise BackendError(
            f"{key} is {standing} bytes where {size} were put: somebody else writes there", retryable=True
        )
