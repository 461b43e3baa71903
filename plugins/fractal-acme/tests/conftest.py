"""A real authority, and a gateway and devices of the `direct` transport through which it looks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fractal_acme.authority import AcmeAuthority, open_acme
from fractal_acme.config import AcmeConfig
from fractal_acme.testing import Pebble, missing, pebble

from fractal.testing.context import real_context
from fractal.testing.direct_bed import direct_bed
from fractal.testing.transport_parts import Bed


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    async with direct_bed(tmp_path / "bed") as made:
        yield made


@pytest.fixture
def ca(bed: Bed, tmp_path: Path) -> Iterator[Pebble]:
    """Skips without the real part; fails instead with CI=true."""
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with pebble(tmp_path / "ca", tls_port=bed.https[1]) as started:
        yield started


@pytest.fixture
async def authority(ca: Pebble, tmp_path: Path) -> AsyncIterator[AcmeAuthority]:
    config = AcmeConfig(directory=ca.directory, ca_file=ca.ca_file, accept_terms=True)
    async with real_context(tmp_path / "agent") as context, open_acme(context, config) as opened:
        assert isinstance(opened, AcmeAuthority)
        yield opened
