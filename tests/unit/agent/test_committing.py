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
