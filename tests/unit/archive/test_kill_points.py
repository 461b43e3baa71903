"""Killed at every await of what the other tests do not break off: following as a warm copy, collecting orphans, storing and loading
images; a full disk on the receiving side; a collection beside a slow restore.

Writing and restoring are in `test_interruption`, merging, trimming and collecting in `test_thinning_interrupted`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from itertools import count
from pathlib import Path
from random import Random

import pytest

from fractal.api.errors import BackendError, Corrupt, NotFound
from fractal.archive import layout, spool
from fractal.core.model import Point
from fractal.testing.archive_world import APP, GROUP, Files, World
from tests.unit.archive.test_images import DATA, WIKI, Engine, images
from tests.unit.archive.test_interruption import MOMENTS, after, end, everything_restores, save_all
from tests.unit.archive.test_thinning_interrupted import is_tidy, lived, moments_of, thin_all


async def test_sigkill_and_cancel_at_every_await_of_a_warm_copy(tmp_path: Path) -> None:
    """It has the first moment, and receives each of the others on top of the one before."""
    source = World(tmp_path / "source")
    done: list[Point] = []
    await save_all(source, done)
    await source.device("Kitchen").fetch(done[0])

    async def follow(world: World) -> None:
        for point in done[1:]:
            await world.device("Kitchen").fetch(point)

    for steps in count(1):
        world = source.killed(tmp_path / f"{steps}")
        task = await after(steps, follow(world))
        finished = task.done()
        left = world.killed(tmp_path / f"{steps}-left")
        await end(task)
        for survivor in (left, world):
            kitchen = survivor.device("Kitchen")
            for name, files in kitchen.volumes.held["v"].items():
                assert files == MOMENTS[int(name.rpartition("-")[2]) - 1], "whole or not at all"
            before = kitchen.volumes.received
            await follow(survivor)
            assert kitchen.volumes.received - before <= len(done) - 1, "what it had is not received again"
            assert kitchen.volumes.held["v"].keys() >= {kitchen.name_of(p) for p in done}
            assert not list(kitchen.spool.glob("in/*")), "nothing is left in the spool"
        if finished:
            assert steps > 10
            return


async def yes() -> bool:
    """Fresh proof."""
    return True


async def test_sigkill_at_every_await_of_collecting_orphans(tmp_path: Path) -> None:
    source = World(tmp_path / "source")
    done: list[Point] = []
    await save_all(source, done)
    lost = [layout.segment_key(GROUP, APP, f"{n:032x}", index) for n in range(3) for index in range(2)]
    for key in lost:
        source.objects[key] = b"of an upload that was broken off"
    for steps in count(1):
        world = source.killed(tmp_path / f"{steps}")
        task = await after(steps, collect(world))
        finished = task.done()
        left = world.killed(tmp_path / f"{steps}-left")
        await end(task)
        for survivor in (left, world):
            await everything_restores(survivor, done)
            await collect(survivor)
            assert not set(lost) & survivor.objects.keys()
            assert survivor.device("Attic").notes.scan(f"archive/{GROUP}/{APP}/orphan/") == []
            await everything_restores(survivor, done)
        if finished:
            assert steps > 5
            return


async def collect(world: World) -> None:
    """As if a day were over."""
    archive = world.device("Attic").archive
    while await archive.collect_orphans(yes, grace=0.0):
        pass
    await archive.orphans()


@pytest.mark.parametrize("hold", [0, spool.HOLD], ids=["spooled", "held"])
async def test_sigkill_at_every_await_of_storing_and_loading_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: int
) -> None:
    monkeypatch.setattr(spool, "HOLD", hold)
    loaded: list[bytes] = []

    async def store_and_load(world: World) -> None:
        there = images(world)
        keys = world.device("Attic").archive.app_keys
        stored = await there.write(WIKI, Engine().save, keys)
        async with aclosing(there.read(stored, keys)) as chunks:
            loaded[:] = [b"".join([chunk async for chunk in chunks])]

    for steps in count(1):
        world = World(tmp_path / f"{steps}")
        world.device("Attic")
        task = await after(steps, store_and_load(world))
        finished = task.done()
        left = world.killed(tmp_path / f"{steps}-left")
        if (world.folder / "attic").exists():
            shutil.copytree(world.folder / "attic", left.folder / "attic", dirs_exist_ok=True)
        await end(task)
        for survivor in (left, world):
            loaded.clear()
            await store_and_load(survivor)
            assert loaded == [DATA]
        if finished:
            assert steps > 10
            return


# --- a full disk where a restore arrives ------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of half a megabyte."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("mounting needs root, which CI does not allow to lack")
        pytest.skip("mounting needs root")
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "fractal-test", str(path)], check=True, timeout=60
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=60)


async def test_a_full_disk_where_a_restore_arrives_is_told_and_it_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    world = World(tmp_path)
    attic = world.device("Attic")
    files: Files = {"noise": Random(1).randbytes(900_000)}
    small = await attic.save(1, "t-0", {"a": b"1"}, None)
    large = await attic.save(1, "t-1", files, small)
    kitchen = world.device("Kitchen")
    kitchen.spool = small_disk
    kitchen.restart()
    with pytest.raises(BackendError, match=r"spool .*No space left on device: free some space") as caught:
        await kitchen.fetch(large)
    assert caught.value.retryable
    held = kitchen.volumes.held.get("v", {})
    assert set(held) <= {kitchen.name_of(small)}, "nothing that was not whole acted"
    assert await kitchen.fetch(small) == {"a": b"1"}
    assert not list(small_disk.glob("in/*/*")), "what did not fit makes room for what does"
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True, timeout=60)
    assert await kitchen.fetch(large) == files


# --- a collection beside a slow restore -----------------------------------------------------------------------------


class Slow:
    """A store that stops while a segment is read, until it is told to go on."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, key: str) -> None:
        if "/object/" in key:
            self.begun.set()
            await self.go.wait()


