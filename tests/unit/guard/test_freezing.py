"""The promise behind I1: when proof runs out nothing of the app runs, however it forked, whatever the agent does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import pytest

from fractal.api.errors import Conflict, NotFound
from fractal.api.runtime import Freezable
from fractal.guard.client import GuardClient

MARGIN = 2.0
"""Seconds that the `standard` profile allows between deadline and standstill."""

Bench = Any  # the fixtures' classes live in conftest.py, which cannot be imported by name


async def test_at_the_deadline_the_whole_family_stops(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family, "storm")
    deadline = bench.now() + 0.5
    await guard.freeze("g.a.1")
    await guard.grant({"g.a.1": deadline})
    await family.beats_again()
    await bench.until_still(guard)
    assert deadline - 0.5 < family.last() < deadline + MARGIN
    assert await family.stands_still()
    assert family.alive() == {"service", "child", "daemon", "scrubbed"}


async def test_a_stopped_agent_changes_nothing(bench: Bench, guard: GuardClient) -> None:
    """A separate agent grants and grants; SIGSTOP to it, and the guard freezes by itself."""
    family = bench.family()
    await guard.register(Freezable(run="g.a.1"))
    source = (
        "import asyncio, pathlib, sys, time\n"
        "from fractal.guard.client import GuardClient\n"
        "async def main():\n"
        "    guard = GuardClient(pathlib.Path(sys.argv[1]))\n"
        "    while True:\n"
        "        await guard.grant({'g.a.1': time.clock_gettime(time.CLOCK_BOOTTIME) + 1.5})\n"
        "        await asyncio.sleep(0.1)\n"
        "asyncio.run(main())\n"
    )
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, str(guard.path), env=bench.environment
    )
    try:
        while (await guard.status())["g.a.1"].frozen:
            await asyncio.sleep(0.01)
        await guard.spawn(bench.request(family))
        await family.up()
        os.kill(agent.pid, signal.SIGSTOP)
        stopped = bench.now()
        await bench.until_still(guard)
        assert family.last() < stopped + 1.5 + MARGIN
        assert await family.stands_still()
        os.kill(agent.pid, signal.SIGCONT)
        await family.beats_again()
    finally:
        agent.kill()
        await agent.wait()


async def test_only_a_grant_thaws(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family)
    await guard.freeze("g.a.1")
    await guard.unpause("g.a.1")
    await guard.register(Freezable(run="g.a.1"))
    assert await guard.grant({"g.a.1": bench.now() - 1}) == frozenset()
    assert await family.stands_still()
    for pid in family.pids().values():
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(0.3)
    await bench.until_still(guard)
    assert await family.stands_still()
    assert await guard.grant({"g.a.1": bench.now() + 60}) == {"g.a.1"}
    await family.beats_again()


async def test_a_final_freeze_outlasts_every_grant(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family)
    await guard.freeze("g.a.1", final=True)
    assert await guard.grant({"g.a.1": bench.now() + 60}) == frozenset()
    assert await family.stands_still()
    await guard.kill("g.a.1")
    assert family.alive() == set()


async def test_deadlines_only_grow_but_a_freeze_takes_them_back(bench: Bench, guard: GuardClient) -> None:
    await guard.register(Freezable(run="g.a.1"))
    await guard.grant({"g.a.1": bench.now() + 60})
    await guard.grant({"g.a.1": bench.now() + 5})
    assert (await guard.status())["g.a.1"].deadline > bench.now() + 50
    await guard.freeze("g.a.1")
    assert (await guard.status())["g.a.1"].deadline < bench.now()


async def test_a_run_comes_up_frozen_and_starts_nothing_before_a_grant(
    bench: Bench, guard: GuardClient
) -> None:
    family = bench.family()
    with pytest.raises(NotFound, match=r"g\.a\.1"):
        await guard.spawn(bench.request(family))
    await guard.register(Freezable(run="g.a.1"))
    assert (await guard.status())["g.a.1"].frozen
    with pytest.raises(Conflict, match="grant"):
        await guard.spawn(bench.request(family))
    assert family.pids() == {}


async def test_freezing_one_run_leaves_the_others_alone(bench: Bench, guard: GuardClient) -> None:
    one, two = bench.family("one"), bench.family("two")
    await bench.start(guard, one)
    await bench.start(guard, two, run="g.b.7")
    await guard.freeze("g.a.1")
    await two.beats_again()
    assert await one.stands_still()


async def test_a_pause_and_a_freeze_do_not_undo_each_other(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    await bench.start(guard, family)
    await guard.pause("g.a.1")
    assert await family.stands_still()
    await guard.grant({"g.a.1": bench.now() + 60})
    assert await family.stands_still()
    await guard.freeze("g.a.1")
    await guard.unpause("g.a.1")
    assert await family.stands_still()
    await guard.grant({"g.a.1": bench.now() + 60})
    await family.beats_again()


@pytest.mark.parametrize("frozen", [False, True])
async def test_kill_ends_what_ignores_every_polite_signal(
    bench: Bench, guard: GuardClient, frozen: bool
) -> None:
    family = bench.family()
    await bench.start(guard, family, "stubborn", "storm")
    await guard.signal("g.a.1", "main", "SIGTERM")
    if frozen:
        await guard.freeze("g.a.1")
    before = family.sizes()
    await guard.kill("g.a.1")
    assert family.alive() == set()
    assert (await guard.status())["g.a.1"].pids == ()
    if frozen:
        assert family.sizes() == before, "something ran between freeze and death"
    await guard.forget("g.a.1")
    assert "g.a.1" not in await guard.status()


async def test_a_run_with_processes_cannot_be_forgotten(bench: Bench, guard: GuardClient) -> None:
    await bench.start(guard, bench.family())
    with pytest.raises(Conflict, match="kill"):
        await guard.forget("g.a.1")


async def test_spawning_twice_starts_once_and_exit_codes_are_kept(bench: Bench, guard: GuardClient) -> None:
    family = bench.family()
    pid = await bench.start(guard, family)
    assert await guard.spawn(bench.request(family)) == pid
    assert await guard.signal("g.a.1", "main", "SIGTERM")
    while (await guard.status())["g.a.1"].services["main"].code is None:
        await asyncio.sleep(0.01)
    assert (await guard.status())["g.a.1"].services["main"].code == -signal.SIGTERM
    assert not await guard.signal("g.a.1", "main", "SIGTERM")
