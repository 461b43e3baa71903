"""A random life on real btrfs: merges are sends between snapshots far apart, and every listed moment comes back elsewhere."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import open_btrfs

from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.testing.context import real_context
from fractal.testing.thinned_life import Life, random_steps


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_moment_that_is_listed_comes_back(
    seed: int, disk: Path, other_disks: tuple[Path, Path], tmp_path: Path
) -> None:
    here, there = (place / tmp_path.name for place in (disk, other_disks[0]))
    for path in (here, there):
        path.mkdir()
    async with (
        real_context(tmp_path / "one") as one,
        real_context(tmp_path / "two") as two,
        open_btrfs(one, BtrfsConfig(path=here)) as first,
        open_btrfs(two, BtrfsConfig(path=there)) as second,
        open_directory(one, DirectoryConfig(path=tmp_path / "store")) as store,
    ):
        life = Life(context=one, store=store, here=first, there=second, folder=tmp_path)
        await life.live(random_steps(Random(seed), 120))
        assert life.thinned > 5
