"""Whom a device challenges, and when: not while it cannot tell silence from an outage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from fractal.agent.group import GroupAgent
from fractal.agent.jobs.failover import _challenge_one
from fractal.api.errors import BackendError
from fractal.core.entries import Entry
from fractal.core.lease import Seen, Suspicion
from fractal.testing.group import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from fractal.agent.agent import Agent
    from fractal.agent.journal import Journal
    from fractal.core.model import GroupState


class Log:
    """A journal that can be read, or not, and that takes what is wanted."""

    def __init__(self, state: GroupState, *, readable: bool) -> None:
        self.state = state
        self.done: list[str] = []
        self._readable = readable
        self.heard: Callable[[bool], None] = lambda _: None

    async def poll(self, wait: float) -> bool:
        self.done.append("read")
        self.heard(self._readable)
        if not self._readable:
            raise BackendError("no connection", retryable=True)
        return False

    async def append(self, entry: Entry, *, wanted: Callable[[GroupState], bool]) -> int:
        assert wanted(self.state)
        self.done.append("append")
        return 1


def group(log: Log) -> GroupAgent:
    made = GroupAgent.__new__(GroupAgent)
    made.agent = cast("Agent", SimpleNamespace(clock=SimpleNamespace(boottime=lambda: 100.0)))
    made.suspicion, made.seen, made.deaf = Suspicion(since=0.0), Seen(challenges={("attic", 9): 50.0}), False
    made.journal = cast("Journal", log)
    log.heard = made.heard_log
    return made


@pytest.mark.parametrize("readable", [True, False])
async def test_nobody_is_challenged_in_an_outage_of_ones_own(world: World, readable: bool) -> None:
    """Such a challenge got into the log when the outage ended, and its window with it (seed 6122)."""
    log = Log(world.state, readable=readable)
    here = group(log)
    await _challenge_one(here, "attic")
    assert log.done == (["read", "append"] if readable else ["read"])
    assert here.deaf is not readable
    assert here.suspicion.since == (0.0 if readable else 100.0)


def test_silence_counts_from_zero_when_reads_work_again(world: World) -> None:
    here = group(Log(world.state, readable=True))
    here.heard_log(True)
    assert here.suspicion.since == 0.0
    assert list(here.seen.challenges.values()) == [50.0]
    here.heard_log(False)
    here.suspicion = Suspicion(since=0.0)
    here.heard_log(True)
    assert here.suspicion.since == 100.0, "the end of the outage"
    assert list(here.seen.challenges.values()) == [100.0], "whoever is challenged could not answer in it"
