"""The contract of stores on this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fractal_example.config import ExampleConfig
from fractal_example.store import open_example

from fractal.api.store import Store
from fractal.testing.context import real_context
from fractal.testing.store import StoreContract


class TestExample(StoreContract):
    """Everything that a store must do."""

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Store]:
        """An empty store."""
        config = ExampleConfig(path=tmp_path / "store")
        async with real_context(tmp_path) as context, open_example(context, config) as store:
            yield store
