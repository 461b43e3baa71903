"""The device's snapshotter, asked one thing at a time for each volume, as its contract promises a backend."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fractal.api.snapshot import Snapshot, Snapshotter, SupportsLean, Usage


class OneAtATime(Snapshotter):
    """An app's steps and its saver share a volume; only streams that are being sent run beside other calls."""

    def __init__(self, backend: Snapshotter) -> None:
        self._backend = backend
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def format(self) -> str:
        """As the backend has it."""
        return self._backend.format

    @property
    def receives(self) -> frozenset[str]:
        """As the backend has it."""
        return self._backend.receives

    async def create_root(self, volume: str) -> Path:
        """See `Snapshotter`, like all that follow."""
        async with self._locks[volume]:
            return await self._backend.create_root(volume)

    async def root(self, volume: str) -> Path | None:
        """As the backend has it."""
        async with self._locks[volume]:
            return await self._backend.root(volume)

    async def delete_root(self, volume: str) -> None:
        """As the backend does it."""
        async with self._locks[volume]:
            await self._backend.delete_root(volume)

    async def set_aside(self, volume: str, name: str) -> None:
        """As the backend does it."""
        async with self._locks[volume]:
            await self._backend.set_aside(volume, name)

    async def snapshot(self, volume: str, name: str) -> Snapshot:
        """As the backend does it."""
        async with self._locks[volume]:
            return await self._backend.snapshot(volume, name)

    async def snapshots(self, volume: str) -> Sequence[Snapshot]:
        """As the backend has it."""
        async with self._locks[volume]:
            return await self._backend.snapshots(volume)

    async def volumes(self) -> Sequence[str]:
        """As the backend has it."""
        return await self._backend.volumes()

    async def delete(self, volume: str, name: str) -> None:
        """As the backend does it."""
        async with self._locks[volume]:
            await self._backend.delete(volume, name)

    def send(self, volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        """As the backend does it, beside other calls: an upload may take hours and must hold up no snapshot."""
        return self._backend.send(volume, name, parent)

    def send_lean(self, volume: str, name: str, parent: str) -> AsyncIterator[bytes]:
        """As the backend does it, if it can; else as it sends everything."""
        if isinstance(self._backend, SupportsLean):
            return self._backend.send_lean(volume, name, parent)
        return self._backend.send(volume, name, parent)

    async def receive(
        self,
        volume: str,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        stream_format: str,
        parent: str | None = None,
    ) -> Snapshot:
        """As the backend does it."""
        async with self._locks[volume]:
            return await self._backend.receive(
                volume, name, chunks, stream_format=stream_format, parent=parent
            )

    async def checkout(self, volume: str, name: str) -> Path:
        """As the backend does it."""
        async with self._locks[volume]:
            return await self._backend.checkout(volume, name)

    async def unchanged(self, volume: str, name: str) -> bool:
        """As the backend has it."""
        async with self._locks[volume]:
            return await self._backend.unchanged(volume, name)

    async def usage(self) -> Usage:
        """As the backend has it."""
        return await self._backend.usage()