async def restore_slowly(world: World, point: Point) -> tuple[Slow, asyncio.Task[Files]]:
    """A restore that has planned its way and is fetching."""
    slow = Slow()
    world.store.slow = slow
    task = asyncio.create_task(world.device("Kitchen").fetch(point))
    await slow.begun.wait()
    world.store.slow = None
    return slow, task


async def test_a_restore_that_takes_less_than_a_day_is_not_torn_by_a_collection(tmp_path: Path) -> None:
    world, held = await lived(tmp_path)
    attic = world.device("Attic")
    point = max(held)
    way = [r.slot for r in await world.device("Kitchen").archive.chain_to(point)]
    assert len(way) == len(held), "one tick after the other"
    slow, task = await restore_slowly(world, point)
    while (await attic.thin()).merged is not None:
        pass
    for _ in range(23):
        world.clock.now += 3600
        await attic.archive.collect(await attic.rules(), attic.owns)
    timeline = await attic.archive.timeline()
    assert any(slot not in timeline.counting for slot in way), "its way was let go meanwhile"
    slow.go.set()
    assert await task == held[point]
    for _ in range(3):
        world.clock.now += 3600
        await attic.archive.collect(await attic.rules(), attic.owns)
    await moments_of(world, held)


async def test_a_restore_that_takes_longer_says_what_is_missing_and_finds_the_other_way(
    tmp_path: Path,
) -> None:
    world, held = await lived(tmp_path)
    kitchen, point = world.device("Kitchen"), max(held)
    slow, task = await restore_slowly(world, point)
    await thin_all(world)
    slow.go.set()
    with pytest.raises((Corrupt, NotFound)) as caught:
        await task
    assert "missing in store Shelf" in str(caught.value)
    for name, files in kitchen.volumes.held.get("v", {}).items():
        assert files == held[Point(epoch=1, number=int(name.rpartition("-")[2]))]
    assert await kitchen.fetch(point) == held[point]
    await is_tidy(world)
