"""Routes: on a host, serve what runs here; on a gateway, lead each name to the device that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from fractal.api.errors import FractalError
from fractal.api.transport import Certificate, LocalRoute, Peer, RouteKind, Target
from fractal.core.model import App, DeviceRole, Route

if TYPE_CHECKING:
    from fractal.agent.agent import Agent
    from fractal.agent.app_job import AppJob
    from fractal.agent.group import GroupAgent

LOOK = 5.0
"""Seconds between two looks when nothing wakes the job."""
APPLY_EVERY = 1.0
"""The same while something does not work."""
APPLY_LIMIT = 20.0
APPLY_AGAIN = 60.0
RETRY_MOST = 5.0
"""Seconds between tries of what has failed; the first ones follow sooner."""
_Serving = tuple[tuple[Peer, ...], tuple[LocalRoute, ...]]
_Forwarding = tuple[tuple[Peer, ...], tuple[Target, ...]]


async def route(agent: Agent) -> None:
    """Apply the full desired set whenever it changed; again every minute, in case the backend lost something."""
    tried: tuple[_Serving, _Forwarding] | None = None
    pulse = 0
    wait, last = 0.0, agent.clock.boottime()
    while True:
        desired = (desired_serving(agent), desired_forwarding(agent))
        now = agent.clock.boottime()
        if desired != tried or now - last > wait:
            whole = bool(agent.link_problem) or now - last > wait
            problem = await _apply_halves(agent, desired, tried, whole=whole)
            if problem and problem != agent.link_problem:
                agent.logger.warning("routes: %s", problem)
            agent.link_problem = problem
            if not problem:
                wait = APPLY_AGAIN
            else:
                # What does not work now seldom does in a moment; what changes is tried at once.
                wait = APPLY_EVERY if desired != tried else min(2 * wait, RETRY_MOST)
            tried, last = desired, now if whole or problem else last
        pulse = await agent.pulse.wait(pulse, APPLY_EVERY if agent.link_problem else LOOK)


async def _apply_halves(
    agent: Agent,
    desired: tuple[_Serving, _Forwarding],
    tried: tuple[_Serving, _Forwarding] | None,
    *,
    whole: bool,
) -> str:
    """Carry out what differs from what was tried, or the `whole`; what went wrong, "" if nothing.

    A half that stands is not gone through for the other's sake: whoever waits for an app that moved waits for the gateway's.
    """
    (gateways, routes), (peers, targets) = desired
    problems = []
    if whole or tried is None or desired[0] != tried[0]:
        problems.append(await _apply(agent.transport.serve(gateways, routes)))
        if not problems[0]:
            agent.serving = routes
    if (whole or tried is None or desired[1] != tried[1]) and (peers or targets or tried is not None):
        # Also when serving failed: one bad route of this device must not stop its work as a gateway.
        problems.append(await _apply(agent.transport.forward(peers, targets)))
    return "; ".join(p for p in problems if p)


async def _apply(call: Awaitable[None]) -> str:
    """Carry one half out; what went wrong, "" if nothing."""
    try:
        async with asyncio.timeout(APPLY_LIMIT):
            await call
    except (FractalError, TimeoutError) as error:
        return str(error) or "the transport did not answer in time"
    return ""


def desired_serving(agent: Agent) -> _Serving:
    """What this device should serve, and for which gateways."""
    gateways: dict[str, Peer] = {}
    routes: list[LocalRoute] = []
    for group in agent.groups.values():
        for device in group.state.devices.values():
            if DeviceRole.GATEWAY in device.roles and not device.removed:
                gateways[device.id] = Peer(device=device.id, contact=device.contact)
        for name in sorted(group.state.routes):
            wish = group.state.routes[name]
            job = group.jobs.get(wish.app)
            local = _local(group, wish, job) if job is not None else None
            if local is not None and (local.certificate or local.kind is not RouteKind.HTTPS):
                routes.append(local)
    return tuple(gateways[g] for g in sorted(gateways)), tuple(routes)


def _local(group: GroupAgent, wish: Route, job: AppJob) -> LocalRoute | None:
    run = job.health()
    if not job.owns or job.handover.leaving or run is None or job.right().deadline is None:
        return None
    try:
        service = wish.service or job.spec.web_service
        port = wish.port or job.spec.web_port
    except FractalError:
        # Another member's device may have written a specification that makes no sense: that costs its own app only.
        return None
    for status in run.services:
        for name, host, number in status.endpoints:
            if status.name == service and name == port:
                return LocalRoute(
                    group=group.id,
                    app=wish.app,
                    name=wish.name,
                    kind=RouteKind(wish.kind),
                    host=host,
                    port=number,
                    certificate=_certificate(job, wish),
                )
    return None


def _certificate(job: AppJob, wish: Route) -> Certificate | None:
    if wish.kind != RouteKind.HTTPS.value:
        return None
    try:
        secrets = job.data.secrets()
    except FractalError:
        # Without the app's key nothing can be served; `job.problem` already says so.
        return None
    chain, key = secrets.get(f"tls.{wish.name}.chain"), secrets.get(f"tls.{wish.name}.key")
    return Certificate(chain=chain.encode(), key=key.encode()) if chain and key else None


def desired_forwarding(agent: Agent) -> _Forwarding:
    """What this device should do as a gateway, for every group in which it is one."""
    peers: dict[str, Peer] = {}
    targets: dict[str, Target] = {}
    for group in agent.groups.values():
        own = group.state.devices.get(group.me)
        if own is None or own.removed or DeviceRole.GATEWAY not in own.roles:
            continue
        for device in group.state.devices.values():
            if DeviceRole.HOST in device.roles and not device.removed:
                peers[device.id] = Peer(device=device.id, contact=device.contact)
        for name, wish in sorted(group.state.routes.items()):
            app = group.state.apps.get(wish.app)
            if app is not None and not app.removed:
                targets.setdefault(f"{wish.kind} {name}", _target(group, wish, app))
    return tuple(peers[p] for p in sorted(peers)), tuple(targets[t] for t in sorted(targets))


def _target(group: GroupAgent, wish: Route, app: App) -> Target:
    """The owner of the highest epoch once it said that the app is healthy; nobody while it changes hands."""
    serving = app.serving == app.epoch and app.release is None
    device = group.state.devices.get(app.owner) if serving else None
    return Target(
        group=group.id,
        app=app.id,
        name=wish.name,
        kind=RouteKind(wish.kind),
        device=device.id if device else "",
        contact=device.contact if device else {},
        epoch=app.epoch,
        moving=not serving or app.move_to not in ("", app.owner),
    )
