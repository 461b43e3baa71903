"""The contract of snapshotters on a real btrfs."""

from __future__ import annotations

import pytest
from fractal_btrfs.snapshotter import BtrfsSnapshotter

from fractal.testing.snapshot import SnapshotContract


class TestBtrfs(SnapshotContract):
    """Everything that a snapshotter must do."""

    capabilities = frozenset({"SupportsClone", "SupportsLean"})

    @pytest.fixture
    async def backend(self, snapshotter: BtrfsSnapshotter) -> BtrfsSnapshotter:
        """An empty snapshotter."""
        return snapshotter
