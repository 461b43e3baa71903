"""The `wireguard` transport against the contract: a gateway and two homes behind NATs, each in a namespace of its own."""

from __future__ import annotations

import pytest
from fractal_wireguard.testing import WireguardBed

from fractal.testing.transport import TransportContract
from fractal.testing.transport_parts import Bed


class TestWireguard(TransportContract):
    """The real thing."""

    capabilities = frozenset({"SupportsChallenge", "SupportsProbe"})

    @pytest.fixture
    def backend(self, bed: WireguardBed) -> Bed:
        return bed
