"""The journal across crashes, time-outs and restarts: nothing lost, nothing twice, nothing believed before it is noted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fractal.agent.journal import PAGE, SAVE_EVERY, Journal, Stale
from fractal.agent.notes import MemoryNotes
from fractal.api.coordination import MAX_ENTRY, Page, Signal
from fractal.api.errors import Ambiguous, BackendError, Conflict, Corrupt, Denied, FractalError
from fractal.builtin.memory_log import MemoryCoordinator, MemoryHub
from fractal.core.entries import Answered, Challenged, Entry, GroupChanged, Released, Took
from fractal.core.log import checkpoint_bytes, state_hash
from fractal.core.model import GroupState, Role
from fractal.crypto.keys import DeviceKeys
from fractal.testing.context import real_context
from fractal.testing.group import SeededEntropy, World

APP = "a" * 16


class Killed(BaseException):
    """The agent's process dies here."""


class Clock:
    """Time that passes only by sleeping; a sleep lets other tasks run."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def boottime(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Log:
    """A log in memory that fails as told: the next append or read meets the next of `trouble`."""

    staleness = 0.0

    def __init__(self, entries: Sequence[bytes], clock: Clock) -> None:
        self.entries = list(entries)
        self.tokens: dict[str, bytes] = {}
        self.clock = clock
        self.before_append: list[BaseException] = []
        self.after_append: list[BaseException] = []
        self.on_read: list[BaseException] = []
        self.appends = 0
        self.page = 500
        self.hidden = 0
        """How many of the newest entries reads do not show."""
        self.slow = 0.0

    async def append(self, address: str, token: str, entry: bytes) -> None:
        self.appends += 1
        if self.before_append:
            raise self.before_append.pop(0)
        if token not in self.tokens:
            self.tokens[token] = entry
            self.entries.append(entry)
        assert self.tokens[token] == entry, "one token, two entries"
        if self.after_append:
            raise self.after_append.pop(0)

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        self.clock.now += self.slow
        if self.on_read:
            raise self.on_read.pop(0)
        start, end = int(after or 0), len(self.entries) - self.hidden
        entries = tuple(self.entries[start : min(end, start + min(limit, self.page))])
        return Page(entries, str(start + len(entries)), start + len(entries) == end)

    async def create(self, group: str, name: str) -> str:
        raise NotImplementedError

    async def join(self, address: str) -> str:
        raise NotImplementedError

    async def leave(self, address: str) -> None:
        raise NotImplementedError

    async def signal(self, address: str, payload: bytes, *, to: str | None = None) -> None:
        raise NotImplementedError

    async def signals(self, address: str) -> Sequence[Signal]:
        raise NotImplementedError

    async def invite(self, address: str, member: str) -> str:
        raise NotImplementedError

    async def remove(self, address: str, member: str) -> None:
        raise NotImplementedError


class Notes(MemoryNotes):
    """Notes that kill the process, or fail, before or after the write that touches a key."""

    def __init__(self) -> None:
        super().__init__()
        self.kill: tuple[str, str, BaseException] | None = None
        self.writes = 0

    def write(self, changes: Mapping[str, bytes | None]) -> None:
        self.writes += 1
        when, key, how = self.kill or ("", "", Killed())
        hit = bool(key) and any(key in name for name in changes)
        if hit:
            self.kill = None
        if hit and when == "before":
            raise how
        super().write(changes)
        if hit and when == "after":
            raise how


class Bench:
    """One device's journal, its log and its notes; `restart` is a new process on the same notes."""

    def __init__(self, world: World, machine: str = "attic") -> None:
        self.world = world
        self.keys: DeviceKeys = world.machines[machine].keys
        self.clock = Clock()
        self.log = Log(world.log, self.clock)
        self.notes = Notes()
        self.runs = 0
        self.journal = self.restart()

    def restart(self) -> Journal:
        self.runs += 1
        self.journal = Journal(
            group=self.world.state.id,
            address="test#1",
            coordinator=self.log,
            keys=self.keys,
            notes=self.notes,
            clock=self.clock,
            entropy=SeededEntropy(1_000 + self.runs),
            group_keys=self.world.group_keys if self.runs == 1 else None,
        )
        return self.journal

    def others_say(self, machine: str, entry: Entry) -> None:
        """Another device appends, having read all of this log."""
        state = self.world.read(self.log.entries)
        self.log.entries.append(self.world.seal(machine, entry, state=state))

    def truth(self) -> GroupState:
        return self.world.read(self.log.entries)


