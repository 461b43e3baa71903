"""Run by a test: a device merges its ticks, killed before and after every step of the lean send and of what becomes of it.

    python killed_merging.py FOLDER BTRFS-FOLDER OTHER-BTRFS-FOLDER

Each time in a process of its own, on a copy of the same store. Prints the place at which each was killed, and the files that it left in spool and store.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any

from fractal_btrfs import ioctls, sending
from fractal_btrfs.config import BtrfsConfig
from fractal_btrfs.lean import PAGE, Lean
from fractal_btrfs.snapshotter import BtrfsSnapshotter, open_btrfs
from killed_everywhere import Killer

from fractal.api.store_files import TEMPORARY
from fractal.archive import backup, spool
from fractal.archive.archive import AppKeyring, Archive, Here, Rules, Timeline
from fractal.builtin.directory import open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.builtin.directory_files import Upload
from fractal.core.model import Point
from fractal.core.retention import HOUR_MS, Keep
from fractal.crypto.keys import DeviceKeys, app_keypair
from fractal.shell.notes import SqliteNotes
from fractal.testing.archive_world import APP, GROUP
from fractal.testing.context import real_context
from fractal.testing.trees import Tree, alter, plant, tree, undo

STEPS: list[tuple[Any, str]] = [
    (ioctls, "send"),
    (sending, "_chunk"),
    *((Lean, name) for name in ("feed", "finish", "close")),
    *((spool, name) for name in ("begin", "discard")),
    *((spool.ObjectWriter, name) for name in ("write", "finish")),
    (Path, "replace"),
    *((Upload, name) for name in ("adopt", "begin", "commit", "discard")),
]
Place = tuple[str, int]
"""A side of a step, and which time it is come by."""

PAGES, CHANGED = 256, 32
MINUTES = (-1, 0, 30, 61)
"""When the snapshots are taken. The merge of the hour leads from the first to the third."""
MERGED = Point(epoch=1, number=3)
KEPT = {Point(epoch=1, number=number) for number in (1, 3, 4)}
RULES = Rules(epoch=1, bases={}, keep=Keep(ticks=2, hourly=4, daily=1, weekly=1))


PIECES: list[tuple[Any, str, int]] = [
    (sending, "CHUNK", 64 << 10),
    (sending, "_LEAN_CHUNK", 384 << 10),
    (backup, "FRAME", 128 << 10),
    (spool, "HOLD", 0),
]
"""So little that little data takes many steps: the kernel waits at a short pipe, and every frame goes to the spool."""


class KillerAt(Killer):
    """Kills this process at one place. Several threads come by, so places are counted by the step, not one after the other."""

    def __init__(self, place: Place | None) -> None:
        self.place = place
        self.passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def here(self, what: str) -> None:
        """A place."""
        with self._lock:
            self.passed[what] += 1
            at = what, self.passed[what]
        if at == self.place:
            os.kill(os.getpid(), signal.SIGKILL)


def name_of(point: Point) -> str:
    """Of a snapshot."""
    return f"p-{point.epoch}-{point.number}"


def rewrite(path: Path, chance: Random) -> None:
    """All of a file, in place, though few of its pages are others than before: the kernel sends it whole."""
    data = bytearray(path.read_bytes())
    for page in chance.sample(range(PAGES), CHANGED):
        data[page * PAGE : (page + 1) * PAGE] = chance.randbytes(PAGE)
    with path.open("r+b") as file:
        file.write(data)


async def sure() -> bool:
    """Nobody else owns the app."""
    return True


class Scene:
    """A device's snapshots, and what each of them was."""

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = here, there
        self.moments: dict[Point, Tree] = {}

    @asynccontextmanager
    async def opened(
        self, folder: Path, who: str, place: Path
    ) -> AsyncIterator[tuple[Archive, BtrfsSnapshotter]]:
        """The archive in `folder` as a device sees it that has its own notes, its spool and a file system."""
        state = folder / who
        async with (
            real_context(state) as context,
            open_btrfs(context, BtrfsConfig(path=place)) as volumes,
            open_directory(context, DirectoryConfig(path=folder / "store")) as store,
        ):
            with closing(SqliteNotes(state / "notes")) as notes:
                yield (
                    Archive(
                        group=GROUP,
                        app=APP,
                        store=store,
                        keys=self.keys,
                        app_keys=AppKeyring(generation=1, public=self.public, secrets={1: self.secret}),
                        group_key=lambda _: (1, bytes(32)),
                        sign_key_of=lambda _: self.keys.sign_public,
                        clock=context.clock,
                        entropy=context.entropy,
                        workers=context.workers,
                        spool=state / "spool",
                        notes=notes,
                    ),
                    volumes,
                )

    async def live(self, folder: Path) -> None:
        """Two hours with a file that is rewritten over and over, and others that come, go and are renamed."""
        async with real_context(folder / "keys") as context:
            self.public, self.secret = app_keypair(context.entropy)
            self.keys = DeviceKeys.generate(context.entropy)
        chance, last = Random(3), None
        async with self.opened(folder, "one", self.here) as (archive, volumes):
            root = await volumes.create_root("app")
            plant(root)
            (root / "dump").write_bytes(chance.randbytes(PAGES * PAGE))
            for number, minute in enumerate(MINUTES, start=1):
                rewrite(root / "dump", chance)
                if number in (3, 4):
                    (alter if number == 3 else undo)(root)
                point = Point(epoch=1, number=number)
                await volumes.snapshot("app", name_of(point))
                self.moments[point] = tree(root)
                record = await archive.write(
                    1,
                    snapshotter=volumes,
                    volume="app",
                    name=name_of(point),
                    wall_ms=500_000 * HOUR_MS + minute * 60_000,
                    parent=last,
                    name_of=name_of,
                )
                assert record.point == point
                last = point

    async def merge(self, archive: Archive, volumes: BtrfsSnapshotter) -> None:
        """All that is due: the merge of the hour, its proof, and the trim that lets its ticks go."""
        held = Here(snapshotter=volumes, volume="app", name_of=name_of, held=frozenset(self.moments))
        while True:
            done = await archive.thin(RULES, held, sure)
            assert done.refused is None
            if done.merged is None and not done.trim:
                return

    async def merge_once(self, folder: Path) -> None:
        """As a process that does nothing else."""
        async with self.opened(folder, "one", self.here) as (archive, volumes):
            await self.merge(archive, volumes)

    async def restored(self, folder: Path, who: str) -> Timeline:
        """Every moment that is listed, brought to a device that has nothing."""
        async with self.opened(folder, who, self.there) as (archive, volumes):
            timeline = await archive.timeline()
            assert set(timeline.points) >= KEPT, timeline.points
            for point in reversed(timeline.points):
                made = await archive.restore(point, snapshotter=volumes, volume=who, name_of=name_of)
                assert tree(made.path) == self.moments[point], point
            for snapshot in await volumes.snapshots(who):
                await volumes.delete(who, snapshot.name)
        return timeline

    async def tidied(self, folder: Path) -> None:
        """The next process ends what was begun, and nothing is left of it anywhere: no file, no object."""
        for path in (folder / "store" / TEMPORARY).iterdir():
            os.utime(path, (0, 0))  # an hour and more goes by
        async with self.opened(folder, "one", self.here) as (archive, volumes):
            await self.merge(archive, volumes)
            await archive.collect(RULES, sure, grace=0.0)
            assert await archive.orphans() == []
            assert (await archive.verify(deep=True)).problems == ()
        assert leftovers(folder) == []
        timeline = await self.restored(folder, "three")
        assert set(timeline.points) == KEPT
        assert timeline.stored.keys() == timeline.counting.keys()
        merge = timeline.counting[MERGED, 1]
        assert merge.stored < PAGES * PAGE / 2, "what the parent has was left out"

    async def gone(self) -> None:
        """A send that never ended would keep the kernel from deleting its snapshots."""
        async with (
            real_context(self.here / "state") as context,
            open_btrfs(context, BtrfsConfig(path=self.here)) as volumes,
        ):
            await volumes.delete_root("app")
            for snapshot in await volumes.snapshots("app"):
                await volumes.delete("app", snapshot.name)
            assert await volumes.volumes() == []

    def subvolumes(self) -> list[str]:
        """All that the device has, also what is half-made."""
        return sorted(str(path) for path in (self.here / "volumes").glob("*/*"))


