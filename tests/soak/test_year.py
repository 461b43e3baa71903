"""A year of an app's snapshots on the real formats, by a clock that runs ahead: how much it takes, and that all of it restores.

`make soak` runs it, or `ARCHIVE_WEEKS=52 pytest tests/soak/test_year.py`; `make property` runs two weeks of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from fractal.archive.orphans import GRACE
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.core.retention import FULL_AFTER, Keep
from fractal.testing.archive_world import APP, Files, World

WEEKS = int(os.environ.get("ARCHIVE_WEEKS", "52" if os.environ.get("SOAK_SECONDS") else "2"))
PER_HOUR = 2
KEEP = Keep(ticks=2 * PER_HOUR, hourly=48, daily=30, weekly=52)


@pytest.mark.timeout(600 + 120 * WEEKS)
async def test_an_archive_stays_bounded_and_every_moment_restores(tmp_path: Path) -> None:
    world, dice = World(tmp_path), Random(1)
    world.clock.wall -= world.clock.wall % (7 * 86_400_000) - 3 * 86_400_000
    attic = world.device("Attic")
    attic.keep = KEEP
    await attic.epochs.create(APP, 1, Timers())
    await attic.epochs.create_base(APP, 1, EMPTY)
    files: Files = {"much": dice.randbytes(400_000)}
    held: dict[Point, Files] = {}
    last: Point | None = None
    most_objects = most_bytes = longest = ticks = 0
    for hour in range(WEEKS * 7 * 24):
        # Nights and Sundays are quiet: an app that does not change takes no snapshot.
        quiet = hour % 24 < 6 or hour // 24 % 7 == 6
        for _ in range(1 if quiet else PER_HOUR):
            world.clock.now += 3600 / (1 if quiet else PER_HOUR)
            if not quiet or dice.random() < 0.1:
                ticks += 1
                files = {**files, f"f{dice.randrange(12)}": dice.randbytes(3000)}
                last = await attic.save(1, f"t-{ticks}", files, last)
                held[last] = files
        await attic.keep_small()
        timeline = await attic.archive.timeline()
        assert all(timeline.whole(p) for p in timeline.points)
        held = {p: f for p, f in held.items() if p in timeline.records}
        most_objects = max(most_objects, len(world.objects))
        most_bytes = max(most_bytes, sum(r.stored for r in timeline.counting.values()))
        longest = max([longest, *(r.hops for r in timeline.routes.values())])
        world.store.puts.clear()
        world.store.gets.clear()
    reader = world.device("Kitchen")
    timeline = await reader.archive.timeline()
    for point in timeline.points:
        reader.volumes.held.clear()
        assert await reader.fetch(point) == held[point], point
    assert (await reader.archive.verify(deep=True)).problems == ()
    assert await reader.archive.orphans() == []
    levels = [record.level for record in timeline.counting.values()]
    full = max(r.stored for r in timeline.counting.values() if r.parent is None)
    print(
        f"{WEEKS} weeks, {ticks} snapshots: at most {most_objects} objects, {most_bytes} bytes ({most_bytes / full:.1f} "
        f"full ones), {longest} records to a moment; in the end {len(timeline.points)} moments, "
        f"{[levels.count(n) for n in range(4)]} records by level"
    )
    leaving = (GRACE / 3600 + 2) * PER_HOUR
    assert longest <= 1 + (FULL_AFTER - 1) + 6 + 23 + 2 * PER_HOUR
    kept = KEEP.ticks + (KEEP.hourly + 23) + (KEEP.daily + 6) + min(WEEKS + 8, KEEP.weekly + 8)
    # Each record has an object; merges of the last day are leaving beside its ticks.
    assert most_objects <= 2 * (kept + leaving + 3 * 24) + 10
    # At most one full record a week, and half as much that builds on it.
    assert most_bytes <= (min(WEEKS, KEEP.weekly) + KEEP.daily / 7 + 2) * 1.5 * full
