"""Snapshot kind: keeps volume roots, takes atomic read-only snapshots of them, and turns them into streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fractal.api.backend import Backend, C, Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A read-only moment of a volume root on this device."""

    volume: str
    name: str
    path: Path
    """Where it can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes of the file system that holds the volumes."""

    total: int
    free: int


class Snapshotter(Protocol):
    """Volume and snapshot names are chosen by the agent: 1-120 characters of [a-z0-9._-], never `.` or `..`.

    Calls on different volumes may run at once; on one volume only `send` runs beside others. Every call is idempotent
    where its words allow it and leaves, when cancelled or killed at any point, either the old or the new state plus leftovers that
    the next `open` of the backend removes.
    """

    @property
    def format(self) -> str:
        """Name and version of the stream that `send` yields, e.g. `portable/1`, `btrfs-send/1`."""

    @property
    def receives(self) -> frozenset[str]:
        """Formats that `receive` takes."""

    async def create_root(self, volume: str) -> Path:
        """An empty writable volume root; the existing one if there is one."""

    async def root(self, volume: str) -> Path | None:
        """The writable root, None if there is none."""

    async def delete_root(self, volume: str) -> None:
        """Delete the writable root (its snapshots stay)."""

    async def set_aside(self, volume: str, name: str) -> None:
        """Turn the writable root into read-only snapshot `name` and have no root any more. Nothing if there is none."""

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        """An atomic read-only snapshot of the root, durable when this returns. Raises NotFound, Conflict."""

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        """Complete snapshots, oldest first."""

    async def volumes(self) -> Sequence[str]:
        """Every volume that has a root or a snapshot."""

    async def delete(self, volume: str, name: str) -> None:
        """Delete a snapshot; nothing if it is absent."""

    def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        """The snapshot as a stream of chunks of at most 1 MiB; with `parent`, only what changed since. Raises NotFound."""

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        """Make read-only snapshot `name` out of a stream, all or nothing.

        `stream_format` is the sender's `format`; `parent` is the local snapshot that an incremental stream was sent against. Hostile bytes never reach outside
        the new snapshot. Raises Corrupt on a damaged stream, NotSupported for an unknown format, NotFound for `parent`.
        """

    async def checkout(self, volume: str, name: str) -> Path:
        """Make a writable root out of a snapshot, O(1) where the file system can. Raises Conflict if a root exists."""

    async def unchanged(self, volume: str, name: str) -> bool:
        """True only if the root certainly equals snapshot `name`; False when in doubt. Cheap."""

    async def usage(self) -> Usage:
        """Room on the file system below."""


@runtime_checkable
class SupportsClone(Protocol):
    """Copies a snapshot into another volume without copying its data."""

    async def clone(self, volume: str, name: str, target: str) -> Path:
        """A writable root of volume `target` out of a snapshot of `volume`. Raises Conflict, NotFound."""


@runtime_checkable
class SupportsLean(Protocol):
    """Leaves out of a stream what its receiver has in the parent already, for streams that are kept long: it costs more time."""

    def send_lean(self, volume: str, name: str, parent: str) -> AsyncIterator[bytes]:
        """As `send` with a parent, in the same format and to the same effect, and never larger. Raises NotFound."""


class SnapshotOffer(Offer):
    """A `SnapshotBackend` of any config type: what `fractal_snapshotters` yields."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotBackend(SnapshotOffer, Backend[Snapshotter, C]):
    """Offers a `Snapshotter`."""

    instant: bool = False
    """True: `snapshot` is atomic while the app runs. False: the agent pauses the app during it."""
