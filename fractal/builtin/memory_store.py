"""The `memory` store, for tests and simulation: several devices share one `MemoryObjects`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fractal.api.context import Context
from fractal.api.errors import Conflict, InvalidInput, NotFound
from fractal.api.names import check_key, check_prefix
from fractal.api.store import ObjectInfo, Store

CHUNK = 1 << 20


class MemoryObjects:
    """The objects by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, bytes] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStoreConfig:
    """Which objects, and how stale."""

    objects: MemoryObjects = field(
        default_factory=MemoryObjects,
        repr=False,
        metadata={"help": "Shared by every store that is to see the same objects; set from Python only."},
    )
    staleness: float = field(
        default=0.0, metadata={"help": "Seconds of lag that the store declares (it has none)."}
    )


class MemoryStore(Store):
    """A `Store` over a dictionary. One event loop per `MemoryObjects`: that is what makes its create atomic."""

    def __init__(self, config: MemoryStoreConfig) -> None:
        self._objects = config.objects.by_key
        self._staleness = config.staleness

    @property
    def staleness(self) -> float:
        """Seconds, as configured."""
        return self._staleness

    @property
    def fencing(self) -> bool:
        """True within one process, which is all that there is."""
        return True

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Create the object."""
        check_key(key)
        if not isinstance(data, bytes):
            data = b"".join([chunk async for chunk in data])
        # No await between look and write.
        if key in self._objects:
            raise Conflict(f"store memory: {key}: exists already")
        self._objects[key] = data

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The object's bytes in chunks of at most 1 MiB."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput(
                f"store memory: {key}: offset {offset}, length {length}: neither may be negative"
            )
        data = self._object(key)
        end = len(data) if length is None else min(len(data), offset + length)
        for start in range(offset, end, CHUNK):
            yield data[start : min(start + CHUNK, end)]

    async def head(self, key: str) -> ObjectInfo:
        """The object's size."""
        return ObjectInfo(key, len(self._object(key)))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object below `prefix`, sorted, as of the first one's time."""
        check_prefix(prefix)
        found = [(key, len(data)) for key, data in self._objects.items() if key.startswith(prefix)]
        for key, size in sorted(found):
            yield ObjectInfo(key, size)

    async def delete(self, key: str) -> None:
        """Delete the object."""
        check_key(key)
        self._objects.pop(key, None)

    def _object(self, key: str) -> bytes:
        check_key(key)
        try:
            return self._objects[key]
        except KeyError as error:
            raise NotFound(f"store memory: no object {key}") from error


@asynccontextmanager
async def open_memory_store(_: Context, config: MemoryStoreConfig) -> AsyncIterator[MemoryStore]:
    """A store over `config.objects`."""
    yield MemoryStore(config)
