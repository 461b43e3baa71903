"""Snapshots of one device go sealed through a store to another one's pool, are taken over there, and come back."""

from __future__ import annotations

from pathlib import Path

from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.snapshotter import open_btrfs

from fractal.agent.notes import MemoryNotes
from fractal.api.context import Context
from fractal.api.store import Store
from fractal.archive.archive import AppKeyring, Archive
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys, app_keypair
from fractal.testing.archive_world import APP, GROUP
from fractal.testing.context import real_context
from fractal.testing.trees import alter, plant, tree, undo


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


async def test_a_chain_is_archived_taken_over_and_brought_home(
    disk: Path, other_disks: tuple[Path, Path], tmp_path: Path
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
