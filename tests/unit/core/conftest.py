"""The group that tests of the fold share; some have one of their own."""

from __future__ import annotations

import pytest

from fractal.core.model import Role
from fractal.testing.group import World


@pytest.fixture
def world() -> World:
    world = World.founded()
    world.join("kitchen", "bob", Role.ADMIN)
    world.join("den", "cat")
    world.install("a" * 16)
    return world
