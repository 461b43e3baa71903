"""The device's end: tunnels out to its gateways, and what it serves through them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fractal.api.context import Context
from fractal.api.errors import BackendError, Conflict, FractalError, InvalidInput
from fractal.api.names import normal_host
from fractal.api.transport import Certificate, LocalRoute, Peer, RouteKind
from fractal_wireguard import addresses
from fractal_wireguard.addresses import Contact, of_app, of_device, read_contact
from fractal_wireguard.challenge import Challenges
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.firewall import Port
from fractal_wireguard.front import Front, Site, numeric
from fractal_wireguard.link import Wanted
from fractal_wireguard.network import Network
from fractal_wireguard.relay import Place, TcpRelay, UdpRelay

FINISH = 1.0
"""Seconds in which requests under way may finish when an app is served no more, as before a planned move."""
FAREWELL = 0.1
"""Seconds in which the ends of connections pass a tunnel before it is taken away."""
_RESOLVE_LIMIT = 3.0


@dataclass(slots=True)
class Gateway:
    """A gateway that this device uses."""

    contact: Contact
    endpoint: str
    """Resolved; "" if its name does not resolve now."""


class Device:
    """Routes that are served here, and the gateways that lead to them."""

    def __init__(self, context: Context, config: WireguardConfig, network: Network) -> None:
        self._context = context
        self._config = config
        self._network = network
        self._front = Front(context, config)
        self._challenges = Challenges()
        self._ports: dict[Port, TcpRelay | UdpRelay] = {}
        self._apps: set[tuple[str, str]] = set()
        self._challenged: dict[str, tuple[str, str]] = {}
        self.gateways: dict[str, Gateway] = {}

    async def close(self) -> None:
        """End everything that is served."""
        self._challenges.close()
        for relay in self._ports.values():
            await relay.close()
        await self._front.close()

    def peers(self) -> dict[str, Wanted]:
        """Gateways as WireGuard is to have them, by public key."""
        return {
            gateway.contact.key: Wanted(
                allowed=frozenset(of_device(device).allowed),
                endpoint=gateway.endpoint,
                keepalive=self._config.keepalive,
            )
            for device, gateway in self.gateways.items()
        }

    async def apply(self, gateways: Sequence[Peer], routes: Sequence[LocalRoute]) -> list[FractalError]:
        """Make exactly these stand; what could not is told. Raises BackendError."""
        known, problems = await self._known(gateways)
        sites, ports, wrong = _sorted_out(routes)
        problems += wrong
        gone = {of_device(device).v6 for device in self.gateways.keys() - known.keys()}
        apps = {(route.group, route.app) for route in routes}
        admitted = frozenset(of_device(device).v6 for device in known)
        if self._context.device in {gateway.device for gateway in gateways}:
            admitted |= {of_device(self._context.device).v6}  # a gateway that serves apps of its own
        await self._finish({of_app(*app).v6 for app in self._apps - apps})
        self._apps = apps
        problems += await self._front.apply(admitted, sites, self._hold)
        problems += await self._apply_ports(ports)
        rules = self._network.rules
        self._network.rules = type(rules)(
            gateways=frozenset(a for device in known for a in (of_device(device).v6, of_device(device).v4))
            | admitted,
            arriving=frozenset(self._ports),
            apps=frozenset(a for app in apps for a in (of_app(*app).v4, of_app(*app).v6)),
            leading=rules.leading,
            held=rules.held,
            # Until the last: the address may stay for a moment longer than what served it.
            leaving=frozenset(),
        )
        if gone:
            await self._context.clock.sleep(FAREWELL)
        self.gateways = known
        self._network.gateways = {of_device(device).v4 for device in known}
        await self._network.apply()
        return problems

    async def _finish(self, leaving: set[str]) -> None:
        """Let nothing new in to apps that are to be served no more, and have what is under way finish, for a moment."""
        if not leaving:
            return
        self._network.rules = replace(self._network.rules, leaving=frozenset(leaving))
        await self._network.apply_rules()
        clock = self._context.clock
        end = clock.boottime() + FINISH
        while await self._front.busy(leaving) and clock.boottime() < end:
            await clock.sleep(0.05)

    async def challenge(self, group: str, app: str, name: str, certificate: Certificate | None) -> None:
        """As `SupportsChallenge.challenge`."""
        name = normal_host(name)
        self._challenges.set(of_app(group, app).v6, name, certificate)
        if certificate is None:
            self._challenged.pop(name, None)
        else:
            self._challenged[name] = group, app
        await self._hold()
        await self._challenges.listen()

    async def _hold(self) -> None:
        apps = self._apps | set(self._challenged.values())
        self._network.held = {a for app in apps for a in (of_app(*app).v4, of_app(*app).v6)}
        await self._network.hold_addresses()

    async def _known(self, gateways: Sequence[Peer]) -> tuple[dict[str, Gateway], list[FractalError]]:
        """Gateways with a usable contact. An endpoint is looked up when it is new; later the heartbeat sees to it."""
        known: dict[str, Gateway] = {}
        problems: list[FractalError] = []
        for peer in gateways:
            if peer.device == self._context.device or not peer.contact:
                continue
            try:
                contact = read_contact(peer.device, peer.contact)
                if not contact.host:
                    raise BackendError(
                        f"gateway {peer.device} has published no endpoint: set its `advertise`"
                    )
            except BackendError as error:
                problems.append(error)
                continue
            old = self.gateways.get(peer.device)
            if old is not None and old.contact == contact and old.endpoint:
                known[peer.device] = old
            else:
                known[peer.device] = Gateway(contact, await resolve(contact))
        return known, problems

    async def _apply_ports(self, wanted: dict[Port, LocalRoute]) -> list[FractalError]:
        problems: list[FractalError] = []
        for port in self._ports.keys() - wanted.keys():
            await self._ports.pop(port).close()
        for port, route in wanted.items():
            try:
                place = Place(await numeric(route.host, route.port), route.port)
                relay = self._ports.get(port)
                if relay is not None and relay.place == place:
                    continue
                if relay is not None:
                    await self._ports.pop(port).close()
                relay = (
                    TcpRelay(self._context, place, self._config.idle_timeout, self._config.max_connections)
                    if port.kind == "tcp"
                    else UdpRelay(self._context, place)
                )
                await relay.open(port.address, port.port)
                self._ports[port] = relay
            except OSError as error:
                problems.append(
                    BackendError(f"transport wireguard: route {route.name} of app {route.app}: {error}")
                )
            except BackendError as error:
                problems.append(error)
        return problems


async def resolve(contact: Contact) -> str:
    """The endpoint as WireGuard takes it; "" if the name does not resolve now."""
    try:
        async with asyncio.timeout(_RESOLVE_LIMIT):
            answers = await asyncio.get_running_loop().getaddrinfo(
                contact.host, contact.port, type=socket.SOCK_DGRAM
            )
    except (OSError, ValueError, TimeoutError):
        return ""
    address = ipaddress.ip_address(str(answers[0][4][0]).partition("%")[0])
    return f"[{address}]:{contact.port}" if address.version == 6 else f"{address}:{contact.port}"


def port_of(kind: RouteKind, name: str) -> int:
    """The number in `:PORT`. Raises InvalidInput."""
    digits = name.removeprefix(":")
    if (
        not name.startswith(":")
        or not digits.isascii()
        or not digits.isdigit()
        or not 0 < int(digits[:6]) < 65536
    ):
        raise InvalidInput(f"a {kind.value} route is called :PORT, not {name[:80]!r}")
    return int(digits)


def _sorted_out(
    routes: Sequence[LocalRoute],
) -> tuple[dict[str, Site], dict[Port, LocalRoute], list[FractalError]]:
    sites: dict[str, Site] = {}
    ports: dict[Port, LocalRoute] = {}
    problems: list[FractalError] = []
    for route in routes:
        address = of_app(route.group, route.app)
        try:
            if route.kind is RouteKind.HTTPS:
                if route.certificate is None:
                    raise InvalidInput(f"route {route.name} of app {route.app} has no certificate")
                first = sites.setdefault(normal_host(route.name), Site(address.v6, route)).route
            else:
                number = port_of(route.kind, route.name)
                first = ports.setdefault(Port(route.kind.value, number, address.v4), route)
                if number in (addresses.ENTRY_PORT, addresses.CHALLENGE_PORT, addresses.HEARTBEAT_PORT):
                    raise Conflict(f"route {route.name} of app {route.app}: the port is the transport's own")
            if first != route:
                raise Conflict(
                    f"route {route.name} is wanted by app {first.app} and app {route.app}; the first has it"
                )
        except FractalError as error:
            problems.append(error)
    return sites, ports, problems
