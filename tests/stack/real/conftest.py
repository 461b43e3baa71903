"""A world for each test that wants one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.stack.real.world import World, missing, world


@pytest.fixture
def real() -> Iterator[World]:
    """An empty world; skips where there can be none, fails instead with CI=true."""
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with world() as made:
        yield made
