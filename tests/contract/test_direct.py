"""The `direct` transport against the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.testing.direct_bed import direct_bed
from fractal.testing.transport import TransportContract
from fractal.testing.transport_parts import Bed


class TestDirect(TransportContract):
    """The real thing, three transports on loopback."""

    capabilities = frozenset({"SupportsChallenge", "SupportsProbe"})

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Bed]:
        async with direct_bed(tmp_path) as bed:
            yield bed