def is_pending(journal: Journal) -> bool:
    return journal.pending


def proof(journal: Journal) -> float | None:
    return journal.proof_sent


@pytest.fixture
def world() -> World:
    world = World.founded()
    world.join("kitchen", "bob", Role.ADMIN)
    world.install(APP)
    return world


@pytest.fixture
async def bench(world: World) -> Bench:
    return Bench(world)


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


# --- crashes ---------------------------------------------------------------------------------------------------------

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


# --- keys and checkpoints --------------------------------------------------------------------------------------------


async def test_without_a_key_nothing_is_proved_until_it_comes(world: World) -> None:
    keys, world.group_keys = world.group_keys, {}
    bench = Bench(world, "kitchen")
    world.group_keys = keys
    await bench.journal.poll(0)
    assert bench.journal.state.sealed_out == 1
    assert proof(bench.journal) is None
    with pytest.raises(Denied):
        await bench.journal.append(Challenged(device=world.machines["attic"].id))
    with pytest.raises(Denied):
        bench.journal.group_key()
    journal = bench.restart()
    await journal.poll(0)
    assert proof(journal) is None
    journal.add_keys(keys)
    assert state_hash(journal.state) == state_hash(world.state)
    await journal.poll(0)
    assert proof(journal) is not None
    assert bench.restart().group_key() == (1, keys[1])


async def test_a_long_blindness_does_not_overwrite_what_was_folded_before(world: World) -> None:
    world.join("den", "cat")
    bench = Bench(world, "den")
    world.remove("den")
    new = world.group_keys[2]
    world.must("attic", GroupChanged(name="sealed"))
    for number in range(2 * SAVE_EVERY):
        world.put(b"noise %d" % number)
    bench.log.entries, bench.log.page = list(world.log), 7
    await bench.journal.poll(0)
    journal = bench.restart()
    await journal.poll(0)
    journal.add_keys({2: new})
    assert state_hash(journal.state) == state_hash(world.state)


async def test_begins_with_a_checkpoint_and_ends_like_the_others(world: World) -> None:
    data, expected = checkpoint_bytes(world.state), state_hash(world.state)
    world.must("kitchen", GroupChanged(name="since"))
    bench = Bench(world, "kitchen")
    bench.journal.adopt(data, expected)
    bench.log.page = 2
    await bench.journal.poll(0)
    assert state_hash(bench.journal.state) == state_hash(world.state)
    assert state_hash(bench.restart().state) == state_hash(world.state)
    with pytest.raises(Denied):
        bench.journal.adopt(data, expected)


async def test_a_checkpoint_of_another_history_is_dropped_for_the_log(world: World) -> None:
    other = replace(world.state, head=bytes(32), name="made up")
    bench = Bench(world, "kitchen")
    with pytest.raises(Corrupt):
        bench.journal.adopt(checkpoint_bytes(other), state_hash(world.state))
    bench.journal.adopt(checkpoint_bytes(other), state_hash(other))
    for page in (2, 500):
        bench.log.page = page
        await bench.journal.poll(0)
    assert state_hash(bench.journal.state) == state_hash(world.state)
    assert bench.restart().state.name == "Group 1"


