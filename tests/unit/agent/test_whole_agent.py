"""Whole agents with real guards, processes, stores and logs: what one of them does after a mishap."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.testing.agents import Bed, bed, manifest, service


@pytest.fixture
async def beds(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        yield made


async def test_an_app_is_installed_and_runs(beds: Bed) -> None:
    await beds.start("Attic")
    await beds.found("Attic")
    await beds.install("Attic")
    assert await beds.starts("Attic") == ["one"]
