"""A mirror that is down for a day now and then, beside an archive that is thinned all the time: it catches up, a segment at a time.

`make soak` runs a year of it, or `ARCHIVE_WEEKS=52 pytest tests/soak/test_mirrored_year.py`; else it is two weeks.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from fractal.api.errors import BackendError
from fractal.archive.archive import Mirror
from fractal.archive.orphans import GRACE
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
from fractal.testing.archive_world import APP, Device, Files, Unruly, World

WEEKS = int(os.environ.get("ARCHIVE_WEEKS", "52" if os.environ.get("SOAK_SECONDS") else "2"))
KEEP = Keep(ticks=4, hourly=24, daily=14, weekly=20)
DOWN_DAYS = (2, 5)
"""Of each week."""


class Tended:
    """A mirror as the owner's agent tends it: compared every hour, filled, and rid of what was let go."""

    def __init__(self, attic: Device, store: Unruly) -> None:
        self.mirror: Mirror = attic.mirror("Cellar")
        self.store = store
        self.owns, self.rules = attic.owns, attic.rules
        self.spool = attic.spool / "to-Cellar"
        self.backlogs: list[int] = []
        self.most_spooled = 0
        self.failures = 0

    async def hour(self) -> None:
        """What is lacking is copied; while the store is down nothing is."""
        try:
            lacking = await self.mirror.look()
            for record in lacking:
                await self.mirror.copy(record)
            await self.mirror.copy_trim()
            await self.mirror.sweep(await self.rules(), self.owns)
        except BackendError:
            self.failures += 1
            return
        self.backlogs.append(len(lacking))

    def switch(self, down: bool) -> None:
        """Off and on. Whenever it is given something, it is looked at what lies in the spool."""

        def fail(call: str, _: str) -> str:
            if call == "put" and self.spool.exists():
                files = [path for path in self.spool.rglob("*") if path.is_file()]
                self.most_spooled = max(self.most_spooled, len(files))
            return "down" if down else ""

        self.store.fail = fail


@pytest.mark.timeout(600 + 120 * WEEKS)
async def test_a_mirror_that_is_down_for_a_day_catches_up(tmp_path: Path) -> None:
    world, dice = World(tmp_path), Random(1)
    cellar = world.add_mirror("Cellar")
    attic = world.device("Attic")
    attic.keep = KEEP
    await attic.epochs.create(APP, 1, Timers())
    await attic.epochs.create_base(APP, 1, EMPTY)
    tended = Tended(attic, cellar)
    files: Files = {"much": dice.randbytes(100_000)}
    held: dict[Point, Files] = {}
    last: Point | None = None
    most_here = most_there = ticks = 0
    for hour in range(WEEKS * 7 * 24):
        for _ in range(2):
            world.clock.now += 1800
            ticks += 1
            files = {**files, f"f{dice.randrange(12)}": dice.randbytes(3000)}
            last = await attic.save(1, f"t-{ticks}", files, last)
            held[last] = files
        await attic.keep_small()
        tended.switch(hour // 24 % 7 in DOWN_DAYS)
        await tended.hour()
        standing = (await attic.archive.timeline()).records
        held = {point: state for point, state in held.items() if point in standing}
        most_here, most_there = max(most_here, len(world.objects)), max(most_there, len(cellar.objects))
    assert tended.failures == WEEKS * len(DOWN_DAYS) * 24
    print(
        f"{WEEKS} weeks, {ticks} snapshots: after a day away up to {max(tended.backlogs)} records were lacking, {tended.most_spooled} "
        f"segment(s) in the spool at a time; at most {most_there} objects there, in the app's store {most_here}"
    )
    assert await tended.mirror.look() == []
    # A day of ticks, its hours and the merges of the day before; what was let go meanwhile is not copied.
    assert 24 < max(tended.backlogs) <= KEEP.ticks + 2 * KEEP.hourly + KEEP.daily
    assert tended.most_spooled == 1
    # As in the archive itself: what leaves does so a day after it was seen to, which is a day later where it was down.
    kept = KEEP.ticks + (KEEP.hourly + 23) + (KEEP.daily + 6) + min(WEEKS + 8, KEEP.weekly + 8)
    assert most_there <= 2 * (kept + 2 * (GRACE / 3600 + 24) * 2 + 3 * 24) + 10
    # The app's store loses every segment.
    for key in [key for key in world.objects if "/object/" in key]:
        del world.objects[key]
    reader = world.device("Kitchen")
    timeline = await reader.archive.timeline()
    assert set(timeline.points) == set(held)
    for point in timeline.points:
        reader.volumes.held.clear()
        assert await reader.fetch(point) == held[point], point
