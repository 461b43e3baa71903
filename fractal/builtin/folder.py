"""The `folder` catalog: manifests in a folder, or in a checkout of a repository. What the files say is untrusted text, and only read.

    NAME.yml, NAME.yaml                   a manifest
    NAME/compose.yaml, docker-compose.yml a manifest in a folder of its own, with files beside it that it may name

Nothing is run, not even git: whoever has a checkout pulls it. Links are not followed, neither to files nor to folders.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from fractal.api.build_context import pack, why_not
from fractal.api.building import ImageBuild
from fractal.api.catalog import Catalog, CatalogItem
from fractal.api.context import Context
from fractal.api.errors import BackendError, NotFound
from fractal.builtin.folder_config import FolderConfig

BUNDLED = Path(__file__).parent.parent / "catalog"
MANIFEST_LIMIT = 1 << 20
"""Bytes; a larger file is not read."""
FILE_LIMIT = 1 << 17
"""Bytes of a file beside a manifest."""
ITEMS_LIMIT = 10_000
SUFFIXES = (".yml", ".yaml")
INSIDE = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
"""In the order in which Docker Compose looks for them."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ELSEWHERE = (errno.ELOOP, errno.ENOTDIR)


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
        return (await asyncio.to_thread(self._read, name))[1]

    async def files(self, name: str, paths: Sequence[str]) -> Mapping[str, str]:
        """Files beside the manifest of an app that has a folder of its own. Raises NotFound, BackendError."""
        return await asyncio.to_thread(self._files, name, paths)

    async def why_not(self, name: str, build: ImageBuild) -> str:
        """As `SupportsContexts.why_not`."""
        return await asyncio.to_thread(self._why_not, name, build)

    async def pack(self, name: str, build: ImageBuild, into: IO[bytes]) -> None:
        """As `SupportsContexts.pack`."""
        await asyncio.to_thread(pack, self._path, _beside(name, build), into)

    def _why_not(self, name: str, build: ImageBuild) -> str:
        if len(self._read(name)[0]) < 2:
            return f"{name} has no folder of its own in the catalog, where {build.context} could be"
        return why_not(self._path, _beside(name, build))

    def _items(self) -> list[CatalogItem]:
        try:
            with os.scandir(self._path) as entries:
                names = {_app(entry) for entry in entries}
        except OSError as error:
            raise BackendError(f"catalog folder {self._path}: {error.strerror}") from error
        found = []
        for name in sorted(names - {""})[:ITEMS_LIMIT]:
            try:
                self._read(name)
                found.append(CatalogItem(name=name, title=""))
            except NotFound:
                continue  # a folder without a manifest
            except BackendError as error:
                self._logger.warning("left out of the catalog: %s", error)
        return found

    def _read(self, name: str) -> tuple[tuple[str, ...], str]:
        """Path below the folder, and text."""
        if not _NAME.fullmatch(name):
            raise NotFound(
                f"no app {name[:80]!r} in {self._path}: names are 1-63 characters of [A-Za-z0-9._-]"
            )
        for parts in (*((f"{name}{s}",) for s in SUFFIXES), *((name, inside) for inside in INSIDE)):
            with suppress(NotFound):
                return parts, self._text(parts, MANIFEST_LIMIT)
        raise NotFound(f"no app {name!r} in {self._path}")

    def _files(self, name: str, paths: Sequence[str]) -> dict[str, str]:
        at, _ = self._read(name)
        found: dict[str, str] = {}
        for path in paths if len(at) == 2 else ():
            parts = tuple(part for part in path.split("/") if part not in ("", "."))
            if not parts or ".." in parts or path.startswith(("/", "~")) or "\0" in path:
                continue
            try:
                found[path] = self._text((name, *parts), FILE_LIMIT)
            except NotFound:
                continue  # what is needed and not there, the manifest's check tells
            except BackendError as error:
                self._logger.warning("left out of the app %s: %s", name, error)
        return found

    def _text(self, parts: tuple[str, ...], limit: int) -> str:
        """Text of a regular file below the folder. Raises NotFound, BackendError for anything else in its place."""
        path = self._path.joinpath(*parts)
        data = _bytes(self._path, parts, path, limit)
        if len(data) > limit:
            raise BackendError(f"{path}: larger than {limit} bytes")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BackendError(f"{path}: not UTF-8 at byte {error.start}") from error


def _beside(name: str, build: ImageBuild) -> ImageBuild:
    """The build seen from the catalog's folder: the app's own is opened like those below it, and is no link."""
    return replace(build, context=f"{name}/{build.context}")


def _app(entry: os.DirEntry[str]) -> str:
    """Name of the app that an entry may be the manifest or the folder of, or ""."""
    path = Path(entry.name)
    name = path.stem if path.suffix in SUFFIXES else ""
    if not name and entry.is_dir(follow_symlinks=False):
        name = entry.name
    return name if _NAME.fullmatch(name) else ""


def _bytes(folder: Path, parts: tuple[str, ...], path: Path, limit: int) -> bytes:
    """Read a file step by step: neither a link that leads elsewhere nor a pipe that never ends."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    handle = -1
    try:
        handle = os.open(folder, flags | os.O_DIRECTORY)
        for number, part in enumerate(parts, 1):
            below = flags | os.O_NOFOLLOW | (os.O_DIRECTORY if number < len(parts) else 0)
            above, handle = handle, os.open(part, below, dir_fd=handle)
            os.close(above)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BackendError(f"{path}: not a file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(limit + 1)
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}") from error
    except OSError as error:
        if error.errno == errno.ENOTDIR and not path.parent.is_symlink():
            raise NotFound(f"no file {path}") from error
        link = error.errno in _ELSEWHERE
        raise BackendError(
            f"{path}: {'is a link; put the file itself there' if link else error.strerror}"
        ) from error
    finally:
        if handle >= 0:
            os.close(handle)


@asynccontextmanager
async def open_folder(context: Context, config: FolderConfig) -> AsyncIterator[Catalog]:
    """Open the configured folder, or the bundled one."""
    yield FolderCatalog(config.path or BUNDLED, context.logger)
