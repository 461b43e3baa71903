"""Which half of the routes is carried out when."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, cast

from fractal.agent import routing
from fractal.agent.agent import Agent
from fractal.agent.pulse import Pulse
from fractal.api.errors import BackendError
from fractal.api.transport import Peer
from fractal.shell.clock import SystemClock

ONE, TWO = (Peer(device="one", contact={}),), (Peer(device="two", contact={}),)


@dataclass
class Stand:
    """What the routing job sees of an agent, and of a transport that notes what it is told."""

    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("test"))
    clock: SystemClock = field(default_factory=SystemClock)
    pulse: Pulse = field(default_factory=Pulse)
    link_problem: str = ""
    serving: tuple[Any, ...] = ()
    told: list[str] = field(default_factory=list)
    broken: str = ""
    wanted: dict[str, tuple[Peer, ...]] = field(default_factory=lambda: {"serve": ONE, "forward": ONE})

    @property
    def transport(self) -> Stand:
        return self

    async def serve(self, *_: object) -> None:
        await self._tell("serve")

    async def forward(self, *_: object) -> None:
        await self._tell("forward")

    async def _tell(self, half: str) -> None:
        self.told.append(half)
        if half == self.broken:
            raise BackendError("no such port")

    async def after(self, beat: bool = True) -> list[str]:
        """What it was told because of a beat."""
        self.told.clear()
        if beat:
            self.pulse.beat()
        for _ in range(20):
            await asyncio.sleep(0)
        return list(self.told)


async def test_a_half_that_stands_is_not_gone_through_for_the_other(monkeypatch: Any) -> None:
    """On a gateway: whoever waits for an app that moved waits for the one half."""
    stand = Stand()
    monkeypatch.setattr(routing, "desired_serving", lambda _: (stand.wanted["serve"], ()))
    monkeypatch.setattr(routing, "desired_forwarding", lambda _: (stand.wanted["forward"], ()))
    job = asyncio.create_task(routing.route(cast("Agent", stand)))
    try:
        assert await stand.after(beat=False) == ["serve", "forward"]
        assert await stand.after() == []
        stand.wanted["forward"] = TWO
        assert await stand.after() == ["forward"]
        stand.wanted["serve"] = TWO
        assert await stand.after() == ["serve"]
        stand.wanted["serve"], stand.broken = ONE, "serve"
        assert await stand.after() == ["serve"]
        assert "no such port" in stand.link_problem
        stand.wanted["forward"], stand.broken = ONE, ""
        assert await stand.after() == ["serve", "forward"]  # what failed is tried with the next change
        assert not stand.link_problem
    finally:
        job.cancel()
        await asyncio.wait([job])
