"""Killed at any await, and served by a store that fails at any call, while an archive is merged, trimmed and collected.

After each: every moment that the archive lists restores bit for bit, what the policy keeps is among them, and once the work
was repeated nothing is left in the store that nothing names.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from fractal.api.errors import BackendError
from fractal.archive import spool
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
from fractal.testing.archive_world import APP, Files, World
from tests.unit.archive.test_interruption import after, end

HALF_HOUR = 1800.0
KEEP = Keep(ticks=1, hourly=1, daily=1, weekly=1)


async def lived(folder: Path, ticks: int = 9) -> tuple[World, dict[Point, Files]]:
    """A world in which an app ran for some hours and nothing was thinned yet."""
    world, held = World(folder), dict[Point, Files]()
    attic = world.device("Attic")
    attic.keep = KEEP
    await attic.epochs.create(APP, 1, Timers())
    await attic.epochs.create_base(APP, 1, EMPTY)
    last: Point | None = None
    for number in range(ticks):
        world.clock.now += HALF_HOUR
        files = {"same": b"x" * 9000, f"f{number % 3}": b"%d" % number * 1000}
        last = await attic.save(1, f"t-{number}", files, last)
        held[last] = files
    return world, held


async def thin_all(world: World) -> None:
    """All that an owner ever does, as if a day were over at once. It ends when there is nothing more to do."""
    attic = world.device("Attic")
    while True:
        done = await attic.thin()
        gone = await attic.archive.collect(await attic.rules(), attic.owns, grace=0.0)
        if done.merged is None and not done.trim and not gone:
            return


async def moments_of(world: World, held: dict[Point, Files]) -> set[Point]:
    """What a device that knows nothing finds, each moment restored from nothing and compared."""
    shed = world.device("Shed")
    timeline = await shed.archive.timeline()
    for point in timeline.points:
        shed.volumes.held.clear()
        assert await shed.fetch(point) == held[point], point
    assert timeline.gaps == () and not timeline.burnt and not timeline.unread
    return set(timeline.points)


async def is_tidy(world: World, *, tries: int = 0) -> None:
    """Nothing is in the store but records, trims and what they name; but for what `tries` were made anew."""
    shed = world.device("Shed")
    report = await shed.archive.verify(deep=True)
    assert (report.problems, report.broken) == ((), ())
    assert len(await shed.archive.orphans()) <= tries
    timeline = await shed.archive.timeline()
    assert timeline.stored.keys() == timeline.counting.keys(), "what was let go left"
    assert len(timeline.trims) == 1
    for name in ("merge", "proof"):
        assert not list(world.device("Attic").spool.glob(f"{name}/*"))


async def finished(folder: Path) -> tuple[World, dict[Point, Files], set[Point]]:
    """The same, uninterrupted: what must be there in the end, however often it was broken off."""
    world, held = await lived(folder)
    await thin_all(world)
    points = await moments_of(world, held)
    await is_tidy(world)
    assert len(points) < len(held), "something was let go"
    assert any(slot[1] for slot in (await world.device("Shed").archive.timeline()).counting)
    return world, held, points


@pytest.mark.timeout(600)  # hundreds of lives
@pytest.mark.parametrize("hold", [0, spool.HOLD], ids=["spooled", "held"])
async def test_sigkill_at_every_await_of_thinning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: int
) -> None:
    monkeypatch.setattr(spool, "HOLD", hold)
    _, _, kept = await finished(tmp_path / "whole")
    source, held = await lived(tmp_path / "source")
    for steps in count(1, 5):
        world = source.killed(tmp_path / f"{steps}")
        task = await after(steps, thin_all(world))
        done = task.done()
        left = world.killed(tmp_path / f"{steps}-left")
        await end(task)
        assert kept <= await moments_of(left, held)
        await thin_all(left)
        assert await moments_of(left, held) == kept
        await is_tidy(left, tries=1 if hold else 0)
        # Cancelled instead, and called again in the same process.
        await thin_all(world)
        assert await moments_of(world, held) == kept
        if done:
            assert steps > 60
            return


async def test_sigkill_at_every_await_of_a_restore_by_merges(tmp_path: Path) -> None:
    source, held, kept = await finished(tmp_path / "whole")
    timeline = await source.device("Shed").archive.timeline()
    wanted = max(kept, key=lambda p: timeline.routes[p].hops)
    assert timeline.routes[wanted].hops > 2

    async def restore(world: World) -> None:
        await world.device("Kitchen").fetch(wanted)

    for steps in count(1):
        world = source.killed(tmp_path / f"{steps}")
        task = await after(steps, restore(world))
        done = task.done()
        world.device("Kitchen")
        left = world.killed(tmp_path / f"{steps}-left")
        await end(task)
        for survivor in (left, world):
            kitchen = survivor.device("Kitchen")
            for name, files in kitchen.volumes.held.get("v", {}).items():
                point = Point(epoch=1, number=int(name.rpartition("-")[2]))
                assert files == held[point], "a snapshot is there whole or not at all"
            assert await kitchen.fetch(wanted) == held[wanted]
            assert not list(kitchen.spool.glob("in/*"))
        if done:
            assert steps > 10
            return


@pytest.mark.parametrize("call", ["put", "delete"])
@pytest.mark.parametrize("how", ["before", "after", "down"])
async def test_a_store_that_fails_once_at_any_call_of_thinning(tmp_path: Path, call: str, how: str) -> None:
    _, _, kept = await finished(tmp_path / "whole")
    source, held = await lived(tmp_path / "source")
    for failing in count():
        world = source.killed(tmp_path / f"{failing}")
        calls = count()

        def fail(asked: str, _key: str, calls: Iterator[int] = calls, failing: int = failing) -> str:
            return how if asked == call and next(calls) == failing else ""

        world.store.fail = fail
        try:
            await thin_all(world)
        except BackendError as error:
            assert error.retryable
            assert kept <= await moments_of(world, held)
            await thin_all(world)
        assert await moments_of(world, held) == kept
        await is_tidy(world, tries=1)
        if next(calls) <= failing:
            assert failing > 3
            return


async def test_a_disk_that_is_full_while_a_merge_is_sealed_costs_nothing_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "HOLD", 0)
    _, _, kept = await finished(tmp_path / "whole")
    world, held = await lived(tmp_path / "source")
    room = [0]
    write = spool.ObjectWriter._write

    def full(self: spool.ObjectWriter, view: memoryview) -> int:
        if "merge" in str(self._folder) and room[0] < 1:
            room[0] += 1
            raise BackendError(f"spool {self._folder}: No space left on device", retryable=True)
        return write(self, view)

    monkeypatch.setattr(spool.ObjectWriter, "_write", full)
    objects = dict(world.objects)
    with pytest.raises(BackendError, match="No space left"):
        await thin_all(world)
    assert world.objects == objects
    await thin_all(world)
    assert await moments_of(world, held) == kept
    await is_tidy(world)


async def test_an_older_state_of_the_store_lets_nothing_be_decided(tmp_path: Path) -> None:
    """The store was restored from its own backup: the owner notices, before it writes or deletes anything."""
    world, held = await lived(tmp_path)
    before = dict(world.objects)
    await thin_all(world)
    shown = dict(world.objects)
    world.objects.clear()
    world.objects.update({k: v for k, v in before.items() if "/trim/" not in k})
    with pytest.raises(BackendError, match="rolled back"):
        await thin_all(world)
    assert "/trim/" not in "".join(world.objects)
    world.objects.clear()
    world.objects.update(shown)
    await thin_all(world)
    await moments_of(world, held)
