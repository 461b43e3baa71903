"""The coordination contract against a real Synapse."""

from __future__ import annotations

import pytest
from fractal_matrix.testing import Devices

from fractal.testing.coordination import CoordinationContract
from fractal.testing.coordination_parts import ATTIC, LogBed


class TestMatrixWithOwnAccounts(CoordinationContract):
    """The attic's member is logged in; the others make accounts with what the invitation carries."""

    @pytest.fixture
    def backend(self, devices: Devices, anna: str) -> LogBed:
        devices.log_in(ATTIC, user=anna)
        return LogBed(devices.open)
