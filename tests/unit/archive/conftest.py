"""The world that the archive's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractal.testing.archive_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Nothing stored yet."""
    return World(tmp_path)
