"""A journal on a log that fails as told, with notes that may be a process's last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from fractal.agent.journal import Journal
from fractal.agent.notes import MemoryNotes
from fractal.api.coordination import Page, Signal
from fractal.core.entries import Entry
from fractal.core.model import GroupState
from fractal.crypto.keys import DeviceKeys
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
