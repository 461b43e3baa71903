"""Store kind: keeps immutable objects for others, without being able to read them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fractal.api.backend import Backend, C, Offer


@dataclass(frozen=True, slots=True, order=True)
class ObjectInfo:
    """An object as listed."""

    key: str
    size: int
    """Bytes."""


class Store(Protocol):
    """Create-only objects. Keys are 1-400 characters of [a-z0-9._/-]; no part is empty, `.` or `..`.

    One key may be a prefix of another at a slash (`a/1` and `a/1/base` both exist). Nothing is ever overwritten.
    """

    @property
    def staleness(self) -> float:
        """Seconds by which a listing or a read may lag behind an acknowledged create (S of docs/explanation/failover.md)."""

    @property
    def fencing(self) -> bool:
        """Whether `put_new` is atomic: for each key exactly one creator ever succeeds, and readers see whole objects."""

    @property
    def weakness(self) -> str:
        """Why it cannot fence, for people; empty if it can."""
        return ""

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Create the object, whole and durable when this returns; half-written ones are never seen by anybody.

        Raises Conflict if the key exists, Ambiguous if it may have been created, BackendError (retryable or not).
        """

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The object's bytes from `offset`, in chunks of at most 1 MiB. Raises NotFound before the first chunk."""

    async def head(self, key: str) -> ObjectInfo:
        """Raises NotFound."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with `prefix`, sorted by key."""

    async def delete(self, key: str) -> None:
        """Delete; nothing if absent. Raises NotSupported on an append-only store."""


@runtime_checkable
class SupportsLinks(Protocol):
    """Keeps objects as files of this device: what is on its disk already is not copied, in or out."""

    async def adopt(self, key: str, path: Path) -> bool:
        """As `put_new` of the file's bytes, by giving the file a second name; nobody writes to it any more.

        False, and nothing was done, where that is impossible, e.g. across file systems. Raises as `put_new`.
        """

    async def lend(self, key: str, path: Path) -> bool:
        """Give the object's file the name `path` as well, to be read only; False as in `adopt`. Raises NotFound, BackendError."""


class StoreOffer(Offer):
    """A `StoreBackend` of any config type: what `fractal_stores` yields."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBackend(StoreOffer, Backend[Store, C]):
    """Offers a `Store`."""
