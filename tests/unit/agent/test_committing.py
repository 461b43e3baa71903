"""What is stored counts as kept for the app only while no later epoch is known of."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from fractal.agent.local import LocalFacts, Queued
from fractal.agent.saver import Saver
from fractal.api.errors import BackendError
from fractal.archive.backup import Unreadable
from fractal.core.keeping import TRIES
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


async def three(error: BackendError, monkeypatch: pytest.MonkeyPatch) -> tuple[Saver, LocalFacts, list[str]]:
    """A saver with three snapshots in its queue, of which the first cannot be stored; the names that were tried."""
    clock, snapshots = Clocks(), Snapshots(same=False)
    tested, facts = saver(clock, snapshots)
    job = cast("Any", tested._job)
    said: list[str] = []
    job.logger = SimpleNamespace(warning=lambda text, *given: said.append(text % given))
    job.data.committed = lambda record: None
    job.data.prune = _nothing
    tried: list[str] = []

    async def store(queued: Queued) -> None:
        tried.append(queued.name)
        if queued.name == "t-1-1":
            raise error
        record = SimpleNamespace(epoch=1, number=2 + len(tried), stored=1)
        await tested._note(queued, cast("Record", record), highest=1)

    monkeypatch.setattr(tested, "_store", store)
    for _ in range(3):
        clock.boot += 60
        await tested.tick()
    monkeypatch.setattr(tested, "said", said, raising=False)
    return tested, facts, tried


async def test_a_snapshot_that_cannot_be_read_does_not_keep_later_ones_from_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A damaged disk: every snapshot after it would have waited behind it for ever, and nothing been committed any more."""
    tested, facts, tried = await three(Unreadable("t-1-1: input/output error"), monkeypatch)
    for _ in range(TRIES):
        assert not await tested._store_one()
    assert [q.name for q in facts.now.queue] == ["t-1-1", "t-1-2", "t-1-3"], "not given up for nothing"
    assert await tested._store_one()
    assert tried == ["t-1-1"] * (TRIES + 1) + ["t-1-2"], "tried once more, then the next"
    # Stored after the later one it would be the newest of the line, with older data.
    assert [q.name for q in facts.now.queue] == ["t-1-3"]
    assert facts.now.name_of(cast("Point", facts.now.committed)) == "t-1-2"
    assert any("t-1-1 cannot be read and is given up" in text for text in cast("Any", tested).said)
    assert tested.safe(1120.0)
    assert await tested._store_one()
    assert not facts.now.queue


async def test_a_store_that_is_away_is_no_snapshots_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is passed over then, and a large snapshot that is half uploaded keeps what it has."""
    tested, facts, tried = await three(BackendError("the store does not answer"), monkeypatch)
    for _ in range(3 * TRIES):
        assert not await tested._store_one()
    assert tried == ["t-1-1"] * 3 * TRIES
    assert len(facts.now.queue) == 3


async def _nothing(*, keep: set[str]) -> None:
    assert keep


async def test_what_was_put_aside_of_an_app_that_nobody_took_is_committed() -> None:
    """As when it was removed: its root is put aside like that of a replaced epoch, and no later one exists."""
    tested, facts = saver(Clocks(), Snapshots(same=False))
    job = cast("Any", tested._job)

    async def prune(**_: object) -> None:
        pass

    job.data.committed, job.data.prune = lambda _: None, prune
    await tested.tick()
    (queued,) = facts.now.queue
    facts.put(replace(facts.now, queue=(replace(queued, branch=True),)))
    record = SimpleNamespace(epoch=1, number=2, stored=1)
    await tested._note(facts.now.queue[0], cast("Record", record), highest=1)
    assert facts.now.committed == Point(epoch=1, number=2)
