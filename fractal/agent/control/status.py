"""`status`, `log` and the agent's own state."""

from __future__ import annotations

from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_group
from fractal.agent.control.params import Params
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress

DEFAULT_TAIL = 50


@command("status.show")
async def show_status(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """Every group's status, or one's."""
    groups = [find_group(agent, params)] if "group" in params else list(agent.groups.values())
    found = [dict(group.status()) for group in groups]
    return {"groups": sorted(found, key=lambda one: one["group"]["name"].casefold())}


@command("agent.status")
async def show_agent(agent: ControlAgent, _params: Params, _: Progress) -> dict[str, Any]:
    """The agent's own status."""
    return dict(agent.status())
