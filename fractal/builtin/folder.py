"""The `folder` catalog: one manifest per file, `NAME.yml`. What the files say is untrusted text."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fractal.api.catalog import Catalog, CatalogItem
from fractal.api.context import Context
from fractal.api.errors import BackendError, NotFound
from fractal.builtin.folder_config import FolderConfig

BUNDLED = Path(__file__).parent.parent / "catalog"
MANIFEST_LIMIT = 1 << 20
"""Bytes; a larger file is not read."""
ITEMS_LIMIT = 10_000
SUFFIX = ".yml"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class FolderCatalog(Catalog):
    """Reads the folder anew at every call, so an edited manifest is on offer at once. What an app is called, its manifest
    says."""

    def __init__(self, path: Path, logger: logging.Logger) -> None:
        self._path = path
        self._logger = logger

    async def items(self) -> Sequence[CatalogItem]:
        """Everything on offer, sorted by name. Raises BackendError if the folder cannot be read."""
        return await asyncio.to_thread(self._items)

    async def manifest(self, name: str) -> str:
        """The manifest's text. Raises NotFound, BackendError."""
        return await asyncio.to_thread(self._read, name)

    def _items(self) -> list[CatalogItem]:
        try:
            names = sorted(path.name for path in self._path.iterdir())[:ITEMS_LIMIT]
        except OSError as error:
            raise BackendError(f"catalog folder {self._path}: {error.strerror}") from error
        found = []
        for name in (n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX)):
            try:
                self._read(name)
                found.append(CatalogItem(name=name, title=""))
            except BackendError as error:
                self._logger.warning("left out of the catalog: %s", error)
        return found

    def _read(self, name: str) -> str:
        path = self._path / f"{name}{SUFFIX}"
        if not _NAME.fullmatch(name):
            raise NotFound(f"no app {name[:80]!r} in {self._path}: names are 1-63 characters of [a-z0-9._-]")
        try:
            # Neither a link that leads elsewhere nor a pipe that never ends.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"no app {name!r} in {self._path}") from error
        except OSError as error:
            reason = "is a link; put the file itself there" if error.errno == errno.ELOOP else error.strerror
            raise BackendError(f"{path}: {reason}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise BackendError(f"{path}: not a file")
        with os.fdopen(handle, "rb") as file:
            try:
                data = file.read(MANIFEST_LIMIT + 1)
            except OSError as error:
                raise BackendError(f"{path}: {error.strerror}", retryable=True) from error
        if len(data) > MANIFEST_LIMIT:
            raise BackendError(f"{path}: larger than {MANIFEST_LIMIT} bytes")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BackendError(f"{path}: not UTF-8 at byte {error.start}") from error


@asynccontextmanager
async def open_folder(context: Context, config: FolderConfig) -> AsyncIterator[Catalog]:
    """Open the configured folder, or the bundled one."""
    yield FolderCatalog(config.path or BUNDLED, context.logger)
