"""What the agent knows of its runs while looks and ends cross."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from fractal.agent.agent import Agent
from fractal.api.runtime import Health, RunStatus, Runtime, ServiceStatus

WEB = ServiceStatus(name="web", running=True, health=Health.HEALTHY, endpoints=(("web", "127.0.0.1", 8080),))
RUN = RunStatus(group="g", app="a", epoch=1, services=(WEB,))


class Told:
    """A runtime whose looks are answered by hand, in any order."""

    def __init__(self) -> None:
        self.looks: list[asyncio.Future[Sequence[RunStatus]]] = []

    async def observe(self) -> Sequence[RunStatus]:
        self.looks.append(asyncio.get_running_loop().create_future())
        return await self.looks[-1]


def agent_with(runtime: Told) -> Agent:
    none = cast("Any", None)
    made = Agent(
        config=none, plugins=none, keys=none, shell=none, logger=none, guard=none, pid=0, started=0.0
    )
    made.runtime = cast("Runtime", runtime)
    return made


async def looking(agent: Agent, runtime: Told) -> asyncio.Task[None]:
    count = len(runtime.looks)
    task = asyncio.create_task(agent.observe())
    while len(runtime.looks) == count:
        await asyncio.sleep(0)
    return task


async def test_a_look_that_began_before_an_end_does_not_bring_it_back() -> None:
    """Else a release would call a stopped app one that runs, and the next device would wait for nothing."""
    runtime = Told()
    agent = agent_with(runtime)
    agent.runs = (RUN,)
    look = await looking(agent, runtime)
    agent.ended([RUN.key])
    (run,) = agent.runs
    assert not run.running and run.health is Health.STOPPED and run.services[0].endpoints == ()
    runtime.looks[0].set_result([RUN])
    while len(runtime.looks) == 1:  # it looks again
        await asyncio.sleep(0)
    assert not agent.runs[0].running
    runtime.looks[1].set_result([])
    await look
    assert not agent.runs


async def test_a_look_that_took_longer_than_a_later_one_is_old_news() -> None:
    runtime = Told()
    agent = agent_with(runtime)
    first, second = await looking(agent, runtime), await looking(agent, runtime)
    runtime.looks[1].set_result([RUN])
    await second
    runtime.looks[0].set_result([])
    await first
    assert agent.runs == (RUN,)
