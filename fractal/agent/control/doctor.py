"""`doctor`: what this device can see of what is wrong, with what to do about each. It only looks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_group
from fractal.agent.control.params import Params
from fractal.agent.control.ports import ControlAgent, ControlGroup
from fractal.agent.control.progress import Progress
from fractal.api.errors import BackendError, FractalError
from fractal.core.model import DeviceRole

TIMEOUT = 30.0
LOG_LATE = 15.0
"""Seconds after which a log that was not read to its end is worth a word."""
RUNTIME_LIMIT = 10.0
LITTLE, NOTHING = 0.05, 0.01
"""Shares of free space below which it is worth a word, and below which apps are about to fail."""
STALE_SNAPSHOTS = 3
"""This many intervals without a committed snapshot are too many."""

MIRROR_LATE = 3600.0
"""Seconds for which a mirror may be behind: filling one that is new takes longer, and is worth a word all the same."""

Finding = dict[str, Any]


@command("doctor.run")
async def run_doctor(agent: ControlAgent, params: Params, progress: Progress) -> dict[str, Any]:
    """Every check in turn; one that fails to look is a finding too."""
    groups = [find_group(agent, params)] if "group" in params else list(agent.groups.values())
    checks: list[tuple[str, Callable[[], Awaitable[list[Finding]]]]] = [("guard", partial(_guard, agent))]
    for group in groups:
        name = group.journal.state.name
        for word, check in (("log", _log), ("devices", _devices), ("apps", _apps)):
            checks.append((f"{name}: {word}", partial(check, group)))
        checks.append((f"{name}: stores", partial(_stores, agent, group)))
        checks.append((f"{name}: gateways", partial(_gateways, agent, group)))
        # One route end to end for each app: what several names share is walked once.
        walked: set[str] = set()
        for route in group.journal.state.routes.values():
            checks.append(
                (f"{name}: route {route.name}", partial(_walk, group, route.name, route.app not in walked))
            )
            walked.add(route.app)
    checks += [("runtime", partial(_runtime, agent)), ("volumes", partial(_volumes, agent))]
    checks += [(f"plugin check {name}", run) for name, run in _plugin_checks(agent)]
    findings: list[Finding] = []
    for name, check_one in checks:
        progress.say(f"looking at {name}")
        findings += [{"check": name, **finding} for finding in await _look(check_one)]
    return {"checks": [name for name, _ in checks], "findings": findings}


async def _look(check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        async with asyncio.timeout(TIMEOUT):
            return await check()
    except TimeoutError:
        return [finding(f"no answer within {TIMEOUT:.0f} s", "See the agent's log.")]
    except FractalError as error:
        return [finding(str(error), "See the agent's log.")]


def finding(what: str, remedy: str, *, severe: bool = True) -> Finding:
    """One thing that is wrong, without the name of its check."""
    return {"what": what, "remedy": remedy, "severe": severe}


async def _guard(agent: ControlAgent) -> list[Finding]:
    guard = agent.status()["guard"]
    if guard == "holding":
        return []
    return [
        finding(
            f"the guard is not well: {guard}",
            "The agent starts a new one by itself; if that goes on, restart it.",
        )
    ]


async def _runtime(agent: ControlAgent) -> list[Finding]:
    """Whether what runs the apps answers. They run on without it, under the guard."""
    name = agent.config.runtime.backend
    try:
        async with asyncio.timeout(RUNTIME_LIMIT):
            await agent.runtime.observe()
    except TimeoutError:
        return [finding(f"runtime {name} does not answer within {RUNTIME_LIMIT:g} s", _restart(name))]
    except BackendError as error:
        return [finding(f"runtime {name}: {error}", _restart(name))]
    return []


def _restart(runtime: str) -> str:
    how = _RESTARTS.get(runtime, f"see the page of the plugin {runtime}")
    return f"Start it again ({how}). Apps that run go on; nothing can be started meanwhile."


_RESTARTS = {
    "docker": "systemctl restart docker",
    "podman": "systemctl restart podman.socket",
    "process": "it is part of the agent: systemctl restart homeserver",
}
"""How the engine of a runtime is started again, where a service manager has it under its usual name."""


async def _volumes(agent: ControlAgent) -> list[Finding]:
    """Whether the volumes are there, and room for more."""
    name = agent.config.snapshot.backend
    try:
        await agent.snapshotter.volumes()
        room = await agent.snapshotter.usage()
    except BackendError as error:
        remedy = "Look whether its disk is there, mounted and writable."
        return [finding(f"snapshotter {name}: {error}", remedy)]
    share = room.free / room.total if room.total else 1.0
    if share >= LITTLE:
        return []
    return [
        finding(
            f"{share:.1%} of the file system of the volumes is free ({room.free >> 20} MiB)",
            "Free some space, or give it more: apps that cannot write fail, and snapshots with them.",
            severe=share < NOTHING,
        )
    ]


async def _log(group: ControlGroup) -> list[Finding]:
    status = group.status()["group"]
    found = [
        finding(alarm, "See `homeserver status` and `homeserver log show`.") for alarm in status["alarms"]
    ]
    age = status["log_age_s"]
    if age is None or age > LOG_LATE:
        since = "not since the agent started" if age is None else f"{age:.0f} s ago"
        found.append(
            finding(
                f"the log was last read to its end {since}",
                "Look whether this device reaches the coordination backend: nobody can take apps over meanwhile.",
            )
        )
    return found


async def _devices(group: ControlGroup) -> list[Finding]:
    status = group.status()
    found = [
        finding(
            f"device {device['name']} is not online",
            f"Switch it on, or if it is gone for good: homeserver device remove {device['name']!r}",
            severe=False,
        )
        for device in status["devices"]
        if device["online"] is False and not device["this"]
    ]
    if status["group"]["pending"]:
        found.append(
            finding(
                "a device asks to join", "homeserver device list, homeserver device approve", severe=False
            )
        )
    return found


async def _apps(group: ControlGroup) -> list[Finding]:
    found: list[Finding] = []
    for app in group.status()["apps"]:
        name, running = app["name"], app["desired"] == "running"
        if app["note"]:
            found.append(
                finding(
                    f"{name}: {app['note']}", f"homeserver app show {name!r}, homeserver app logs {name!r}"
                )
            )
        elif running and app["health"] not in ("healthy", "starting"):
            found.append(finding(f"{name} is {app['health']}", f"homeserver app logs {name!r}"))
        policy = group.journal.state.apps[app["id"]].policy
        late = STALE_SNAPSHOTS * policy.interval / 1000
        if running and app["would_lose_s"] is not None and app["would_lose_s"] > late:
            found.append(
                finding(
                    f"{name} would lose {app['would_lose_s']:.0f} s of data now",
                    "Check its store: homeserver store check",
                )
            )
        found += _mirrors(name, app["mirrors"])
        if policy.failover == "automatic" and policy.standby and not app["standby"]:
            found.append(
                finding(
                    f"no other device keeps a warm copy of {name}",
                    "Add a host device to the group, or set --standby 0.",
                    severe=False,
                )
            )
    return found


def _mirrors(app: str, mirrors: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Mirrors that have been behind for long: what they lack would go with the app's own store."""
    return [
        finding(
            f"mirror {mirror['store']} of {app} "
            + ("was not compared" if mirror["behind"] is None else f"lacks {mirror['behind']} record(s)")
            + f" for {mirror['since_s']:.0f} s"
            + (f": {mirror['problem']}" if mirror["problem"] else ", and is being filled"),
            f"homeserver store check {mirror['store']!r}",
            severe=False,
        )
        for mirror in mirrors
        if mirror["since_s"] is not None and mirror["since_s"] > MIRROR_LATE
    ]


