"""`app.secret`: what was generated has to be read by somebody once, such as an administrator's first password."""

from __future__ import annotations

from typing import Any

from fractal.agent.agent import Agent
from fractal.agent.control.app import job_of, named
from fractal.agent.control.dispatch import command
from fractal.agent.control.names import resolve
from fractal.agent.control.params import Params
from fractal.agent.control.progress import Progress


@command("app.secret")
async def app_secret(agent: Agent, params: Params, _: Progress) -> dict[str, Any]:
    """Raises UnknownName, and BackendError where this device does not hold the app's key."""
    group, app = named(agent, params)
    name = resolve("secret", params.text("secret"), {name: name for name in app.secrets})
    return {"value": job_of(group, app).data.secrets()[name]}
