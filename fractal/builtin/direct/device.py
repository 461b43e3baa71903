"""The device's end: one port for all gateways, where each connection says in its PROXY header what it is for."""

from __future__ import annotations

import asyncio
import hmac
import socket
import ssl
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fractal.api.context import Context
from fractal.api.errors import Conflict, FractalError, InvalidInput
from fractal.api.names import normal_host
from fractal.api.transport import Certificate, LocalRoute, Peer, RouteKind
from fractal.builtin.direct import proxy
from fractal.builtin.direct.challenge import asks_for, challenge_context, prove
from fractal.builtin.direct.config import DirectConfig
from fractal.builtin.direct.front import Front
from fractal.builtin.direct.peers import Contact, Health, raise_together, route_key
from fractal.builtin.direct.sockets import Listener, Session, Traffic, connect, join, receive_exactly
from fractal.builtin.direct.tls import load_certificate
from fractal.builtin.direct.udp import DevicePort

FINISH = 1.0
"""Seconds in which requests under way may finish when a route is taken away, as before a planned move."""


@dataclass(frozen=True, slots=True)
class Served:
    """A route that is served here, with its TLS context if it is HTTPS."""

    route: LocalRoute
    tls: ssl.SSLContext | None


class Device:
    """Local routes, the gateways that may reach them, and the connections in between."""

    def __init__(self, context: Context, config: DirectConfig, contact: Contact) -> None:
        self._context = context
        self._config = config
        self._contact = contact
        self._served: dict[str, Served] = {}
        self._ending: dict[str, Served] = {}
        """Routes of which the last requests are being finished."""
        self._addresses: dict[str, frozenset[str]] = {}
        self._gateways: dict[str, Peer] = {}
        self._listener: Listener | None = None
        self._datagrams = DevicePort(contact, self._admits, self._udp_route)
        self._chooser = _server_context()
        self._chooser.sni_callback = self._choose
        self._challenges: dict[str, ssl.SSLContext] = {}
        self.health: dict[str, Health] = {}

    def challenge(self, name: str, certificate: Certificate | None) -> None:
        """As `SupportsChallenge.challenge`."""
        name = normal_host(name)
        if certificate is None:
            self._challenges.pop(name, None)
        else:
            self._challenges[name] = challenge_context(certificate)

    async def open(self, stream: socket.socket, datagram: socket.socket) -> None:
        """Begin to accept on bound sockets, which this object closes."""
        self._listener = Listener(
            stream,
            self._accept,
            logger=self._context.logger,
            most=self._config.max_connections,
            most_per_client=self._config.max_connections,  # a gateway brings the connections of all clients
        )
        await self._datagrams.open(datagram)

    async def close(self) -> None:
        """Close the port and every connection."""
        self._datagrams.close()
        if self._listener is not None:
            await self._listener.close()

    async def apply(self, gateways: Sequence[Peer], routes: Sequence[LocalRoute]) -> None:
        """Make exactly these gateways and routes stand. What is possible is done before problems are raised."""
        wanted = {gateway.device: gateway for gateway in gateways}
        found = await asyncio.gather(*(_addresses(gateway) for gateway in wanted.values()))
        addresses = dict(zip(wanted, found, strict=True))
        served, problems = self._serve(routes)
        gone = self._gateways.keys() - wanted.keys()
        ended = {
            key for key, old in self._served.items() if key not in served or _other_app(old, served[key])
        }
        before, self._served = self._served, served
        self._gateways, self._addresses = wanted, addresses
        for device in gone:
            del self.health[device]
        for device, gateway in wanted.items():
            health = self.health.setdefault(device, Health(device))
            health.endpoint = gateway.contact.get("host", "")
            if not addresses[device]:
                health.lost("its address is unknown, so nothing from it is let in")
        await self._end(ended, gone, before)
        self._datagrams.forget({f":{key.partition(':')[2]}" for key in ended if key.startswith("udp:")})
        raise_together(problems)

    async def _end(self, ended: Collection[str], gone: Collection[str], before: dict[str, Served]) -> None:
        """Close what leads to routes or gateways that are no more. Requests under way may finish, for a moment."""
        if self._listener is None:
            return

        def unwanted(session: Session) -> bool:
            return session.route in ended or session.device in gone

        loop = asyncio.get_running_loop()
        until = loop.time() + FINISH
        self._ending = {key: before[key] for key in ended}
        try:
            while busy := [s for s in self._listener.sessions if unwanted(s) and s.busy]:
                self._listener.close_sessions(lambda s: unwanted(s) and not s.busy)
                if loop.time() >= until:
                    self._context.logger.info("%d requests under way were cut off", len(busy))
                    break
                await asyncio.sleep(0.02)
            self._listener.close_sessions(unwanted)
        finally:
            self._ending = {}

    def silence(self, now: float) -> None:
        """Note which gateways have not been heard of for three of their probes."""
        for health in self.health.values():
            if health.up and health.seen is not None and now - health.seen > 3 * self._config.probe_interval:
                health.lost("not heard of for three of its probes")

    def _serve(self, routes: Sequence[LocalRoute]) -> tuple[dict[str, Served], list[FractalError]]:
        served: dict[str, Served] = {}
        problems: list[FractalError] = []
        for route in routes:
            try:
                key = route_key(route.kind, route.name)
                if key in served:
                    if served[key].route != route:
                        raise Conflict(
                            f"route {route.name} is wanted by app {served[key].route.app} and app {route.app}; "
                            "the first has it"
                        )
                    continue
                old = self._served.get(key)
                if old is not None and old.route.certificate == route.certificate:
                    served[key] = Served(route, old.tls)
                else:
                    served[key] = Served(route, _route_context(route))
            except FractalError as error:
                problems.append(error)
        return served, problems

    def _admits(self, address: str, gateway: str) -> bool:
        return address in self._addresses.get(gateway, frozenset())

    def _udp_route(self, name: str) -> LocalRoute | None:
        served = self._served.get(f"udp{name}")
        return served.route if served else None

    async def _accept(self, session: Session) -> None:
        if not any(session.client[0] in known for known in self._addresses.values()):
            if self._config.lan:
                await self._serve_tls(session, "", session.client[0])
            return
        async with asyncio.timeout(self._config.greeting_timeout):
            fixed = await receive_exactly(session.sock, proxy.FIXED)
            rest = await receive_exactly(session.sock, proxy.rest_length(fixed))
        header = proxy.decode(fixed + rest)
        if not self._admits(session.client[0], header.gateway) or header.datagram:
            raise InvalidInput(f"{session.client[0]} is not gateway {header.gateway!r}")
        if not hmac.compare_digest(header.token, self._contact.token):
            raise InvalidInput(f"gateway {header.gateway} does not know this device's token")
        session.device = header.gateway
        health = self.health[header.gateway]
        health.alive(self._context.clock.boottime())
        if header.client is None:
            await asyncio.get_running_loop().sock_sendall(session.sock, proxy.ANSWER)
        elif header.route.startswith(":"):
            await self._serve_tcp(session, f"tcp{header.route}", health.traffic)
        else:
            await self._serve_tls(session, normal_host(header.route), header.client[0])

    async def _serve_tcp(self, session: Session, key: str, traffic: Traffic) -> None:
        served = self._served.get(key)
        if served is None:
            return
        session.route = key
        route = served.route
        other = await connect(route.host, route.port, timeout=self._config.connect_timeout)
        with other:
            await join(
                other,
                session.sock,
                traffic,
                idle=self._config.idle_timeout,
                half_open=self._config.half_open_timeout,
            )

    async def _serve_tls(self, session: Session, expected: str, client: str) -> None:
        """Speak TLS as the app that the client names, which must be the one that the gateway read, if one did."""
        if self._challenges and expected in ("", *self._challenges):
            name = await asks_for(session.sock, self._config.greeting_timeout)
            if name in self._challenges and expected in ("", name):
                await prove(session, self._challenges[name], self._config.greeting_timeout)
                return
        if expected and expected not in self._served:
            return  # without a word: the gateway may try elsewhere

        def route_of(tls: ssl.SSLContext) -> str | None:
            name = next((key for key, served in self._served.items() if served.tls is tls), None)
            session.route = name or ""
            return name if name is not None and expected in ("", name) else None

        front = Front(
            config=self._config,
            logger=self._context.logger,
            client=client,
            endpoint=self._endpoint,
        )
        session.route, session.busy = expected, True
        await front.run(session, self._chooser, route_of)

    def _endpoint(self, name: str) -> proxy.Address | None:
        served = self._served.get(name) or self._ending.get(name)
        return (served.route.host, served.route.port) if served else None

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        try:
            served = self._served.get(normal_host(name or ""))
        except InvalidInput:
            served = None
        if served is None or served.tls is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = served.tls
        return None