async def _stores(agent: ControlAgent, group: ControlGroup) -> list[Finding]:
    found: list[Finding] = []
    own = group.journal.state.devices.get(agent.keys.id)
    if own is not None and DeviceRole.HOST not in own.roles:
        return []  # a gateway has no use for a store, and often no way into it
    stores = [s for s in group.journal.state.stores.values() if not s.removed]
    apps = [a for a in group.journal.state.apps.values() if not a.removed]
    only_mirrors = {m for a in apps for m in a.mirrors} - {a.store for a in apps}
    for entry in stores:
        try:
            async with agent.open_store(entry) as store:
                if not store.fencing and entry.id not in only_mirrors:
                    found.append(
                        finding(
                            f"store {entry.name} cannot fence: no automatic failover on it"
                            + (f" ({store.weakness})" if store.weakness else ""),
                            "Move the apps to a store that can.",
                            severe=False,
                        )
                    )
                async for _ in store.list(f"{group.journal.state.id}/epoch/"):
                    break
        except BackendError as error:
            found.append(finding(f"store {entry.name}: {error}", f"homeserver store check {entry.name!r}"))
    if not stores:
        found.append(finding("the group has no store", "homeserver store add NAME BACKEND ...", severe=False))
    return found


async def _gateways(agent: ControlAgent, group: ControlGroup) -> list[Finding]:
    state = group.journal.state
    gateways = [d for d in state.devices.values() if DeviceRole.GATEWAY in d.roles and not d.removed]
    if state.routes and not gateways:
        return [finding("there are routes but no gateway", "homeserver gateway add DEVICE --address HOST")]
    down = {link.device: link.detail for link in await agent.transport.links() if not link.up}
    return [
        finding(
            f"gateway {g.name} is not reached: {down[g.id]}",
            "Look whether it is on and its address is right.",
        )
        for g in gateways
        if g.id in down
    ]


async def _walk(group: ControlGroup, route: str, whole: bool) -> list[Finding]:
    return [finding(b.what, b.remedy, severe=b.severe) for b in await group.walk(route, whole=whole)]


def _plugin_checks(agent: ControlAgent) -> list[tuple[str, Callable[[], Awaitable[list[Finding]]]]]:
    def one(check: Any) -> Callable[[], Awaitable[list[Finding]]]:
        async def run() -> list[Finding]:
            found = await check.check(agent.context("check", check.name))
            return [finding(f.what, f.remedy, severe=f.severe) for f in found]

        return run

    return [(check.name, one(check)) for check in agent.plugins.health_checks()]
