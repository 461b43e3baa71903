"""Terminals where there can be none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.api.errors import NotFound, NotSupported
from fractal.testing.agents import Bed, bed


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        await made.install("Attic")
        yield made


async def test_who_has_no_terminals_says_so_and_what_to_do(attic: Bed) -> None:
    with pytest.raises(NotSupported, match="without --tty"):
        await attic.call("Attic", "app.terminal", app="test", argv=["sh"])
    with pytest.raises(NotFound, match="no such terminal"):
        await attic.call("Attic", "app.type", terminal="none", data="")
