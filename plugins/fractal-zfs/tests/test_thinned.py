"""A random life on real ZFS: merges are sends between snapshots far apart, and every listed moment comes back elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import pytest
from fractal_zfs.snapshotter import ZfsSnapshotter
from fractal_zfs.testing import Pool

from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.testing.context import real_context
from fractal.testing.thinned_life import Life, random_steps

pytestmark = pytest.mark.timeout(900)

Opener = Callable[..., AbstractAsyncContextManager[ZfsSnapshotter]]


async def test_every_moment_that_is_listed_comes_back(
    disk: Pool, other_disks: tuple[Pool, Pool], opener: Opener, tmp_path: Path
) -> None:
    async with (
        real_context(tmp_path / "one") as context,
        opener(disk) as first,
        opener(other_disks[0]) as second,
        open_directory(context, DirectoryConfig(path=tmp_path / "store")) as store,
    ):
        life = Life(context=context, store=store, here=first, there=second, folder=tmp_path)
        await life.live(random_steps(Random(1), 30))
        assert life.thinned
