"""The world that the archive's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractal.testing.archive_world import Device, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Nothing stored yet."""
    return World(tmp_path)


@pytest.fixture
def attic(world: World) -> Device:
    """The owner; there is one mirror."""
    world.add_mirror("Cellar")
    return world.device("Attic")
