"""Walking one route from its public name to the app's data, as far as this device can see: where does it break?

Each stretch gives findings with a remedy. A stretch that this device cannot see is left out, never guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fractal.agent.outside import Outside, Visit
from fractal.agent.status import owner_says
from fractal.api.certificates import expires_ms, first_certificate
from fractal.api.errors import BackendError, FractalError, NotSupported
from fractal.api.runtime import Health
from fractal.api.transport import PUBLIC_PORT, RouteKind, SupportsProbe
from fractal.core.lease import seconds
from fractal.core.model import App, Desired, Device, DeviceRole, Route

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

UNANSWERED = frozenset({502, 503, 504})
"""What the device's end of TLS says when the app does not answer."""
PROBE_LIMIT = 8.0
"""Seconds that a real connection through the gateway may take."""
EXPIRY_DAYS = 14
"""A certificate that could not be renewed and ends within that many days is worth a word."""
DAY_MS = 24 * 3600 * 1000
SKEW_MS = 30_000
"""Wall clocks that differ by more are worth a word: labels of snapshots, invitations and absences go by them."""


@dataclass(frozen=True, slots=True)
class Break:
    """Where the way is broken, and what to do."""

    what: str
    remedy: str
    severe: bool = True


async def walk(group: GroupAgent, name: str, *, whole: bool = True) -> list[Break]:
    """Everything that is wrong between a route's name and its app's data. Not `whole`: what is that name's alone."""
    route = group.state.routes.get(name)
    if route is None:
        return [Break(f"there is no route {name}", f"homeserver route add {name} APP")]
    app = group.app(route.app)
    own: tuple[Callable[[], Awaitable[list[Break]]], ...] = (
        lambda: _name(group, app, route),
        lambda: _done(_certificate(group, app, route)),
    )
    shared: tuple[Callable[[], Awaitable[list[Break]]], ...] = (
        lambda: _done(_gateways(group)),
        lambda: _links(group, app),
        lambda: _done(_owner(group, app)),
        lambda: _done(_serving(group, app, route)),
        lambda: _through(group, app, route),
        lambda: _store(group, app),
        lambda: _done(_proof(group)),
        lambda: _done(_clocks(group, app)),
    )
    stretches = (own[0], *shared, own[1]) if whole else own
    return [found for stretch in stretches for found in await stretch()]


async def _done(breaks: Iterator[Break]) -> list[Break]:
    return list(breaks)


def _gateways_of(group: GroupAgent) -> list[Device]:
    return [d for d in group.state.devices.values() if DeviceRole.GATEWAY in d.roles and not d.removed]


def _gateways(group: GroupAgent) -> Iterator[Break]:
    gateways = _gateways_of(group)
    if not gateways:
        yield Break("no gateway leads to it", "homeserver gateway add DEVICE --address HOST")
        return
    if not any(group.online(g.id) for g in gateways):
        names = ", ".join(sorted(g.name for g in gateways))
        yield Break(f"no gateway is heard ({names})", "Look whether it is on and reaches the log.")
    for gateway in gateways:
        if not gateway.address:
            yield Break(
                f"gateway {gateway.name} has no public address",
                f"homeserver gateway add {gateway.name!r} --address HOST",
                severe=False,
            )


async def _name(group: GroupAgent, app: App, route: Route) -> list[Break]:
    """Where the name leads, and what a client finds there."""
    if route.kind != RouteKind.HTTPS.value:
        return []
    outside, gateways = group.agent.outside, _gateways_of(group)
    hosts = sorted({g.address for g in gateways if g.address})
    point = f"In your DNS, point {route.name} at the gateway: {', '.join(hosts) or 'homeserver gateway list'}"
    try:
        found = await outside.addresses(route.name)
    except BackendError as error:
        return [Break(f"the name {route.name} leads nowhere: {error}", point)]
    breaks = await _visits(group, app, route, found)
    if not breaks:
        return []  # however the name got here, a client gets through
    wanted = [await _addresses(outside, host) for host in hosts]
    if any(wanted) and not any(found & one for one in wanted):
        text = f"the name {route.name} leads to {', '.join(sorted(found))}, which is no gateway of the group"
        return [Break(text, point)]
    return breaks


async def _addresses(outside: Outside, host: str) -> frozenset[str]:
    try:
        return await outside.addresses(host)
    except BackendError:
        return frozenset()  # a gateway whose own name leads nowhere: the route's name does not either


