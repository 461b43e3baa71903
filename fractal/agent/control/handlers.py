"""Every command that the agent serves."""

from __future__ import annotations

from fractal.agent.control import (
    app,
    app_install,
    app_remove,
    app_secret,
    catalog,
    device,
    doctor,
    gateway,
    group,
    leaving,
    log,
    member,
    policy,
    route,
    snapshot,
    status,
    store,
    terminal,
)
from fractal.agent.control.dispatch import collect

COMMANDS = collect(
    app,
    app_install,
    app_remove,
    app_secret,
    catalog,
    device,
    doctor,
    gateway,
    group,
    leaving,
    log,
    member,
    policy,
    route,
    snapshot,
    status,
    store,
    terminal,
)
