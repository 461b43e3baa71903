"""The soak runs on the beds of the stack tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.stack.bed import Bed
from tests.stack.real.world import World, missing, world


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """An empty bed."""
    made = Bed(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def real() -> Iterator[World]:
    """An empty world."""
    if reason := missing():
        pytest.skip(reason)
    with world() as made:
        yield made
