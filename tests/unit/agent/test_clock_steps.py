"""The wall clock steps; deadlines, patience and figures do not follow it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from fractal.agent.app_job import AppJob
from fractal.agent.local import LocalFacts
from fractal.agent.notes import MemoryNotes
from fractal.agent.saver import Saver
from fractal.core.model import Point, Policy

if TYPE_CHECKING:
    from fractal.archive.records import Record

HOUR_MS = 3_600_000


@dataclass
class Clocks:
    """Two clocks that have nothing to do with each other."""

    boot: float = 1000.0
    wall: int = 1_800_000_000_000

    def boottime(self) -> float:
        return self.boot

    def wall_ms(self) -> int:
        return self.wall


@dataclass
class Snapshots:
    """A snapshotter that finds nothing changed, or takes what it is told to."""

    same: bool = True
    taken: list[str] = field(default_factory=list)

    async def unchanged(self, volume: str, name: str) -> bool:
        return self.same

    async def snapshot(self, volume: str, name: str) -> None:
        self.taken.append(name)


def saver(clock: Clocks, snapshots: Snapshots) -> tuple[Saver, LocalFacts]:
    """A saver on an app of which nothing runs."""
    facts = LocalFacts(MemoryNotes(), "g", "a")
    facts.change(root=1, committed=Point(epoch=1, number=1), committed_ms=clock.wall)
    agent = SimpleNamespace(clock=clock, snapshotter=snapshots, instant_snapshots=True)
    group = SimpleNamespace(agent=agent, id="g", pulse=SimpleNamespace(beat=lambda: None))
    policy = Policy(interval=60_000)
    job = SimpleNamespace(
        app=SimpleNamespace(policy=policy, move_to="", epoch=1, name="ledger"),
        data=SimpleNamespace(volume="v", holding=nullcontext),
        facts=facts,
        group=group,
        health=lambda: None,
        id="a",
        mirrors=SimpleNamespace(committed=lambda record: None),
        spec=SimpleNamespace(consistency="crash"),
    )
    return Saver(cast("AppJob", job)), facts


@pytest.mark.parametrize("step", [-10 * HOUR_MS, -1, 10 * HOUR_MS])
async def test_would_lose_counts_on_the_clock_that_does_not_step(step: int) -> None:
    clock = Clocks()
    tested, _ = saver(clock, Snapshots(same=True))
    await tested.tick()
    assert tested.would_lose() == 0
    clock.boot += 7
    clock.wall += step
    assert tested.would_lose() == 7000


def test_would_lose_is_unknown_when_the_last_snapshot_lies_in_the_future() -> None:
    clock = Clocks()
    tested, _ = saver(clock, Snapshots())
    clock.wall += 5000
    assert tested.would_lose() == 5000, "after a restart the label stands in"
    clock.wall -= HOUR_MS
    assert tested.would_lose() == -1, "0 would be a lie"


async def test_snapshots_go_on_after_a_step_and_keep_their_order() -> None:
    clock, snapshots = Clocks(), Snapshots(same=False)
    tested, facts = saver(clock, snapshots)
    for step in (0, -HOUR_MS, 2 * HOUR_MS):
        clock.wall += step
        clock.boot += 60
        assert tested.due <= clock.boot, "due by the clock that does not step"
        await tested.tick()
        assert tested.due == clock.boot + 60
    assert [q.name for q in facts.now.queue] == snapshots.taken == ["t-1-1", "t-1-2", "t-1-3"]


async def test_what_was_written_after_the_question_is_not_said_to_be_safe() -> None:
    clock = Clocks()
    tested, _ = saver(clock, Snapshots(same=True))
    await tested.tick()
    asked = clock.boot = clock.boot + 1
    assert not tested.safe(asked)
    tested.hurry()
    assert not tested.settled
    await tested.tick()
    assert tested.safe(asked)


async def test_a_failed_snapshot_is_taken_again_soon() -> None:
    clock, snapshots = Clocks(), Snapshots(same=False)

    async def fail(volume: str, name: str) -> None:
        raise OSError("no room")

    snapshots.snapshot = fail  # type: ignore[method-assign]
    tested, _ = saver(clock, snapshots)
    with pytest.raises(OSError, match="no room"):
        await tested.tick()
    assert clock.boot < tested.due <= clock.boot + 10
    assert not tested.caught_up


async def test_an_equal_snapshot_that_still_waits_makes_all_safe_once_it_is_stored() -> None:
    """Nothing changed since a snapshot that is not stored yet: when it is, whoever asked since need not wait for another."""
    clock, snapshots = Clocks(), Snapshots(same=False)
    tested, facts = saver(clock, snapshots)
    await tested.tick()
    snapshots.same = True
    asked = clock.boot = clock.boot + 5
    tested.hurry()
    await tested.tick()
    assert not tested.safe(asked), "it is not stored yet"
    (queued,) = facts.now.queue
    record = SimpleNamespace(epoch=1, number=2, stored=1)
    tested._job.data.committed = lambda record: None  # type: ignore[method-assign]  # what it keeps in mind is not asked here
    tested._job.data.prune = _nothing  # type: ignore[method-assign]
    await tested._note(queued, cast("Record", record), highest=1)
    assert tested.safe(asked)


async def _nothing(*, keep: set[str]) -> None:
    assert keep
