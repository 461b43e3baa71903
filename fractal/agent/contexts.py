"""Contexts of builds on this device, as tar archives, from when they come until their image is built."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from fractal.api.build_context import MAX_BYTES, MAX_FILES
from fractal.api.context import Clock, Entropy, Workers
from fractal.api.errors import InvalidInput, NotFound

MAX_ARCHIVE = MAX_BYTES + MAX_FILES * 2048
"""Bytes of a context's files, and of what an archive has around them."""
KEPT = 3600.0
"""Seconds for which one is kept that nobody comes back for; it goes when the next one comes, or the agent starts again."""
CHUNK = 1 << 18
SUFFIX = ".tar"


class Contexts:
    """Files in a folder of their own, by ids; none outlives this object's use, nor a restart."""

    def __init__(self, folder: Path, clock: Clock, entropy: Entropy, workers: Workers) -> None:
        self._folder = folder
        self._clock = clock
        self._entropy = entropy
        self._workers = workers
        self._came: dict[str, float] = {}
        for left in folder.glob(f"*{SUFFIX}"):
            left.unlink()

    async def receive(self, chunks: AsyncIterator[bytes]) -> str:
        """Keep what comes; its id. Raises InvalidInput if it is too large."""
        self._forget_old()
        name, size = self._entropy.bytes(16).hex(), 0
        self._came[name] = self._clock.boottime()
        try:
            with self._open(name) as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > MAX_ARCHIVE:
                        raise InvalidInput(f"the build context is larger than {MAX_ARCHIVE} bytes")
                    await self._workers.run(file.write, chunk)
        except BaseException:
            self.discard(name)
            raise
        return name

    async def make(self, write: Callable[[IO[bytes]], Awaitable[object]]) -> str:
        """Keep what `write` writes; its id."""
        self._forget_old()
        name = self._entropy.bytes(16).hex()
        self._came[name] = self._clock.boottime()
        try:
            with self._open(name) as file:
                await write(file)
        except BaseException:
            self.discard(name)
            raise
        return name

    @asynccontextmanager
    async def taken(self, name: str) -> AsyncIterator[tuple[int, Callable[[], AsyncIterator[bytes]]]]:
        """The size of one and what reads it; afterwards it is gone. Raises NotFound."""
        if name not in self._came:
            raise NotFound("the build context is not on this device any more: run the command again")
        try:
            with self._path(name).open("rb") as file:
                yield os.fstat(file.fileno()).st_size, lambda: self._read(file)
        finally:
            self.discard(name)

    async def _read(self, file: IO[bytes]) -> AsyncIterator[bytes]:
        while chunk := await self._workers.run(file.read, CHUNK):
            yield chunk

    def _open(self, name: str) -> IO[bytes]:
        return os.fdopen(os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    def discard(self, name: str) -> None:
        """Nothing to do if it is gone."""
        self._came.pop(name, None)
        self._path(name).unlink(missing_ok=True)

    def _forget_old(self) -> None:
        now = self._clock.boottime()
        for name in [name for name, came in self._came.items() if now - came > KEPT]:
            self.discard(name)
