"""Beds: what a test starts ends with it, also when it fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.stack.bed import Bed


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """An empty bed."""
    made = Bed(tmp_path)
    try:
        yield made
    finally:
        made.end()
