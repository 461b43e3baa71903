"""What the plugin offers. Imports nothing heavy: it is read whenever the plugin is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.snapshot import SnapshotBackend, SnapshotOffer, Snapshotter
from fractal.hookspecs import hookimpl
from fractal_btrfs.config import BtrfsConfig


@hookimpl
def fractal_snapshotters() -> Iterable[SnapshotOffer]:
    """`btrfs`."""
    yield SnapshotBackend(
        name="btrfs",
        summary="Instant snapshots by btrfs, in a folder on it or in a pool file on any file system. Needs root.",
        config=BtrfsConfig,
        open=_open,
        probe=_probe,
        capabilities=frozenset({"SupportsClone", "SupportsLean"}),
        instant=True,
    )


def _open(context: Context, config: BtrfsConfig) -> AbstractAsyncContextManager[Snapshotter]:
    from fractal_btrfs.snapshotter import open_btrfs

    return open_btrfs(context, config)


async def _probe(config: BtrfsConfig) -> Probe:
    from fractal_btrfs.pool import probe

    return probe(config)
