"""Every builtin snapshotter against the contract of snapshotters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.api.snapshot import Snapshotter
from fractal.builtin.copy.config import CopyConfig
from fractal.builtin.copy.snapshotter import open_copy
from fractal.testing.context import real_context
from fractal.testing.snapshot import SnapshotContract


class TestCopy(SnapshotContract):
    capabilities = frozenset({"SupportsClone"})

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Snapshotter]:
        async with real_context(tmp_path) as context, open_copy(context, CopyConfig()) as snapshotter:
            yield snapshotter
