"""`route`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_app, find_group, resolve
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.api.errors import Conflict, InvalidInput
from fractal.api.transport import RouteKind
from fractal.core.entries import RouteAdded, RouteRemoved
from fractal.core.model import App, GroupState

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAX_DNS = 253


def route_name(text: str, kind: RouteKind) -> str:
    """A public name in the one form that the log and the gateways use. Raises InvalidInput.

    HTTPS: a DNS name in lower case and A-labels (RFC 5890), at least two labels. TCP and UDP: `:PORT`.
    """
    text = text.strip().rstrip(".")
    if kind is not RouteKind.HTTPS:
        port = text.removeprefix(":")
        if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
            raise InvalidInput(f"{text[:80]!r}: a {kind.value} route is named by its port, e.g. `:2222`")
        return f":{int(port)}"
    try:
        name = text.lower() if text.isascii() else text.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise InvalidInput(f"{text[:80]!r} is no DNS name") from error
    labels = name.split(".")
    if len(name) > MAX_DNS or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise InvalidInput(f"{text[:80]!r} is no DNS name (like `cal.example.org`)")
    return name


@command("route.list")
async def list_routes(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """All routes, with the device that serves each."""
    group = find_group(agent, params)
    state = group.journal.state
    return {
        "routes": [
            {**_shown(state, name), "certificate": group.certificate(name)} for name in sorted(state.routes)
        ]
    }


@command("route.add")
async def add_route(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Claim a name for an app; the first valid claim in the log wins."""
    group = find_group(agent, params)
    state = group.journal.state
    app = find_app(state, params.text("app"))
    word = params.text("kind", RouteKind.HTTPS.value)
    try:
        kind = RouteKind(word)
    except ValueError as error:
        raise InvalidInput(
            f"{word[:40]!r} is no kind of route: choose {', '.join(k.value for k in RouteKind)}"
        ) from error
    name = route_name(params.text("name"), kind)
    service, port = params.text("service"), params.text("port")
    _check_service(app, service, port)
    result = {"name": name, "app": app.id}
    entry = RouteAdded(name=name, app=app.id, kind=kind.value, service=service, port=port)
    taken = state.routes.get(name)
    if taken is not None:
        same = (taken.app, taken.kind, taken.service, taken.port) == (app.id, kind.value, service, port)
        if same:
            return plan(result=result)
        other = state.apps[taken.app].name if taken.app in state.apps else taken.app
        raise Conflict(f"{name} leads to {other} already: remove that route first")
    return plan(
        Action(f"Lead {name} to {app.name}", {"app": app.id}, lambda _: group.journal.append(entry)),
        result=result,
    )


@command("route.remove")
async def remove_route(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Free a name."""
    group = find_group(agent, params)
    state = group.journal.state
    name = resolve("route", params.text("name").lower(), {n: n for n in state.routes})
    return plan(
        Action(f"Free {name}", {}, lambda _: group.journal.append(RouteRemoved(name=name))),
        result={"name": name},
    )


def _shown(state: GroupState, name: str) -> dict[str, Any]:
    route = state.routes[name]
    app = state.apps.get(route.app)
    serves = app is not None and app.serving == app.epoch > 0 and app.release is None
    return {
        "name": name,
        "kind": route.kind,
        "app": app.name if app else route.app,
        "service": route.service,
        "port": route.port,
        "device": state.device_name(app.owner) if app is not None and serves else "",
    }


def _check_service(app: App, service: str, port: str) -> None:
    """A route must lead somewhere: to the named service and port, or to the manifest's web service."""
    if not service:
        if port or not app.spec.get("web_service"):
            raise InvalidInput(f"{app.name} offers no web service: say which with --service and --port")
        return
    services = app.spec.get("services")
    ports: dict[str, list[str]] = {}
    for one in services if isinstance(services, list | tuple) else ():
        if isinstance(one, Mapping):
            offered = one.get("ports", ())
            ports[str(one.get("name"))] = (
                [str(p.get("name")) for p in offered if isinstance(p, Mapping)]
                if isinstance(offered, list | tuple)
                else []
            )
    found = resolve("service", service, {name: name for name in ports})
    if port and port not in ports[found]:
        known = ", ".join(ports[found]) or "none"
        raise InvalidInput(f"service {service!r} of {app.name} has no port {port!r} (it has: {known})")
