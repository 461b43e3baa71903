"""Killed or cancelled at any await: what was committed restores, what was not can be repeated, nothing is half there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fractal.api.errors import BackendError
from fractal.archive import spool
from fractal.core.model import Point
from fractal.testing.archive_world import Files, InlineWorkers, World

T = TypeVar("T")

MOMENTS: list[Files] = [{"a": b"1", "b": b"x"}, {"a": b"2"}, {"a": b"2", "c": b"3" * 5000}]


async def save_all(world: World, done: list[Point]) -> None:
    attic = world.device("Attic")
    for number, files in enumerate(MOMENTS[len(done) :], len(done)):
        point = await attic.save(1, f"t-{number}", files, done[-1] if done else None)
        # What a caller notes durably once the call has returned.
        done.append(point)


async def after(steps: int, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Let `work` go on for that many turns of the event loop."""
    task = asyncio.create_task(work)
    for _ in range(steps):
        if task.done():
            break
        await asyncio.sleep(0)
    return task


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def everything_restores(world: World, done: list[Point]) -> None:
    kitchen = world.device("Kitchen")
    for point, files in zip(done, MOMENTS, strict=False):
        assert await kitchen.fetch(point) == files
    report = await kitchen.archive.verify(deep=True)
    assert report.problems == ()


@pytest.mark.parametrize("hold", [0, spool.HOLD], ids=["spooled", "held"])
async def test_sigkill_at_every_await_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: int
) -> None:
    monkeypatch.setattr(spool, "HOLD", hold)
    for steps in count(1):
        world = World(tmp_path / f"{steps}")
        done: list[Point] = []
        task = await after(steps, save_all(world, done))
        finished = task.done()
        left, noted = world.killed(tmp_path / f"{steps}-left"), list(done)
        await end(task)
        await everything_restores(left, noted)
        await save_all(left, noted)
        await everything_restores(left, noted)
        assert len(noted) == len(MOMENTS)
        assert len((await left.device("Attic").archive.timeline()).records) == len(MOMENTS), (
            "nothing stored twice"
        )
        orphans = await left.device("Attic").archive.orphans()
        assert len(orphans) <= (1 if hold else 0), (
            "an upload that is resumed leaves nothing, one made anew its try"
        )
        if finished:
            assert steps > 30
            return


async def test_cancel_at_every_await_of_a_write_then_again_in_the_same_process(tmp_path: Path) -> None:
    for steps in count(1):
        world = World(tmp_path / f"{steps}")
        done: list[Point] = []
        task = await after(steps, save_all(world, done))
        finished = task.done()
        await end(task)
        await save_all(world, done)
        await everything_restores(world, done)
        assert len((await world.device("Attic").archive.timeline()).records) == len(MOMENTS)
        if finished:
            return


async def test_sigkill_and_cancel_at_every_await_of_a_restore(tmp_path: Path) -> None:
    source = World(tmp_path / "source")
    done: list[Point] = []
    await save_all(source, done)

    async def restore(world: World) -> None:
        await world.device("Kitchen").fetch(done[-1])

    for steps in count(1):
        world = source.killed(tmp_path / f"{steps}")
        task = await after(steps, restore(world))
        finished = task.done()
        world.device("Kitchen")
        left = world.killed(tmp_path / f"{steps}-left")
        await end(task)
        for survivor in (left, world):
            for name, files in survivor.device("Kitchen").volumes.held.get("v", {}).items():
                number = int(name.split("-")[-1])
                assert files == MOMENTS[number - 1], "a snapshot is there whole or not at all"
            await everything_restores(survivor, done)
        if finished:
            return


class LateWorkers(InlineWorkers):
    """Begins `room_for` at once, in a thread that goes on whoever is cancelled, and is done with it late."""

    def __init__(self) -> None:
        self.begun, self.go, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, function: Callable[..., T], /, *arguments: object) -> T:
        if getattr(function, "__name__", "") != "room_for":
            return await super().run(function, *arguments)

        async def thread() -> T:
            self.begun.set()
            await self.go.wait()
            result = function(*arguments)
            self.done.set()
            return result

        return await asyncio.shield(asyncio.create_task(thread()))


async def test_a_cancelled_fetch_gives_way_only_when_its_thread_is_done_with_the_file(tmp_path: Path) -> None:
    """Else it deletes what the next one has written."""
    world = World(tmp_path)
    done: list[Point] = []
    await save_all(world, done)
    kitchen = world.device("Kitchen")
    fetcher, late = kitchen.archive._fetcher, LateWorkers()
    fetcher.workers = late
    ref = (await kitchen.archive.timeline()).record(done[0]).body.object
    fetching = asyncio.create_task(fetcher.fetch(ref))
    await late.begun.wait()
    fetching.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not fetching.done()
    late.go.set()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert late.done.is_set()


def fails_once(calls: Iterator[int], failing: int, how: str, call: str, _key: str) -> str:
    return how if call == "put" and next(calls) == failing else ""


@pytest.mark.parametrize("how", ["before", "after", "down"])
async def test_every_put_fails_once(tmp_path: Path, how: str) -> None:
    for failing in count():
        world = World(tmp_path / f"{failing}")
        calls = count()
        world.store.fail = partial(fails_once, calls, failing, how)
        done: list[Point] = []
        try:
            await save_all(world, done)
        except BackendError as error:
            assert how == "down"
            assert error.retryable
            await save_all(world, done)
        await everything_restores(world, done)
        assert len((await world.device("Attic").archive.timeline()).records) == len(MOMENTS)
        if next(calls) <= failing:
            return


async def test_a_store_that_always_times_out_after_success_is_bearable(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.fail = lambda call, _key: "after" if call == "put" else ""
    done: list[Point] = []
    await save_all(world, done)
    await everything_restores(world, done)


async def test_a_store_that_always_times_out_gives_up_in_bounded_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.fail = lambda call, _key: "before" if call == "put" else ""
    with pytest.raises(BackendError):
        await save_all(world, [])
    assert world.clock.now < 1060
