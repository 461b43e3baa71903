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
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fractal.api.context import Context
from fractal.api.errors import BackendError, InvalidInput
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
        """It has one: `Front.check` saw to it."""
        assert self.route.certificate is not None
        return self.route.certificate


class Front:
    """Serves names at the apps' addresses."""

    def __init__(self, context: Context, config: WireguardConfig) -> None:
        self._config = config
        self._folder = context.runtime_dir / "front"
        self._haproxy = Haproxy(context, self._folder, self._fill)
        self._apps = self._folder / "apps.map"
        self._gateways_file = self._folder / "gateways.acl"
        self._certificates = self._folder / "certificates.list"
        self._sites: dict[str, Site] = {}
        self._places: dict[str, str] = {}
        self._gateways: frozenset[str] = frozenset()

    async def open(self) -> None:
        """Start it, with nothing to serve. Raises BackendError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for file in (self._apps, self._gateways_file, self._certificates):
            file.write_text("")
        await self._haproxy.open(self._settings())

    async def close(self) -> None:
        """End it, with all connections."""
        await self._haproxy.close()

    async def apply(self, gateways: frozenset[str], sites: Mapping[str, Site]) -> list[InvalidInput]:
        """Let exactly these gateways (addresses) in to exactly these names. What could not be used is told.

        Connections to an app one of whose names is gone, and those of a gateway that is gone, end. Raises BackendError.
        """
        places = await _places(sites)
        left = {
            s.address
            for name, s in self._sites.items()
            if name not in sites or sites[name].address != s.address
        }
        gone = self._gateways - gateways
        problems: list[InvalidInput] = []
        if self._haproxy.up:
            problems = await self._change(gateways, sites, places)
        bad = {str(problem.args[1]) for problem in problems}
        self._sites = {name: site for name, site in sites.items() if name not in bad}
        self._places = {name: place for name, place in places.items() if name not in bad}
        self._gateways = gateways
        if left or gone:
            await self.shut(left, gone)
        return [InvalidInput(problem.args[0]) for problem in problems]

    async def shut(self, apps: Collection[str], gateways: Collection[str]) -> bool:
        """End connections to these apps' addresses and of these gateways; whether there were any."""
        if not self._haproxy.up:
            return False
        ended = [
            session
            for session in await self._haproxy.sessions()
            if session.frontend == "entry" and (session.came_to in apps or _source(session) in gateways)
        ]
        await self._haproxy.shut(ended)
        return bool(ended)

    async def _fill(self) -> None:
        """Tell a process that has just started everything."""
        sites, places, gateways = self._sites, self._places, self._gateways
        self._sites, self._places, self._gateways = {}, {}, frozenset()
        await self._change(gateways, sites, places)
        self._sites, self._places, self._gateways = sites, places, gateways

    async def _change(
        self, gateways: frozenset[str], sites: Mapping[str, Site], places: Mapping[str, str]
    ) -> list[InvalidInput]:
        problems: list[InvalidInput] = []
        await self._haproxy.tell(
            f"del acl {self._gateways_file} {a}" for a in sorted(self._gateways - gateways)
        )
        for address in sorted(gateways - self._gateways):
            await self._haproxy.command(f"add acl {self._gateways_file} {address}")
        for name in sorted(self._sites.keys() - sites.keys()):
            await self._haproxy.tell([f"del map {self._apps} {name}"])
            await self._forget(name)
        for name, site in sites.items():
            old = self._sites.get(name)
            try:
                if old is None or old.certificate != site.certificate:
                    await self._certify(name, site.certificate, new=old is None)
            except InvalidInput as error:
                problems.append(error)
                continue
            if name not in self._places:
                await self._haproxy.tell([f"add map {self._apps} {name} {places[name]}"])
            elif self._places[name] != places[name]:
                await self._haproxy.tell([f"set map {self._apps} {name} {places[name]}"])
        return problems

    async def _certify(self, name: str, certificate: Certificate, *, new: bool) -> None:
        """Serve a name under a certificate. Raises InvalidInput(message, name) if that cannot be used."""
        mark = _mark(name)
        text = (certificate.key.strip() + b"\n" + certificate.chain.strip()).decode("ascii", "replace")
        pem = "\n".join(line for line in text.splitlines() if line.strip())
        if new:
            await self._haproxy.command(f"new ssl cert {mark}")
        answer = await self._haproxy.command(f"set ssl cert {mark} <<\n{pem}\n")
        if "Transaction" not in answer:
            if new:
                await self._haproxy.command(f"del ssl cert {mark}")
            raise InvalidInput(f"the certificate of route {name} cannot be used: {answer[-300:]}", name)
        answer = await self._haproxy.command(f"commit ssl cert {mark}")
        if "Success" not in answer:
            await self._haproxy.command(f"abort ssl cert {mark}")
            if new:
                await self._haproxy.command(f"del ssl cert {mark}")
            raise InvalidInput(f"the certificate of route {name} cannot be used: {answer[-300:]}", name)
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
