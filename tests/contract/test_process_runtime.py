"""The process runtime passes the runtimes' contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.api.runtime import Runtime
from fractal.testing.process_bed import ProcessContract, opened


class TestProcessRuntime(ProcessContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Runtime]:
        async with opened(tmp_path, self.settings) as runtime:
            yield runtime