async def test_a_log_shorter_than_the_checkpoint_proves_nothing(world: World) -> None:
    bench = Bench(world, "kitchen")
    bench.journal.adopt(checkpoint_bytes(world.state), state_hash(world.state))
    bench.log.entries = world.log[:2]
    await bench.journal.poll(0)
    assert proof(bench.journal) is None


async def test_show_tells_kinds_and_reasons(bench: Bench) -> None:
    bench.log.entries.append(b"noise")
    await bench.journal.poll(0)
    shown: list[Mapping[str, Any]] = bench.journal.show()
    assert [line["kind"] for line in shown] == [
        "group.created",
        "device.approved",
        "store.added",
        "app.installed",
        "",
    ]
    assert [bool(line["skipped"]) for line in shown] == [False] * 4 + [True]
    assert bench.journal.show(after=4)[0]["position"] == 5


async def test_a_removed_device_learns_it_and_falls_silent(world: World) -> None:
    world.join("den", "cat")
    bench = Bench(world, "den")
    await bench.journal.poll(0)
    before = proof(bench.journal)
    world.remove("den")
    bench.log.entries = list(world.log)
    bench.clock.now += 10
    await bench.journal.poll(0)
    assert bench.journal.state.left
    assert proof(bench.journal) == before
    with pytest.raises(Denied, match="removed"):
        await bench.journal.append(Answered(seen=1))
    assert bench.log.appends == 0


async def test_three_devices_on_the_memory_log_race_and_agree(world: World, tmp_path: Path) -> None:
    world.join("den", "cat")
    hub = MemoryHub()
    async with real_context(tmp_path) as context:
        address = await MemoryCoordinator(context, hub).create("0" * 32, "")
        for number, raw in enumerate(world.log):
            await MemoryCoordinator(context, hub).append(address, f"old-{number}", raw)
        journals = [
            Journal(
                group=world.state.id,
                address=address,
                coordinator=MemoryCoordinator(replace(context, device=machine.id), hub),
                keys=machine.keys,
                notes=MemoryNotes(),
                clock=context.clock,
                entropy=context.entropy,
                group_keys=world.group_keys,
            )
            for machine in world.live()
        ]
        attic = world.machines["attic"].id

        async def take(journal: Journal) -> bool:
            try:
                await journal.append(Took(epochs={APP: 1}), wanted=lambda state: state.apps[APP].epoch == 0)
            except (Stale, Denied):
                return False
            return True

        won = await asyncio.gather(*(take(j) for j in journals))
        said = await asyncio.gather(*(j.append(Answered(seen=1)) for j in journals for _ in range(5)))
        await asyncio.gather(*(j.poll(0) for j in journals))
    assert sum(won) == 1
    assert len(set(said)) == 15
    assert len({state_hash(j.state) for j in journals}) == 1
    assert {j.state.forked for j in journals} == {""}
    assert journals[0].state.apps[APP].owner in {m.id for m in world.live()}
    assert attic in journals[0].state.answers


@pytest.mark.parametrize("flood", [(b"x" * (MAX_ENTRY + 1),), (b"",), (b"x",) * (PAGE + 1)])
async def test_what_no_log_takes_is_not_kept_and_proves_nothing(
    bench: Bench, flood: tuple[bytes, ...]
) -> None:
    """A hostile server must not fill this device's memory and disk, nor count as read."""
    await bench.journal.poll(0)
    before, state = proof(bench.journal), bench.journal.state
    writes = bench.notes.writes
    honest = bench.log.read

    async def read(address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        return Page(flood, "9", head=True)

    bench.log.read = read  # type: ignore[method-assign]  # the server turns hostile
    with pytest.raises(BackendError, match="impossible size"):
        await bench.journal.poll(0)
    assert (proof(bench.journal), bench.journal.state, bench.notes.writes) == (before, state, writes)
    bench.log.read = honest  # type: ignore[method-assign]  # and back
    bench.others_say("kitchen", GroupChanged(name="goes on"))
    assert await bench.journal.poll(0)
    assert bench.journal.state.name == "goes on"
