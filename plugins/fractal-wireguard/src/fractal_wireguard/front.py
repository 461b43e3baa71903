"""The device's TLS front: HAProxy, which ends TLS with the app's own certificate and passes requests on to the app.

Two steps in one process. `entry` listens at the apps' addresses, lets gateways in and passes bytes on unread: its connections can be
seen and ended, by app and by gateway, also while a browser keeps one open between two requests. `front` reads the PROXY header, ends TLS
and speaks HTTP. Certificates come by the runtime socket: a key is never in a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from fractal.api.context import Context
from fractal.api.errors import BackendError, FractalError, InvalidInput
from fractal.api.transport import Certificate, LocalRoute
from fractal_wireguard.addresses import ENTRY_PORT
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.haproxy import Haproxy, Session, common_settings, front_socket


@dataclass(frozen=True, slots=True)
class Site:
    """One name that is served."""

    address: str
    """Of its app, IPv6."""
    route: LocalRoute

    @property
    def certificate(self) -> Certificate:
        """It has one: `Device` saw to it."""
        assert self.route.certificate is not None
        return self.route.certificate


class Unusable(InvalidInput):
    """A certificate that HAProxy does not take."""

    def __init__(self, name: str, answer: str) -> None:
        super().__init__(f"the certificate of route {name} cannot be used: {answer[-300:]}")
        self.name = name


class Front:
    """Serves names at the apps' addresses."""

    def __init__(self, context: Context, config: WireguardConfig) -> None:
        self._config = config
        self._folder = context.runtime_dir / "f"
        self._haproxy = Haproxy(context, self._folder, self._fill)
        self._apps = self._folder / "apps.map"
        self._gateways_file = self._folder / "gateways.acl"
        self._certificates = self._folder / "certificates.list"
        self._sites: dict[str, Site] = {}
        self._places: dict[str, str] = {}
        self._gateways: frozenset[str] = frozenset()
        self._opened = False

    async def close(self) -> None:
        """End it, with all connections."""
        await self._haproxy.close()

    async def apply(
        self, gateways: frozenset[str], sites: Mapping[str, Site], between: Callable[[], Awaitable[None]]
    ) -> list[FractalError]:
        """Let exactly these gateways (addresses) in to exactly these names. What could not be used is told.

        `between` is called when what is new is served and what is gone still is. Then connections to an app one of whose names
        is gone, and those of a gateway that is gone, end. Raises BackendError.
        """
        places = await _places(sites)
        old, old_places = self._sites, self._places
        left = {s.address for n, s in old.items() if n not in sites or sites[n].address != s.address}
        gone = self._gateways - gateways
        if sites and not self._opened:
            await self._open()
        problems: list[FractalError] = []
        if self._haproxy.up:
            await self._admit(gateways - self._gateways)
            problems = await self._add(sites, places, old, old_places)
        bad = {problem.name for problem in problems if isinstance(problem, Unusable)}
        self._sites = {name: site for name, site in sites.items() if name not in bad}
        self._places = {name: place for name, place in places.items() if name not in bad}
        self._gateways = gateways
        await between()
        if self._haproxy.up:
            await self._haproxy.tell(f"del acl {self._gateways_file} {address}" for address in sorted(gone))
            await self._shut(left, gone)
            for name in sorted(old.keys() - self._sites.keys()):
                await self._haproxy.command(f"del map {self._apps} {name}")
                await self._forget(name)
        return problems

    async def busy(self, apps: Collection[str]) -> bool:
        """Whether connections to these apps' addresses are open."""
        return self._haproxy.up and any(
            session.frontend == "entry" and session.came_to in apps
            for session in await self._haproxy.sessions()
        )

    async def _open(self) -> None:
        """Start it, with nothing to serve. Not before there is something: a gateway alone needs no front."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for file in (self._apps, self._gateways_file, self._certificates):
            file.write_text("")
        await self._haproxy.open(self._settings())
        self._opened = True

    async def _shut(self, apps: Collection[str], gateways: Collection[str]) -> None:
        """End connections to these apps' addresses and of these gateways."""
        if apps or gateways:
            found = await self._haproxy.sessions()
            await self._haproxy.shut(
                [
                    session
                    for session in found
                    if session.frontend == "entry"
                    and (session.came_to in apps or _source(session) in gateways)
                ]
            )

    async def _fill(self) -> None:
        """Tell a process that has just started everything."""
        await self._admit(self._gateways)
        await self._add(self._sites, self._places, {}, {})

    async def _admit(self, gateways: frozenset[str]) -> None:
        for address in sorted(gateways):
            await self._haproxy.command(f"add acl {self._gateways_file} {address}")

    async def _add(
        self,
        sites: Mapping[str, Site],
        places: Mapping[str, str],
        old: Mapping[str, Site],
        old_places: Mapping[str, str],
    ) -> list[FractalError]:
        problems: list[FractalError] = []
        for name, site in sites.items():
            before = old.get(name)
            try:
                if before is None or before.certificate != site.certificate:
                    await self._certify(name, site.certificate, new=before is None)
            except Unusable as error:
                problems.append(error)
                continue
            if name not in old_places:
                await self._haproxy.tell([f"add map {self._apps} {name} {places[name]}"])
            elif old_places[name] != places[name]:
                await self._haproxy.tell([f"set map {self._apps} {name} {places[name]}"])
        return problems

    async def _certify(self, name: str, certificate: Certificate, *, new: bool) -> None:
        """Serve a name under a certificate. Raises Unusable."""
        mark = _mark(name)
        text = (certificate.key.strip() + b"\n" + certificate.chain.strip()).decode("ascii", "replace")
        pem = "\n".join(line for line in text.splitlines() if line.strip())
        if new:
            await self._haproxy.command(f"new ssl cert {mark}")
        answer = await self._haproxy.command(f"set ssl cert {mark} <<\n{pem}\n")
        if "Transaction" not in answer:
            if new:
                await self._haproxy.command(f"del ssl cert {mark}")
            raise Unusable(name, answer)
        answer = await self._haproxy.command(f"commit ssl cert {mark}")
        if "Success" not in answer:
            await self._haproxy.command(f"abort ssl cert {mark}")
            if new:
                await self._haproxy.command(f"del ssl cert {mark}")
            raise Unusable(name, answer)
        if new:
            # Both spellings: clients send a dot at the end as it was typed.
            answer = await self._haproxy.command(
                f"add ssl crt-list {self._certificates} <<\n{mark} {name} {name}.\n"
            )
            if "Success" not in answer:
                raise BackendError(f"transport wireguard: haproxy does not serve {name}: {answer[-300:]}")

    async def _forget(self, name: str) -> None:
        mark = _mark(name)
        await self._haproxy.command(f"del ssl crt-list {self._certificates} {mark}")
        await self._haproxy.command(f"del ssl cert {mark}")

    def _settings(self) -> str:
        config = self._config
        bound, reached, options = front_socket(self._folder)
        tries = max(1, round(config.hold / config.connect_timeout))
        ms = {
            name: round(1000 * value)
            for name, value in (
                ("idle", config.idle_timeout),
                ("connect", config.connect_timeout),
                ("greeting", config.greeting_timeout),
            )
        }
        origin = r"^(x[-_]forwarded[-_].*|forwarded|x[-_]real[-_]ip|true[-_]client[-_]ip)$"
        return (
            common_settings(self._folder, config.max_connections)
            + f"""
defaults
  timeout client {ms["idle"]}
  timeout server {ms["idle"]}
  timeout tunnel {ms["idle"]}
  timeout connect {ms["connect"]}
  timeout http-request {ms["greeting"]}
  timeout http-keep-alive 75s
  retries {tries}

frontend entry
  mode tcp
  maxconn {config.max_connections}
  bind [::]:{ENTRY_PORT} v6only
  tcp-request connection reject unless {{ src -f {self._gateways_file} }}
  default_backend front

backend front
  mode tcp
  server front unix@{reached}

frontend front
  mode http
  maxconn {config.max_connections}
  bind unix@{bound} {options} accept-proxy ssl crt-list {self._certificates} strict-sni alpn h2,http/1.1
  http-request set-var(txn.name) ssl_fc_sni,lower,rtrim(.)
  http-request set-var(txn.host) req.hdr(host),field(1,:),lower,rtrim(.)
  http-request return status 421 content-type text/plain string "This connection was made for another name.\\n" unless {{ var(txn.host),strcmp(txn.name) eq 0 }}
  http-request set-var(txn.place) var(txn.name),map_str({self._apps})
  http-request return status 421 content-type text/plain string "This name is not served here any more.\\n" unless {{ var(txn.place) -m found }}
  http-request del-header {origin} -m reg
  http-request set-header X-Forwarded-For %[src,regsub(^::ffff:,)]
  http-request set-header X-Forwarded-Proto https
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-dst var(txn.place),field(1,_)
  http-request set-dst-port var(txn.place),field(2,_)
  http-response del-header alt-svc
  default_backend apps

backend apps
  mode http
  option http-server-close
  http-reuse never
  server app 0.0.0.0:0
"""
        )


def _source(session: Session) -> str:
    return session.source.rpartition(":")[0]


def _mark(name: str) -> str:
    """A certificate's name inside HAProxy: never one of a file."""
    return "route-" + hashlib.sha256(name.encode()).hexdigest()[:24]


async def _places(sites: Mapping[str, Site]) -> dict[str, str]:
    """Where each name's app listens: `ADDRESS_PORT`."""
    found = {}
    for name, site in sites.items():
        found[name] = f"{await numeric(site.route.host, site.route.port)}_{site.route.port}"
    return found


async def numeric(host: str, port: int) -> str:
    """The host's address. Raises BackendError."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        async with asyncio.timeout(5):
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, ValueError) as error:
        raise BackendError(
            f"transport wireguard: {host} does not resolve: {error}", retryable=True
        ) from error
    return str(answers[0][4][0])
