"""The journal across time-outs, refusals and restarts: nothing lost, nothing twice, nothing believed before it is noted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fractal.agent.journal import SAVE_EVERY, Stale
from fractal.api.coordination import Page
from fractal.api.errors import Ambiguous, BackendError, Conflict, Corrupt, Denied, FractalError
from fractal.core.entries import Answered, GroupChanged, Released, Took
from fractal.core.log import state_hash
from fractal.testing.group import World
from fractal.testing.journal_bench import APP, Bench, is_pending, proof


async def test_reads_to_the_head_and_proves_from_when_the_request_was_sent(bench: Bench) -> None:
    journal, log = bench.journal, bench.log
    assert proof(journal) is None
    log.page, log.slow = 1, 0.5
    assert await journal.poll(0)
    assert journal.state.position == len(log.entries)
    assert proof(journal) == bench.clock.now - 0.5
    sent = bench.clock.now
    assert not await journal.poll(2.0)
    assert proof(journal) == sent


async def test_what_fails_proves_nothing_and_loses_nothing(bench: Bench) -> None:
    bench.log.on_read = [BackendError("down", retryable=True)]
    with pytest.raises(BackendError):
        await bench.journal.poll(0)
    assert proof(bench.journal) is None
    bench.notes.kill = ("before", "/cursor", BackendError("disk full"))
    with pytest.raises(BackendError):
        await bench.journal.poll(0)
    assert bench.journal.state.position == 0
    assert proof(bench.journal) is None
    await bench.journal.poll(0)
    assert state_hash(bench.journal.state) == state_hash(bench.truth())


async def test_an_idle_group_writes_nothing(bench: Bench) -> None:
    await bench.journal.poll(0)
    before = bench.notes.writes
    for _ in range(5):
        await bench.journal.poll(0)
    assert bench.notes.writes == before


async def test_whoever_reads_tells_of_what_is_new_also_who_appends(bench: Bench) -> None:
    """Jobs wait to be told: what the follower of the log was spared from reading must not pass them by."""
    seen: list[int] = []
    bench.journal.news = lambda: seen.append(bench.journal.state.position)
    await bench.journal.poll(0)
    assert seen == [bench.journal.state.position], "believed when it is told"
    await bench.journal.poll(0)
    assert len(seen) == 1, "nothing was new"
    await bench.journal.append(GroupChanged(name="Elsewhere"))
    assert seen[-1] == bench.journal.state.position > seen[0]
    assert bench.journal.state.name == "Elsewhere"


async def test_a_log_without_end_does_not_hold_a_poll_for_ever(bench: Bench) -> None:
    async def endless(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        return Page((b"noise",), "0", head=False)

    bench.log.read = endless  # type: ignore[method-assign]
    assert await bench.journal.poll(0)
    assert proof(bench.journal) is None


async def test_a_read_that_hangs_is_given_up(bench: Bench, world: World) -> None:
    async def hangs(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        await asyncio.Event().wait()
        raise AssertionError

    await bench.journal.poll(0)
    timers = replace(world.state.timers, read_timeout=10)
    bench.others_say("kitchen", GroupChanged(timers=timers))
    await bench.journal.poll(0)
    bench.log.read = hangs  # type: ignore[method-assign]
    with pytest.raises(BackendError) as caught:
        await bench.journal.poll(0)
    assert caught.value.retryable


async def test_a_read_that_hangs_leaves_time_for_an_answer(bench: Bench, world: World) -> None:
    """Its device may be challenged just then: a time-out as long as the answer window lost it its apps (seed 6122)."""

    async def hangs(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        await asyncio.Event().wait()
        raise AssertionError

    timers = replace(world.state.timers, read_timeout=60_000, answer_window=1_020)
    bench.others_say("kitchen", GroupChanged(timers=timers))
    await bench.journal.poll(0)
    bench.log.read = hangs  # type: ignore[method-assign]
    # The time-out of the test, a tenth of that of the read: only a hang makes it pass.
    async with asyncio.timeout(6):
        with pytest.raises(BackendError, match="did not answer"):
            await bench.journal.poll(0.001)


async def test_whether_reads_are_answered_is_told_whoever_reads(bench: Bench) -> None:
    """Silence counts only while they are. Reads by whoever takes apps over failed unheard, and gave up those that hung (seed 4950)."""
    told: list[bool] = []
    bench.journal.heard = told.append
    await bench.journal.poll(0)
    assert told == [True]
    bench.log.on_read = [BackendError("down", retryable=True)]
    with pytest.raises(BackendError):
        await bench.journal.poll(0)
    assert told == [True, False]
    bench.log.on_read = [BackendError("down", retryable=True)]
    await bench.journal.append(GroupChanged(name="later"))
    assert told[2:] == [False, True], "who appends reads too"
    read, begun = bench.log.read, asyncio.Event()

    async def long_poll(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        if wait:
            begun.set()
            await asyncio.Event().wait()
        return await read(address, after, limit=limit, wait=wait)

    bench.log.read = long_poll  # type: ignore[method-assign]
    following = asyncio.create_task(bench.journal.poll(2.0))
    await begun.wait()
    await bench.journal.poll(0)
    assert not await following
    assert told[4:] == [True], "the one that made room says nothing"


async def test_an_entry_that_a_long_poll_brought_waits_for_no_other_poll(bench: Bench) -> None:
    """Between the page that held the entry and the answer to its append, the next long poll had begun: a takeover came 2 s late."""
    await bench.journal.poll(0)
    read, append = bench.log.read, bench.log.append
    grown, polled_again = asyncio.Event(), asyncio.Event()

    async def long_poll(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        if wait and int(after or 0) == len(bench.log.entries):
            if grown.is_set():
                polled_again.set()
                await asyncio.Event().wait()  # nothing more comes
            await grown.wait()
        return await read(address, after, limit=limit, wait=wait)

    async def slow_append(address: str, token: str, entry: bytes) -> None:
        await append(address, token, entry)
        grown.set()
        await polled_again.wait()

    async def follow() -> None:
        while True:
            await bench.journal.poll(2.0)

    bench.log.read, bench.log.append = long_poll, slow_append  # type: ignore[method-assign]
    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    try:
        assert await bench.journal.append(GroupChanged(name="later")) == len(bench.log.entries)
        assert not following.done(), "the append outlasted a whole poll and its time-out"
    finally:
        following.cancel()
        await asyncio.wait([following])


async def test_a_read_of_now_waits_for_no_long_poll_that_was_about_to_begin(bench: Bench) -> None:
    """Both waited for a read under way, the long poll first: whoever took an app then waited for all of it."""
    await bench.journal.poll(0)
    read, held, asked = bench.log.read, asyncio.Event(), list[float]()

    async def slow(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        asked.append(wait)
        await (asyncio.Event() if wait else held).wait()
        return await read(address, after, limit=limit, wait=wait)

    bench.log.read = slow  # type: ignore[method-assign]
    first = asyncio.create_task(bench.journal.poll(0))
    await asyncio.sleep(0)
    following = asyncio.create_task(bench.journal.poll(2.0))
    await asyncio.sleep(0)
    now = asyncio.create_task(bench.journal.poll(0))
    await asyncio.sleep(0)
    held.set()
    try:
        assert not await first
        assert not await asyncio.wait_for(now, 30)
        assert asked == [0.0, 0.0], "the long poll gave way"
        assert not await following, "it is for its caller to begin again"
    finally:
        following.cancel()
        await asyncio.wait([following])


async def test_a_restart_continues_where_the_notes_are(bench: Bench) -> None:
    for number in range(SAVE_EVERY + 7):
        bench.log.entries.append(b"noise %d" % number)
    await bench.journal.poll(0)
    bench.others_say("kitchen", GroupChanged(name="later"))
    await bench.journal.poll(0)
    expected = state_hash(bench.truth())
    again = bench.restart()
    assert state_hash(again.state) == expected
    assert again.proof_sent is None
    assert not await again.poll(0)
    assert [raw for _, raw in again.entries()] == bench.log.entries


async def test_a_damaged_state_is_folded_again_but_a_lost_entry_is_told(bench: Bench) -> None:
    for number in range(SAVE_EVERY):
        bench.log.entries.append(b"noise %d" % number)
    await bench.journal.poll(0)
    prefix = f"group/{bench.world.state.id}/"
    assert bench.notes.get(f"{prefix}state") is not None
    for damaged in (b"", b"garbage", b'{"fold":"another","state":{}}', b"{}"):
        bench.notes.write({f"{prefix}state": damaged})
        assert state_hash(bench.restart().state) == state_hash(bench.truth())
    bench.notes.write({f"{prefix}entry/{2:012d}": None, f"{prefix}state": None})
    with pytest.raises(Corrupt):
        bench.restart()


# --- appending -------------------------------------------------------------------------------------------------------


async def test_an_append_that_hangs_is_sent_again_after_a_reads_time_out(bench: Bench, world: World) -> None:
    """Others wait for it: an answer to a challenge came after the answer window."""
    bench.others_say("kitchen", GroupChanged(timers=replace(world.state.timers, read_timeout=50)))
    await bench.journal.poll(0)
    append, hung = bench.log.append, list[str]()

    async def hangs_once(address: str, token: str, entry: bytes) -> None:
        if not hung:
            hung.append(token)
            await asyncio.Event().wait()
        await append(address, token, entry)

    bench.log.append = hangs_once  # type: ignore[method-assign]
    own = asyncio.create_task(bench.journal.append(GroupChanged(name="later")))
    await asyncio.sleep(0)
    assert await bench.journal.append(Answered(seen=1), timeout=5.0) == len(bench.log.entries)
    assert await own == len(bench.log.entries) - 1
    assert hung


async def test_append_returns_the_position_after_reading_back(bench: Bench) -> None:
    position = await bench.journal.append(GroupChanged(name="mine"))
    assert position == bench.journal.state.position == len(bench.log.entries)
    assert bench.journal.state.name == "mine"
    assert not is_pending(bench.journal)


async def test_a_refused_entry_raises_with_the_folds_reason(bench: Bench) -> None:
    with pytest.raises(Denied, match="not installed"):
        await bench.journal.append(Released(app="b" * 16, epoch=1, clean=True))
    assert await bench.journal.append(GroupChanged(name="next"))


@pytest.mark.parametrize("lost", [True, False], ids=["lost on the way", "acknowledgement lost"])
async def test_an_ambiguous_append_is_repeated_with_the_same_token(bench: Bench, lost: bool) -> None:
    trouble = [Ambiguous("timed out"), Ambiguous("timed out")]
    if lost:
        bench.log.before_append = list(trouble)
    else:
        bench.log.after_append = list(trouble)
    await bench.journal.append(GroupChanged(name="once"))
    assert len(bench.log.tokens) == 1
    assert len(bench.log.entries) == bench.journal.state.position == len(bench.world.log) + 1


async def test_a_rate_limit_is_waited_out_with_growing_pauses(bench: Bench) -> None:
    await bench.journal.poll(0)
    bench.log.before_append = [BackendError("429, wait 1 s", retryable=True) for _ in range(5)]
    await bench.journal.append(GroupChanged(name="late"))
    assert bench.clock.slept == sorted(bench.clock.slept)
    assert len(bench.clock.slept) == 5


async def test_what_waited_is_asked_again_before_it_is_sent(bench: Bench) -> None:
    """The answer of the silent device arrived while our take was held back by a rate limit."""
    await bench.journal.poll(0)
    kitchen = bench.world.machines["kitchen"].id
    bench.log.before_append = [BackendError("429", retryable=True)]
    bench.others_say("kitchen", Answered(seen=1))
    with pytest.raises(Stale):
        await bench.journal.append(Took(epochs={APP: 1}), wanted=lambda state: kitchen not in state.answers)
    assert not bench.log.tokens
    assert not is_pending(bench.journal)
    assert not is_pending(bench.restart())


async def test_what_may_have_been_sent_is_not_taken_back(bench: Bench) -> None:
    await bench.journal.poll(0)
    bench.log.after_append = [Ambiguous("timed out")]
    bench.log.on_read = [BackendError("down", retryable=True)]
    wishes = iter([True, True, False, False, False])
    await bench.journal.append(GroupChanged(name="sent"), wanted=lambda _: next(wishes))
    assert bench.truth().name == "sent"


async def test_an_append_that_is_refused_for_good_leaves_nothing_behind(bench: Bench) -> None:
    await bench.journal.poll(0)
    for error in (Conflict("no"), Denied("no access")):
        bench.log.before_append = [error]
        with pytest.raises(FractalError) as caught:
            await bench.journal.append(GroupChanged(name="x"))
        assert caught.value is error
        assert not is_pending(bench.journal)
        assert not is_pending(bench.restart())


async def test_a_refusal_after_ambiguity_keeps_the_entry_on_its_way(bench: Bench) -> None:
    await bench.journal.poll(0)
    bench.log.before_append = [Ambiguous("timed out"), Denied("no access")]
    with pytest.raises(Ambiguous):
        await bench.journal.append(GroupChanged(name="x"))
    assert is_pending(bench.journal)
    await bench.journal.poll(0)
    assert not is_pending(bench.journal)
    assert bench.truth().name == "x"


async def test_time_runs_out_while_the_log_hides_the_entry(bench: Bench) -> None:
    await bench.journal.poll(0)
    bench.log.hidden = 1
    with pytest.raises(Ambiguous):
        await bench.journal.append(GroupChanged(name="hidden"), timeout=0.05)
    bench.log.hidden = 0
    await bench.journal.append(GroupChanged(name="second"))
    assert bench.truth().name == "second"
    assert len(bench.log.tokens) == 2


async def test_parallel_appends_all_arrive_in_one_chain(bench: Bench) -> None:
    names = [f"name {n}" for n in range(8)]
    positions = await asyncio.gather(*(bench.journal.append(GroupChanged(name=n)) for n in names))
    assert len(set(positions)) == 8
    assert bench.truth().skipped == 0


async def test_a_rotation_in_between_seals_again(bench: Bench, world: World) -> None:
    world.join("den", "cat")
    bench.log.entries = list(world.log)
    await bench.journal.poll(0)
    entry, new = world.removal("den")
    raw = world.seal("kitchen", entry)
    real = bench.log.append

    async def rotated_meanwhile(address: str, token: str, entry: bytes) -> None:
        if raw not in bench.log.entries:
            bench.log.entries.append(raw)
        await real(address, token, entry)

    bench.log.append = rotated_meanwhile  # type: ignore[method-assign]
    await bench.journal.append(GroupChanged(name="under the new key"))
    assert bench.journal.group_key() == (2, new)
    assert bench.journal.state.name == "under the new key"
    assert len(bench.log.tokens) == 2