async def _visits(group: GroupAgent, app: App, route: Route, addresses: frozenset[str]) -> list[Break]:
    """What a client gets at each address: the app's own certificate, and an answer."""
    ports = {g.contact.get(PUBLIC_PORT, "") for g in _gateways_of(group)} - {""}
    if not ports or app.serving != app.epoch or app.desired is Desired.STOPPED:
        return []
    port, found = _port(min(ports)), []
    for address in sorted(addresses):
        try:
            visit = await group.agent.outside.visit(route.name, address, port)
        except BackendError as error:
            found.append(
                Break(f"a client does not get through: {error}", "See the other findings of this route.")
            )
            continue
        found += _visited(group, app, route, visit, address)
    return found


def _port(text: str) -> int:
    """What a gateway says of itself may be anything."""
    number = int(text) if text.isdecimal() and len(text) <= 5 else 0
    return number if 0 < number < 1 << 16 else 443


def _visited(group: GroupAgent, app: App, route: Route, visit: Visit, address: str) -> Iterator[Break]:
    chain = group.certificate(route.name)
    if chain and visit.certificate != first_certificate(chain):
        yield Break(
            f"at {address}, somebody else answers for {route.name}: the certificate is not {app.name}'s",
            "Look where the name leads. If that is your gateway, it may be reading along: docs of the threat model.",
        )
    if visit.status in UNANSWERED:
        yield Break(
            f"{app.name} does not answer behind its certificate (HTTP {visit.status})",
            f"homeserver app logs {app.name!r}",
        )


async def _links(group: GroupAgent, app: App) -> list[Break]:
    """This device's end of the link between gateway and owner, if it is one of the two."""
    gateways = {g.id for g in _gateways_of(group)}
    others = {app.owner} if group.me in gateways else gateways if app.owner == group.me else set()
    found = []
    for link in await group.agent.transport.links():
        if link.device in others and not link.up and link.device != group.me:
            name = group.state.device_name(link.device)
            found.append(
                Break(
                    f"the link to {name} is down: {link.detail or 'no answer'}",
                    f"Look whether {name} is on, and whether a firewall is between.",
                )
            )
    if problem := group.agent.link_problem:
        found.append(Break(f"routes: {problem}", "Mend the route that is named; the others are served."))
    return found


def _owner(group: GroupAgent, app: App) -> Iterator[Break]:
    if app.desired is Desired.STOPPED:
        yield Break(f"{app.name} is stopped by wish", f"homeserver app start {app.name!r}", severe=False)
    elif not app.owner:
        where = group.state.device_name(app.placed)
        yield Break(f"no device runs {app.name} yet", f"Look whether {where} is on: homeserver status")
    elif app.release is not None or app.serving != app.epoch:
        yield Break(
            f"{app.name} is changing hands (epoch {app.epoch})",
            "Wait a minute; if it goes on: homeserver app show " + repr(app.name),
        )
    elif not group.online(app.owner):
        owner = group.state.device_name(app.owner)
        yield Break(f"{owner}, which serves {app.name}, is silent", f"Switch {owner} on, or move the app.")


def _serving(group: GroupAgent, app: App, route: Route) -> Iterator[Break]:
    """What the owner says of the app, and on the owner itself whether the route has somewhere to lead."""
    if not app.owner or app.desired is Desired.STOPPED:
        return
    says = owner_says(group, app)
    if says is not None:
        said = says[0]
        if said.frozen:
            yield Break(
                f"{app.name} is frozen on {group.state.device_name(app.owner)}: it has no fresh proof",
                "Look whether that device reaches the log or the store.",
            )
        elif said.health != Health.HEALTHY.value:
            detail = f": {said.detail}" if said.detail else ""
            yield Break(f"{app.name} is {said.health}{detail}", f"homeserver app logs {app.name!r}")
    job = group.jobs.get(app.id)
    if app.owner != group.me or job is None:
        return
    run = job.health()
    service, port = route.service or job.spec.web_service, route.port or job.spec.web_port
    if run is not None and not any(
        s.name == service and any(p == port for p, _, _ in s.endpoints) for s in run.services
    ):
        yield Break(
            f"{app.name} has no port {port!r} at service {service!r}",
            f"homeserver route add {route.name} {app.name!r} with a service and port of its manifest",
        )


