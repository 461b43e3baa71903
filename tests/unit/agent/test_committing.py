"""What is stored counts as kept for the app only while no later epoch is known of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from fractal.core.model import Point
from tests.unit.agent.test_clock_steps import Clocks, Snapshots, saver

if TYPE_CHECKING:
    from fractal.archive.records import Record


@pytest.mark.parametrize(("listed", "logged"), [(2, 1), (1, 2)], ids=["by the store", "by the log alone"])
async def test_what_a_replaced_owner_stores_is_a_branch_whoever_tells_of_it(listed: int, logged: int) -> None:
    """The second: a store that hides the epoch, which the log has told of."""
    tested, facts = saver(Clocks(), Snapshots(same=False))
    job = cast("Any", tested._job)
    told: list[str] = []
    job.group.agent.tell = lambda kind, **_: told.append(kind)
    await tested.tick()
    job.app.epoch = logged
    before = facts.now.committed
    (queued,) = facts.now.queue
    record = SimpleNamespace(epoch=1, number=2, stored=1)
    await tested._note(queued, cast("Record", record), highest=listed)
    assert facts.now.committed == before
    assert told == ["app.branch"]
    assert not facts.now.queue
    assert facts.now.name_of(Point(epoch=1, number=2)) == queued.name


@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [(1, 1, [False]), (1, 2, [False, True]), (2, 2, [True])],
    ids=["owner", "learns it by the look after", "knew it"],
)
async def test_what_a_replaced_owner_stores_must_lead_somewhere(
    before: int, after: int, asked: list[bool]
) -> None:
    """Its successor may have let go what it builds on: then it is to be sent anew, in full."""
    tested, facts = saver(Clocks(), Snapshots(same=False))
    job = cast("Any", tested._job)
    await tested.tick()
    (queued,) = facts.now.queue
    calls: list[bool] = []

    async def write(epoch: int, *, replaced: bool, **_: object) -> object:
        calls.append(replaced)
        return SimpleNamespace(epoch=epoch, number=2 + len(calls), stored=1, parent=None)

    async def archive() -> object:
        return SimpleNamespace(write=write)

    async def prune(**_: object) -> None:
        pass

    def opened(highest: int) -> object:
        async def store(_: str) -> object:
            return SimpleNamespace(sent=1.0, highest=lambda _: highest)

        return store

    async def snapshots(_: str) -> list[object]:
        return [SimpleNamespace(name=queued.name)]

    job.data.archive, job.data.committed, job.data.prune = archive, lambda _: None, prune
    job.group.agent.snapshotter.snapshots = snapshots
    job.app.store = "s"
    job.group.store, job.group.list_epochs = opened(before), opened(after)
    job.group.agent.tell = lambda *_, **__: None
    await tested._store(queued)
    assert calls == asked
    assert not facts.now.queue
    # What is remembered of it is the record that restores.
    assert facts.now.name_of(Point(epoch=1, number=2 + len(asked))) == queued.name