def leftovers(folder: Path) -> list[str]:
    """Files in the device's spool, and in the store those that have no name yet."""
    files = [*(folder / "one" / "spool").rglob("*"), *(folder / "store" / TEMPORARY).iterdir()]
    return sorted(str(path.relative_to(folder)) for path in files if path.is_file())


def merge_apart(scene: Scene, folder: Path, place: Place | None) -> int:
    """In a process of its own, killed at a place: its status. Without a place it tells how often each is come by."""
    child = os.fork()
    if child == 0:
        killer = KillerAt(place)
        for owner, name, size in PIECES:
            setattr(owner, name, size)
        for owner, name in STEPS:
            killer.around(owner, name)
        asyncio.run(scene.merge_once(folder))
        (folder / "passed").write_text(json.dumps(killer.passed))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """See above."""
    folder, here, there = map(Path, sys.argv[1:])
    scene, before = Scene(here, there), folder / "before"
    before.mkdir(parents=True)
    asyncio.run(scene.live(before))
    snapshots = scene.subvolumes()
    whole = folder / "whole"
    shutil.copytree(before, whole)
    assert merge_apart(scene, whole, None) == 0
    asyncio.run(scene.tidied(whole))
    passed: dict[str, int] = json.loads((whole / "passed").read_text())
    # Of a step that is taken over and over: the first time, one in the middle, the last.
    for place in [(what, time) for what, n in passed.items() for time in sorted({1, (n + 1) // 2, n})]:
        copy = folder / "copy"
        shutil.copytree(before, copy)
        assert merge_apart(scene, copy, place) == -signal.SIGKILL, place
        print(json.dumps([*place, leftovers(copy)]), flush=True)
        asyncio.run(scene.restored(copy, "two"))
        assert scene.subvolumes() == snapshots, place
        asyncio.run(scene.tidied(copy))
        assert scene.subvolumes() == snapshots, place
        shutil.rmtree(copy)
    asyncio.run(scene.gone())


if __name__ == "__main__":
    main()
