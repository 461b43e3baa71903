"""A real ZFS with pools in files for all tests; everything goes in the end, also after failure."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from fractal_zfs.config import ZfsConfig
from fractal_zfs.snapshotter import ZfsSnapshotter, open_zfs
from fractal_zfs.testing import Pool, missing, pool, running

from fractal.testing.context import real_context

Opener = Callable[..., AbstractAsyncContextManager[ZfsSnapshotter]]


@pytest.fixture(scope="session")
def zfs() -> Iterator[None]:
    """Skips without ZFS; fails instead with CI=true."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, which CI does not allow")
        pytest.skip(reason)
    with running():
        yield


@pytest.fixture(scope="session")
def pools(zfs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Pool]]:
    """Makes pools for the whole session."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(pool(tmp_path_factory.mktemp("pool")))


@pytest.fixture(scope="session")
def disk(pools: Callable[[], Pool]) -> Pool:
    """The pool that most tests share."""
    return pools()


@pytest.fixture(scope="session")
def other_disks(pools: Callable[[], Pool]) -> tuple[Pool, Pool]:
    """Two more, for devices that share nothing."""
    return pools(), pools()


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    """Opens snapshotters in datasets of a pool, each as a device of its own."""
    numbers = count()

    @asynccontextmanager
    async def opened(disk: Pool, name: str = "") -> AsyncIterator[ZfsSnapshotter]:
        # Short: names of volumes and snapshots take the rest.
        name = name or f"{abs(hash(tmp_path.name)):x}-{next(numbers)}"
        async with (
            real_context(tmp_path / name) as context,
            open_zfs(context, ZfsConfig(dataset=f"{disk.name}/{name}")) as snapshotter,
        ):
            yield snapshotter

    return opened


@pytest.fixture
async def snapshotter(disk: Pool, opener: Opener) -> AsyncIterator[ZfsSnapshotter]:
    """One on the shared pool, empty."""
    async with opener(disk) as opened:
        yield opened
