"""Snapshots of one device go sealed through a store to another one's pool, are taken over there, and come back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs

from fractal.agent.notes import MemoryNotes
from fractal.agent.volumes import OneAtATime
from fractal.api.context import Context
from fractal.api.store import Store
from fractal.archive.archive import AppKeyring, Archive, Here, Rules
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.core.model import Point
from fractal.core.retention import HOUR_MS, Keep
from fractal.crypto.keys import DeviceKeys, app_keypair
from fractal.testing.archive_world import APP, GROUP
from fractal.testing.context import real_context
from fractal.testing.trees import Tree, alter, plant, tree, undo


def name_of(point: Point) -> str:
    return f"p-{point.epoch}-{point.number}"


class Keys:
    """Of one device and the app."""

    def __init__(self, context: Context) -> None:
        self.public, self.secret = app_keypair(context.entropy)
        self.device = DeviceKeys.generate(context.entropy)

    def archive(self, context: Context, store: Store) -> Archive:
        return Archive(
            group=GROUP,
            app=APP,
            store=store,
            keys=self.device,
            app_keys=AppKeyring(generation=1, public=self.public, secrets={1: self.secret}),
            group_key=lambda _: (1, bytes(32)),
            sign_key_of=lambda _: self.device.sign_public,
            clock=context.clock,
            entropy=context.entropy,
            workers=context.workers,
            spool=context.state_dir / "spool",
            notes=MemoryNotes(),
        )


@asynccontextmanager
async def two_devices(
    disk: Path, other: Path, folder: Path
) -> AsyncIterator[tuple[Context, Context, BtrfsSnapshotter, BtrfsSnapshotter, Store]]:
    """Each with a file system of its own, and the store between them."""
    here, there = (place / folder.name for place in (disk, other))
    for path in (here, there):
        path.mkdir()
    async with (
        real_context(folder / "one") as one,
        real_context(folder / "two") as two,
        open_btrfs(one, BtrfsConfig(path=here)) as first,
        open_btrfs(two, BtrfsConfig(path=there)) as second,
        open_directory(one, DirectoryConfig(path=folder / "store")) as store,
    ):
        yield one, two, first, second, store


async def test_a_chain_is_archived_taken_over_and_brought_home(
    disk: Path, other_disks: tuple[Path, Path], tmp_path: Path
) -> None:
    async with two_devices(disk, other_disks[0], tmp_path) as (one, two, first, second, store):
        keys = Keys(one)
        archives = keys.archive(one, store), keys.archive(two, store)
        root = await first.create_root("app")
        moments, last = {}, None
        for number, change in enumerate((plant, alter, undo), start=1):
            change(root)
            point = Point(epoch=1, number=number)
            await first.snapshot("app", name_of(point))
            moments[point] = tree(root)
            record = await archives[0].write(
                1,
                snapshotter=first,
                volume="app",
                name=name_of(point),
                wall_ms=number,
                parent=last,
                name_of=name_of,
            )
            last = record.point
        assert last is not None
        taken = await archives[1].restore(last, snapshotter=second, volume="app", name_of=name_of)
        assert tree(taken.path) == moments[last]
        root = await second.checkout("app", taken.name)
        (root / "after the takeover").write_bytes(b"new" * 50_000)
        point = Point(epoch=2, number=1)
        await second.snapshot("app", name_of(point))
        moments[point] = tree(root)
        record = await archives[1].write(
            2, snapshotter=second, volume="app", name=name_of(point), wall_ms=9, parent=last, name_of=name_of
        )
        assert record.point == point
        home = await archives[0].restore(point, snapshotter=first, volume="app", name_of=name_of)
        assert tree(home.path) == moments[point]
        for moment, state in moments.items():
            made = await archives[1].restore(moment, snapshotter=second, volume="again", name_of=name_of)
            assert tree(made.path) == state
        assert (await archives[0].verify(deep=True)).problems == ()


async def test_a_merge_beside_a_hole_is_written_and_smaller_than_its_ticks(
    disk: Path, other_disks: tuple[Path, Path], tmp_path: Path
) -> None:
    """A large SQLite file has a page that is never written; beside it the kernel's own send of an hour is as large as the file."""
    async with two_devices(disk, other_disks[0], tmp_path) as (one, _, first, second, store):
        keys, volumes, chance = Keys(one), OneAtATime(first), Random(1)
        archive = keys.archive(one, store)
        root = await volumes.create_root("app")
        with (root / "db").open("wb") as file:
            file.write(chance.randbytes(16 << 20))
            file.seek(4096, os.SEEK_CUR)
            file.write(chance.randbytes(1 << 20))
        moments: dict[Point, Tree] = {}
        last, ticks = None, 0
        for minute in [-1, *range(50), 61]:
            with (root / "db").open("r+b") as pages:
                pages.seek(chance.randrange(4096) * 4096)
                pages.write(chance.randbytes(4096))
            point = Point(epoch=1, number=len(moments) + 1)
            await volumes.snapshot("app", name_of(point))
            moments[point] = tree(root)
            record = await archive.write(
                1,
                snapshotter=volumes,
                volume="app",
                name=name_of(point),
                wall_ms=500_000 * HOUR_MS + minute * 60_000,
                parent=last,
                name_of=name_of,
            )
            last = record.point
            if 1 < record.number < len(moments) + 1:
                ticks += record.body.object.stored

        async def sure() -> bool:
            return True

        rules = Rules(epoch=1, bases={}, keep=Keep(ticks=2, hourly=4, daily=1, weekly=1))
        held = Here(snapshotter=volumes, volume="app", name_of=name_of, held=frozenset(moments))
        done = await archive.thin(rules, held, sure)
        assert done.refused is None
        assert done.merged is not None
        assert (done.merged.level, done.merged.parent) == (1, Point(epoch=1, number=1))
        assert done.merged.body.object.stored < ticks
        await archive.thin(rules, held, sure)
        made = await archive.restore(done.merged.point, snapshotter=second, volume="app", name_of=name_of)
        assert tree(made.path) == moments[done.merged.point]
        assert len(await second.snapshots("app")) == 2, "by the merge, not by the ticks"
