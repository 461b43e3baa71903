"""The `example` store: each object is one file; its name is the key in hexadecimal, split into short folders.

`link(2)` gives what a store stands on: of several creators of one key exactly one succeeds, and nobody ever sees half an
object.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from fractal.api.context import Context, Workers
from fractal.api.errors import BackendError, Conflict, InvalidInput, NotFound
from fractal.api.names import check_key, check_prefix
from fractal.api.store import ObjectInfo, Store
from fractal_example.config import ExampleConfig

CHUNK = 1 << 20
PART = 100
"""Bytes of a key per folder level: file names are short everywhere."""


class ExampleStore(Store):
    """Blocking calls go through `Workers`."""

    def __init__(self, path: Path, workers: Workers) -> None:
        self._objects = path / "objects"
        self._new = path / "new"
        self._workers = workers

    @property
    def staleness(self) -> float:
        """A local folder is never behind."""
        return 0.0

    @property
    def fencing(self) -> bool:
        """`link` is atomic."""
        return True

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Write beside, flush, then link into place."""
        target = self._file(key)
        scratch = self._new / uuid.uuid4().hex
        try:
            with scratch.open("xb") as file:
                if isinstance(data, bytes):
                    await self._workers.run(file.write, data)
                else:
                    async for chunk in data:
                        await self._workers.run(file.write, chunk)
                await self._workers.run(_flush, file)
            await self._workers.run(_link, scratch, target)
        except FileExistsError as error:
            raise Conflict(f"object {key} exists") from error
        except OSError as error:
            raise BackendError(f"object {key}: {error.strerror}", retryable=True) from error
        finally:
            scratch.unlink(missing_ok=True)

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Read in chunks."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput("offset and length must not be negative")
        try:
            file = self._file(key).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"no object {key}") from error
        with file:
            file.seek(offset)
            left = length
            while left is None or left > 0:
                chunk = await self._workers.run(file.read, CHUNK if left is None else min(CHUNK, left))
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk

    async def head(self, key: str) -> ObjectInfo:
        """One stat."""
        try:
            return ObjectInfo(key, self._file(key).stat().st_size)
        except FileNotFoundError as error:
            raise NotFound(f"no object {key}") from error

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Walk, then sort."""
        check_prefix(prefix)
        for info in await self._workers.run(_everything, self._objects):
            if info.key.startswith(prefix):
                yield info

    async def delete(self, key: str) -> None:
        """Unlink."""
        self._file(key).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        check_key(key)
        parts = [key[i : i + PART].encode().hex() for i in range(0, len(key), PART)]
        return self._objects.joinpath(*parts[:-1], parts[-1] + ".o")


@asynccontextmanager
async def open_example(context: Context, config: ExampleConfig) -> AsyncIterator[Store]:
    """Make the folders, give the store, and leave nothing open."""
    try:
        for name in ("objects", "new"):
            (config.path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{config.path}: {error.strerror}") from error
    yield ExampleStore(config.path, context.workers)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _link(scratch: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.link(scratch, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _everything(objects: Path) -> list[ObjectInfo]:
    found = []
    for file in objects.rglob("*.o"):
        names = file.relative_to(objects).parts
        key = b"".join(bytes.fromhex(name.removesuffix(".o")) for name in names).decode()
        found.append(ObjectInfo(key, file.stat().st_size))
    return sorted(found)
