"""The journal killed or cancelled at any write and around each send: an entry arrives once."""

from __future__ import annotations

import asyncio

import pytest

from fractal.core.entries import GroupChanged
from fractal.core.log import state_hash
from fractal.testing.journal_bench import Bench, Killed, is_pending

KILLS: list[tuple[str, str, str]] = [
    ("before the outbox is noted", "before", "/outbox"),
    ("between outbox and send", "after", "/outbox"),
    ("before the page is noted", "before", "/cursor"),
    ("after the page is noted", "after", "/cursor"),
]


@pytest.mark.parametrize(("what", "when", "key"), KILLS, ids=[k[0] for k in KILLS])
async def test_killed_at_a_write(bench: Bench, what: str, when: str, key: str) -> None:
    await bench.journal.poll(0)
    bench.notes.kill = (when, key, Killed())
    with pytest.raises(Killed):
        await bench.journal.append(GroupChanged(name="mine"))
    journal = bench.restart()
    await journal.poll(0)
    assert not is_pending(journal)
    assert len(bench.log.entries) - len(bench.world.log) == (0 if (when, key) == ("before", "/outbox") else 1)
    assert state_hash(journal.state) == state_hash(bench.truth())
    assert await journal.append(GroupChanged(name="next")) == len(bench.log.entries)
    assert bench.truth().skipped == 0


@pytest.mark.parametrize("sent", [False, True], ids=["before sending", "after sending"])
async def test_killed_around_the_send(bench: Bench, sent: bool) -> None:
    await bench.journal.poll(0)
    trouble: list[BaseException] = [Killed()]
    bench.log.before_append, bench.log.after_append = ([], trouble) if sent else (trouble, [])
    with pytest.raises(Killed):
        await bench.journal.append(GroupChanged(name="mine"))
    journal = bench.restart()
    assert is_pending(journal)
    await journal.poll(0)
    assert not is_pending(journal)
    assert len(bench.log.tokens) == 1
    assert len(bench.log.entries) == len(bench.world.log) + 1
    assert journal.state.name == "mine"


async def test_killed_again_and_again_the_entry_still_arrives_once(bench: Bench) -> None:
    await bench.journal.poll(0)
    bench.log.after_append = [Killed() for _ in range(4)]
    with pytest.raises(Killed):
        await bench.journal.append(GroupChanged(name="mine"))
    for _ in range(3):
        journal = bench.restart()
        bench.log.on_read = [Killed()]
        with pytest.raises(Killed):
            await journal.poll(0)
    journal = bench.restart()
    await journal.poll(0)
    assert len(bench.log.tokens) == 1
    assert not is_pending(bench.restart())


async def test_cancelled_while_sending_the_entry_arrives_by_the_next_poll(bench: Bench) -> None:
    await bench.journal.poll(0)
    bench.log.hidden = 1
    task = asyncio.create_task(bench.journal.append(GroupChanged(name="mine")))
    while not bench.log.appends:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.log.hidden = 0
    await bench.journal.poll(0)
    assert not is_pending(bench.journal)
    assert bench.journal.state.name == "mine"
