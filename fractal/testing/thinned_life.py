"""An app's life at random: files change, snapshots are stored, merged, let go and collected, and moments restored elsewhere.

For tests of any snapshotter: whatever the order, every moment that the archive lists restores to the very tree that it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fractal.agent.notes import MemoryNotes
from fractal.api.context import Context
from fractal.api.snapshot import Snapshotter
from fractal.api.store import Store
from fractal.archive.archive import AppKeyring, Archive, Here, Rules
from fractal.core.model import Point
from fractal.core.moments import Moment
from fractal.core.retention import HOUR_MS, Keep, anchors
from fractal.crypto.keys import DeviceKeys, app_keypair
from fractal.testing.archive_world import APP, GROUP
from fractal.testing.trees import Tree, tree

NAMES = ("a", "b", "c.db", "d/e", "d/f", "g/h/i")
Step = tuple[str, str, int]
"""What happens: a word, a file, a number."""
HOURS = (1, 1, 1, 24, 24 * 7, -30)


def random_steps(random: Random, count: int) -> list[Step]:
    """A life: mostly writing and saving, with hours in between, and now and then what keeps an archive small."""
    words = (
        "write",
        "patch",
        "delete",
        "link",
        "rename",
        "save",
        "save",
        "hours",
        "thin",
        "collect",
        "restart",
        "restore",
    )
    weights = (6, 6, 1, 1, 1, 6, 6, 4, 3, 1, 1, 2)
    chosen = random.choices(words, weights, k=count)
    return [
        (w, random.choice(NAMES), random.choice(HOURS) if w == "hours" else random.randrange(60_000))
        for w in chosen
    ]


@dataclass(kw_only=True)
class Life:
    """One owner, one reader, one store."""

    context: Context
    store: Store
    here: Snapshotter
    there: Snapshotter
    folder: Path
    keep: Keep = field(default_factory=lambda: Keep(ticks=2, hourly=2, daily=2, weekly=1))
    label: int = 1_780_000_000_000
    moments: dict[Point, Tree] = field(default_factory=dict)
    names: dict[Point, str] = field(default_factory=dict)
    last: Point | None = None
    thinned: int = 0
    """Merges and trims that were written."""

    def __post_init__(self) -> None:
        self.public, self.secret = app_keypair(self.context.entropy)
        self.keys = DeviceKeys.generate(self.context.entropy)
        self.notes, self.others = MemoryNotes(), MemoryNotes()
        self.archive = self._open("one", self.notes)
        self.other = self._open("two", self.others)

    def _open(self, spool: str, notes: MemoryNotes) -> Archive:
        return Archive(
            group=GROUP,
            app=APP,
            store=self.store,
            keys=self.keys,
            app_keys=AppKeyring(generation=1, public=self.public, secrets={1: self.secret}),
            group_key=lambda _: (1, bytes(32)),
            sign_key_of=lambda _: self.keys.sign_public,
            clock=self.context.clock,
            entropy=self.context.entropy,
            workers=self.context.workers,
            spool=self.folder / spool,
            notes=notes,
        )

    async def live(self, steps: Sequence[Step]) -> None:
        """All of it, and then once more everything that is listed."""
        root = await self.here.create_root("v")
        for seed, (what, name, number) in enumerate(steps):
            if what == "save":
                await self._save(root)
            elif what == "hours":
                self.label += number * HOUR_MS
            elif what == "thin":
                await self._thin()
            elif what == "collect":
                await self.archive.collect(self._rules(), _sure, grace=0.0)
            elif what == "restart":
                self.archive = self._open("one", self.notes)
            elif what == "restore":
                await self._restore(number)
            else:
                change(root, what, name, number, seed)
        await self._save(root)
        await self._thin()
        await self.archive.collect(self._rules(), _sure, grace=0.0)
        await self._all()

    async def _save(self, root: Path) -> None:
        name = f"t-{len(self.moments)}"
        expected = tree(root)
        await self.here.snapshot("v", name)
        self.label += 600_000
        record = await self.archive.write(
            1,
            snapshotter=self.here,
            volume="v",
            name=name,
            wall_ms=self.label,
            parent=self.last,
            name_of=self._name,
        )
        self.last = record.point
        self.moments[self.last], self.names[self.last] = expected, name

    def _name(self, point: Point) -> str:
        return self.names.get(point, f"p-{point.epoch}-{point.number}")

    def _rules(self) -> Rules:
        return Rules(epoch=1, bases={}, keep=self.keep)

    async def _thin(self) -> None:
        # Each anew, as an agent that was just started: it is not kept from deciding by what it decided lately.
        self.archive = self._open("one", self.notes)
        while True:
            here = Here(snapshotter=self.here, volume="v", name_of=self._name, held=frozenset(self.names))
            done = await self.archive.thin(self._rules(), here, _sure)
            self.thinned += (done.merged is not None) + bool(done.trim)
            if done.merged is None and done.refused is None:
                break
        timeline = await self.archive.timeline()
        line = [Moment(r.point, r.wall_ms) for r in timeline.main({}, 1)]
        fulls = {r.point for r in timeline.counting.values() if r.parent is None}
        keep = anchors(line, fulls) | {m.point for m in line[-2:]}
        for point in [p for p in self.names if p not in keep]:
            await self.here.delete("v", self.names.pop(point))

    async def _restore(self, number: int) -> None:
        """One moment, on a device that keeps what it restored before: it may come from there."""
        points = (await self.other.timeline()).points
        if points:
            await self._check(points[number % len(points)])

    async def _check(self, point: Point) -> None:
        snapshot = await self.other.restore(
            point, snapshotter=self.there, volume="w", name_of=lambda p: f"p-{p.epoch}-{p.number}"
        )
        assert tree(snapshot.path) == self.moments[point], point

    async def _all(self) -> None:
        timeline = await self.other.timeline()
        assert self.last in timeline.points
        for point in timeline.points:
            await self._check(point)
        for snapshot in await self.there.snapshots("w"):
            await self.there.delete("w", snapshot.name)
        for point in reversed(timeline.points):
            await self._check(point)
        report = await self.other.verify(deep=True)
        assert (report.problems, report.broken) == ((), ())
        assert await self.other.orphans() == []
        assert timeline.stored.keys() == timeline.counting.keys()


def change(root: Path, what: str, name: str, number: int, seed: int) -> None:
    """One change as an app would make it; what cannot be done is not."""
    path = root / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "write":
            path.write_bytes(Random(seed).randbytes(number))
        elif what == "patch":
            with path.open("r+b") as file:
                file.seek(number)
                file.write(b"patched %d" % seed)
        elif what == "delete":
            path.unlink()
        elif what == "rename":
            path.rename(root / f"renamed-{number}")
        else:
            (root / f"link-{number}").symlink_to(name)
    except OSError:
        return


async def _sure() -> bool:
    return True