def _certificate(group: GroupAgent, app: App, route: Route) -> Iterator[Break]:
    """On the owner: whether it has a certificate for the name, which still counts."""
    if app.owner != group.me or app.desired is Desired.STOPPED or route.kind != RouteKind.HTTPS.value:
        return
    if not group.certificate(route.name):
        why = group.certifying.trouble.get(route.name, "")
        yield Break(
            f"there is no certificate for {route.name} yet{': ' if why else ''}{why}",
            "Its owner gets one by itself, and tries again; docs/how-to/public-name.md has what an authority needs.",
        )
    else:
        yield from _expiry(group, route)


def _expiry(group: GroupAgent, route: Route) -> Iterator[Break]:
    left = (expires_ms(group.certificate(route.name)) - group.agent.clock.wall_ms()) / DAY_MS
    why = group.certifying.trouble.get(route.name, "no reason known")
    if left < 0:
        yield Break(
            f"the certificate for {route.name} has expired, unless this device's clock is wrong: {why}",
            "Look at the clock (timedatectl); its owner gets a new one by itself, and tries again.",
        )
    elif left < EXPIRY_DAYS and route.name in group.certifying.trouble:
        yield Break(
            f"the certificate for {route.name} ends in {left:.0f} days and is not renewed: {why}",
            "Mend what the authority says; it is tried again by itself.",
            severe=False,
        )


async def _through(group: GroupAgent, app: App, route: Route) -> list[Break]:
    """On a gateway: a real connection in at the public port, to the app's end of TLS."""
    transport = group.agent.transport
    here = any(g.id == group.me for g in _gateways_of(group))
    if not here or not isinstance(transport, SupportsProbe) or app.serving != app.epoch:
        return []
    try:
        async with asyncio.timeout(PROBE_LIMIT):
            await transport.probe(route.name, RouteKind(route.kind))
    except NotSupported:
        return []
    except (FractalError, TimeoutError) as error:
        why = str(error) or f"no answer within {PROBE_LIMIT:g} s"
        return [Break(f"a connection through this gateway fails: {why}", "See the findings above and below.")]
    return []


async def _store(group: GroupAgent, app: App) -> list[Break]:
    own = group.state.devices.get(group.me)
    if own is not None and DeviceRole.HOST not in own.roles:
        return []  # a gateway has no use for a store, and often no way into it
    name = group.state.stores[app.store].name
    try:
        opened = await group.list_epochs(app.store)
    except FractalError as error:
        return [Break(f"store {name}: {error}", f"homeserver store check {name!r}")]
    highest = opened.highest(app.id)
    if highest > app.epoch:
        return [
            Break(
                f"store {name} has epoch {highest} of {app.name}, the log only {app.epoch}",
                "A device announces it within seconds; if not, look at the log.",
            )
        ]
    if app.epoch and highest < app.epoch:
        return [
            Break(
                f"store {name} lacks epoch {app.epoch} of {app.name}: it was rolled back or is another one",
                f"homeserver store check {name!r}; bring the store's objects back before anything else.",
            )
        ]
    return []


def _proof(group: GroupAgent) -> Iterator[Break]:
    """Log and guard of this device: without them nothing may run here."""
    sent = group.journal.proof_sent
    age = None if sent is None else group.agent.clock.boottime() - sent
    if age is None or age > seconds(group.state.timers.proof):
        since = "since the agent started" if age is None else f"for {age:.0f} s"
        yield Break(
            f"this device has not read the log to its end {since}: {group.log_problem or 'no reason known'}",
            "Look whether it reaches the coordination backend.",
        )
    if problem := group.agent.guard_problem:
        yield Break(
            f"the guard of this device does not answer: {problem}",
            "The agent starts a new one by itself; if that goes on, restart the agent.",
        )


def _clocks(group: GroupAgent, app: App) -> Iterator[Break]:
    """This device's wall clock against that of gateways and the app's owner, as they last told theirs."""
    clock = group.agent.clock
    for device in sorted({app.owner, *(g.id for g in _gateways_of(group))} - {group.me, ""}):
        beat = group.beats.get(device)
        if beat is None or not beat.wall_ms:
            continue
        there = beat.wall_ms + 1000 * (clock.boottime() - group.heard[device])
        skew = abs(clock.wall_ms() - there)
        if skew > SKEW_MS:
            yield Break(
                f"the clocks of this device and {group.state.device_name(device)} differ by {skew / 1000:.0f} s",
                "Set both by NTP (timedatectl set-ntp true): snapshots are labelled by them.",
                severe=False,
            )
