"""What the plugin offers. Imports nothing heavy: it is read whenever the plugin is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from fractal.api.backend import Probe
from fractal.api.context import Context
from fractal.api.snapshot import SnapshotBackend, SnapshotOffer, Snapshotter
from fractal.hookspecs import hookimpl
from fractal_zfs.config import ZfsConfig


@hookimpl
def fractal_snapshotters() -> Iterable[SnapshotOffer]:
    """`zfs`."""
    yield SnapshotBackend(
        name="zfs",
        summary="Instant snapshots by ZFS, in a dataset of a pool that is there.",
        config=ZfsConfig,
        open=_open,
        probe=_probe,
        capabilities=frozenset({"SupportsClone"}),
        instant=True,
    )


def _open(context: Context, config: ZfsConfig) -> AbstractAsyncContextManager[Snapshotter]:
    from fractal_zfs.snapshotter import open_zfs

    return open_zfs(context, config)


async def _probe(config: ZfsConfig) -> Probe:
    from fractal_zfs.place import probe

    return await probe(config)
