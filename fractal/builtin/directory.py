"""The `directory` store: objects are files, and `link(2)` of a finished temporary file is the atomic create.

The layout is that of `fractal.api.store_files`. Every folder is reached from the one above by its descriptor and without
following links, so that a symbolic link planted in the store leads nowhere. Several processes, also on several machines,
may use one folder at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.errors import InvalidInput, Misconfigured
from fractal.api.names import check_key, check_prefix
from fractal.api.store import ObjectInfo, Store
from fractal.builtin.blocking import explain, finish
from fractal.builtin.directory_config import DirectoryConfig
from fractal.builtin.directory_files import Reader, Upload, delete_object, prepare, scan, sweep

T = TypeVar("T")

CHUNK = 1 << 20
"""Bytes per chunk that `get` yields."""


class DirectoryStore(Store):
    """A `Store` over a folder. Open it by `open_directory`."""

    def __init__(self, context: Context, config: DirectoryConfig) -> None:
        self._context = context
        self._path = config.path
        self._staleness = config.staleness

    @property
    def staleness(self) -> float:
        """Seconds, as configured."""
        return self._staleness

    @property
    def fencing(self) -> bool:
        """True: `link(2)` has one winner. A file system without hard links is refused when the store is opened."""
        return True

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Create the object; whole, in its folder and on disk when this returns."""
        upload = Upload(self._path, check_key(key), self._context.entropy.bytes(16).hex())
        try:
            await self._do(key, upload.begin)
            if isinstance(data, bytes):
                await self._do(key, upload.write, data)
            else:
                async for chunk in data:
                    await self._do(key, upload.write, chunk)
            await self._do(key, upload.commit)
        finally:
            await self._do(key, upload.discard)

    async def adopt(self, key: str, path: Path) -> bool:
        """As `SupportsLinks.adopt`: its temporary file is the one that is there already."""
        upload = Upload(self._path, check_key(key), self._context.entropy.bytes(16).hex())
        try:
            if not await self._do(key, upload.adopt, path):
                return False
            await self._do(key, upload.commit)
        finally:
            await self._do(key, upload.discard)
        return True

    async def lend(self, key: str, path: Path) -> bool:
        """As `SupportsLinks.lend`."""
        return await self._do(key, Reader(self._path, check_key(key)).lend, path)

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The object's bytes in chunks of at most 1 MiB."""
        parts = check_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput(
                f"{self._where(key)}: offset {offset}, length {length}: neither may be negative"
            )
        reader = Reader(self._path, parts)
        try:
            await self._do(key, reader.open)
            left = reader.size - offset if length is None else min(length, reader.size - offset)
            while left > 0:
                chunk = await self._do(key, reader.read, offset, min(left, CHUNK))
                offset += len(chunk)
                left -= len(chunk)
                yield chunk
        finally:
            reader.close()

    async def head(self, key: str) -> ObjectInfo:
        """The object's size."""
        reader = Reader(self._path, check_key(key))
        try:
            await self._do(key, reader.open)
            return ObjectInfo(key, reader.size)
        finally:
            reader.close()

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object below `prefix`, sorted. One scan of the folders below; what is created meanwhile may be missing."""
        check_prefix(prefix)
        for info in await self._do(prefix or "(all)", scan, self._path, prefix):
            yield info

    async def delete(self, key: str) -> None:
        """Delete the object, and the folders that it leaves empty."""
        await self._do(key, delete_object, self._path, check_key(key))

    def _where(self, key: str) -> str:
        return f"store directory {self._path}: {key}"

    async def _do(self, key: str, function: Callable[..., T], /, *arguments: object) -> T:
        try:
            return await finish(self._context.workers, function, *arguments)
        except OSError as error:
            raise explain(self._where(key), error) from error


@asynccontextmanager
async def open_directory(context: Context, config: DirectoryConfig) -> AsyncIterator[DirectoryStore]:
    """Open the store, making it if the folder is empty, and remove what writers left that died over an hour ago."""
    if not config.path.is_absolute():
        raise Misconfigured("path", f"{config.path} must be absolute")
    if config.staleness < 0:
        raise Misconfigured("staleness", f"{config.staleness} must not be negative")
    try:
        await finish(context.workers, prepare, config.path, context.entropy.bytes(16).hex())
        for name in await finish(context.workers, sweep, config.path, context.clock.wall_ms() // 1000 - 3600):
            context.logger.info("store directory %s: removed the unfinished upload %s", config.path, name)
    except OSError as error:
        raise explain(f"store directory {config.path}", error) from error
    yield DirectoryStore(context, config)


async def probe_directory(config: DirectoryConfig) -> Probe:
    """Whether the folder can be used, without touching it."""
    await asyncio.sleep(0)
    path = config.path if config.path.exists() else config.path.parent
    if not path.is_dir():
        return Probe(ready=False, detail=f"{path} does not exist: make it, or mount the disk that holds it")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Probe(ready=False, detail=f"{path} is not writable: check its owner and mode")
    return Probe(ready=True, detail=f"folder {config.path}")
