"""The contract of snapshotters on a real ZFS."""

from __future__ import annotations

import pytest
from fractal_zfs.snapshotter import ZfsSnapshotter

from fractal.testing.snapshot import SnapshotContract

pytestmark = pytest.mark.timeout(600)


class TestZfs(SnapshotContract):
    """Everything that a snapshotter must do."""

    capabilities = frozenset({"SupportsClone"})
    histories = 2  # each step is several commands of ZFS

    @pytest.fixture
    async def backend(self, snapshotter: ZfsSnapshotter) -> ZfsSnapshotter:
        """An empty snapshotter."""
        return snapshotter
