"""A guard that nobody needs ends by itself; one that keeps anything never does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fractal.guard.commands import COMMANDS
from fractal.guard.runs import Run
from fractal.guard.server import IDLE, Guard
from fractal.guard.wire import Lines


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(tmp_path: Path, clock: Clock) -> Guard:
    return Guard(tmp_path, clock=clock)


def ends(guard: Guard) -> bool:
    guard.end_if_idle()
    return guard.ending


def test_without_runs_and_agents_it_ends_after_a_minute(guard: Guard, clock: Clock) -> None:
    assert not ends(guard)
    clock.now += IDLE - 0.1
    assert not ends(guard)
    clock.now += 0.1
    assert ends(guard)


@pytest.mark.parametrize("granted", [False, True])
def test_with_a_run_it_never_ends_whether_that_may_go_on_or_not(
    guard: Guard, clock: Clock, granted: bool
) -> None:
    guard.runs["g.a.1"] = run = Run("g.a.1", None)
    run.frozen, run.deadline = not granted, clock.now + 1e9 if granted else 0.0
    for _ in range(3):
        clock.now += 1e6
        assert not ends(guard)
    COMMANDS["forget"](guard, {"run": "g.a.1"}, lambda _: None)
    assert not ends(guard)
    clock.now += IDLE - 0.1
    assert not ends(guard)
    clock.now += 0.1
    assert ends(guard)


def test_with_an_agent_connected_it_never_ends(guard: Guard, clock: Clock) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lines = Lines(ours)
        guard._clients.add(lines)
        clock.now += 1e6
        assert not ends(guard)
        guard._clients.discard(lines)
        clock.now += IDLE
        assert ends(guard)