def _other_app(old: Served, new: Served) -> bool:
    """Whether connections to the old route have no business with the new one. A new endpoint alone does not end them:
    the next request finds it."""
    return (old.route.group, old.route.app, old.route.kind) != (
        new.route.group,
        new.route.app,
        new.route.kind,
    )


async def _addresses(gateway: Peer) -> frozenset[str]:
    """Every address from which the gateway may come; none if its name does not resolve now."""
    loop = asyncio.get_running_loop()
    found: set[str] = set()
    for host in (gateway.contact.get("host", ""), gateway.contact.get("source", "")):
        if host:
            try:
                async with asyncio.timeout(5):
                    found.update(str(item[4][0]) for item in await loop.getaddrinfo(host, None))
            except (OSError, ValueError):
                continue  # ValueError: what another device published is no host name at all
    return frozenset(found)


def _server_context() -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["http/1.1"])
    # Tickets of one context would let a session of one app be resumed as another's.
    tls.options |= ssl.OP_NO_TICKET
    tls.num_tickets = 0
    return tls


def _route_context(route: LocalRoute) -> ssl.SSLContext | None:
    """The TLS context of an HTTPS route. Raises InvalidInput naming the route if its certificate cannot be used."""
    if route.kind is not RouteKind.HTTPS:
        return None
    if route.certificate is None:
        raise InvalidInput(f"route {route.name} of app {route.app} has no certificate")
    tls = _server_context()
    load_certificate(tls, route.certificate, f"the certificate of route {route.name} of app {route.app}")
    return tls
