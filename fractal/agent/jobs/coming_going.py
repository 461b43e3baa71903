"""Beginnings and ends: joins that were asked for, taking part in a group for the first time, saying that one is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fractal.agent.joining import await_welcome, pending_joins
from fractal.api.errors import FractalError, NotFound, Unreachable
from fractal.core.entries import DeviceUpdated

if TYPE_CHECKING:
    from fractal.agent.agent import Agent
    from fractal.agent.group import GroupAgent

LOOK = 2.0
REFUSED_PAUSE = 60.0
"""Seconds before a welcome that does not hold is looked at again: another one may have come."""


async def resume_joins(agent: Agent) -> None:
    """Go on awaiting every welcome that no command awaits: after a restart, or after the command gave up."""
    not_before: dict[str, float] = {}
    while True:
        now = agent.clock.boottime()
        for group in pending_joins(agent.notes):
            if group in agent.awaiting or not_before.get(group, 0.0) > now:
                continue
            try:
                await await_welcome(agent, group, timeout=0.0, open_store=agent.open_store)
                await take_part(agent, group)
                agent.logger.info("joined group %s", group)
            except NotFound:
                continue  # a command was quicker
            except Unreachable:
                not_before[group] = now + LOOK
            except FractalError as error:
                agent.logger.warning("joining group %s: %s", group, error)
                not_before[group] = now + REFUSED_PAUSE
        await agent.clock.sleep(LOOK)


async def take_part(agent: Any, group: str) -> None:
    """Open a group that this device was welcomed to, and say what this device does there. Repeatable.

    `agent` is an `Agent`, or what the control API takes for one.
    """
    opened = await agent.open_group(group)
    await opened.journal.poll(0.0)
    me = opened.journal.state.devices.get(agent.keys.id)
    roles = agent.config.device.roles
    if me is not None and me.roles != roles:
        await opened.journal.append(DeviceUpdated(device=me.id, roles=roles))


async def say_away(group: GroupAgent, duration_ms: int, limit: float) -> None:
    """Ask the others not to challenge this device for a while, if it still owns an app that they could take.

    Only asked: it defers a challenge, never a proof. What goes wrong is told and costs a needless move at worst.
    """
    state, me = group.state, group.me
    keeps = [
        a.name
        for a in state.apps.values()
        if a.owner == me and not a.removed and a.release is None and a.policy.failover == "automatic"
    ]
    if not keeps or group.blind or len([d for d in state.devices.values() if not d.removed]) < 2:
        return
    until = group.agent.clock.wall_ms() + duration_ms
    try:
        await group.journal.append(DeviceUpdated(device=me, away_until=until), timeout=limit)
    except FractalError as error:
        group.logger.warning("could not say that this device is away: %s", error)
