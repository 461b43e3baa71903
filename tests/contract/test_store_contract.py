"""Every builtin store against the contract of stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fractal.api.store import Store
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.builtin.memory_store import MemoryObjects, MemoryStoreConfig, open_memory_store
from fractal.testing.context import real_context
from fractal.testing.store import StoreContract

Peek = Callable[[str], Awaitable[bytes | None]]


class TestMemory(StoreContract):
    @pytest.fixture
    def objects(self) -> MemoryObjects:
        return MemoryObjects()

    @pytest.fixture
    async def backend(self, tmp_path: Path, objects: MemoryObjects) -> AsyncIterator[Store]:
        async with (
            real_context(tmp_path) as context,
            open_memory_store(context, MemoryStoreConfig(objects=objects)) as store,
        ):
            yield store

    @pytest.fixture
    async def second(self, tmp_path: Path, objects: MemoryObjects) -> AsyncIterator[Store]:
        async with (
            real_context(tmp_path) as context,
            open_memory_store(context, MemoryStoreConfig(objects=objects)) as store,
        ):
            yield store

    @pytest.fixture
    def peek(self, objects: MemoryObjects) -> Peek:
        async def look(key: str) -> bytes | None:
            return objects.by_key.get(key)

        return look


class TestDirectory(StoreContract):
    capabilities = frozenset({"SupportsLinks"})

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Store]:
        config = DirectoryConfig(path=tmp_path / "store")
        async with real_context(tmp_path) as context, open_directory(context, config) as store:
            yield store

    @pytest.fixture
    async def second(self, tmp_path: Path) -> AsyncIterator[Store]:
        config = DirectoryConfig(path=tmp_path / "store")
        async with real_context(tmp_path) as context, open_directory(context, config) as store:
            yield store

    @pytest.fixture
    def peek(self, tmp_path: Path) -> Peek:
        async def look(key: str) -> bytes | None:
            file = tmp_path / "store" / "objects" / (key + "=")
            return file.read_bytes() if file.exists() else None

        return look
