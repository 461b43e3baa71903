"""Namespaces for all tests of one file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fractal_wireguard.testing import (
    Streets,
    WireguardBed,
    missing,
    streets,
    wireguard_bed,
    wireguard_town,
)

from fractal.testing.transport_parts import Town


@pytest.fixture(scope="module")
def made_streets() -> Iterator[Streets]:
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with streets() as made:
        yield made


@pytest.fixture
async def bed(tmp_path: Path, made_streets: Streets) -> AsyncIterator[WireguardBed]:
    async with wireguard_bed(tmp_path, made_streets) as bed:
        yield bed


@pytest.fixture
async def town(bed: WireguardBed) -> AsyncIterator[Town]:
    async with wireguard_town(bed) as town:
        yield town
