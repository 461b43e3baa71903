"""HAProxy on the gateway: reads the server name off a ClientHello and passes the connection on, unread.

Its map is the table of names: server name to the app's address. There is one server, "wherever the connection is bound for", so nothing is
ever loaded anew. The file is written first, then the running process is told: one that starts again reads the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fractal.api.context import Context
from fractal.api.errors import BackendError
from fractal_wireguard.addresses import CHALLENGE_PORT, ENTRY_PORT
from fractal_wireguard.challenge import PROTOCOL
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.haproxy import Haproxy, Session, common_settings

SOON = 0.25
"""Seconds for one try to connect to an app that changes hands: a packet that was held is sent anew after a whole second only."""
_AT_ONCE = 50
"""Changes from which on the whole table is replaced."""


class Passing:
    """The public ports for TLS, and for the redirect to it."""

    def __init__(self, context: Context, config: WireguardConfig) -> None:
        self._config = config
        self._folder = context.runtime_dir / "p"
        self._map = self._folder / "names.map"
        self._soon_file = self._folder / "soon.acl"
        self._soon: frozenset[str] = frozenset()
        self._haproxy = Haproxy(context, self._folder, self._started)
        self._names: dict[str, str] = {}

    async def open(self) -> None:
        """Start it, with no names. Raises BackendError naming a port that cannot be had."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._map.write_text("")
        self._soon_file.write_text("")
        await self._haproxy.open(self._settings())

    async def close(self) -> None:
        """End it, with all connections."""
        await self._haproxy.close()

    async def apply(self, names: Mapping[str, str]) -> None:
        """Lead exactly these names to these addresses. Raises BackendError."""
        old, self._names = self._names, dict(names)
        if old == self._names:
            return
        lines = [f"{name} {address}" for name, address in sorted(names.items())]
        fresh = self._map.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._map)
        if not self._haproxy.up:
            return
        commands = [f"del map {self._map} {name}" for name in sorted(old.keys() - names.keys())]
        commands += [
            f"add map {self._map} {name} {names[name]}" for name in sorted(names.keys() - old.keys())
        ]
        commands += [
            f"set map {self._map} {name} {names[name]}"
            for name in sorted(names.keys() & old.keys())
            if names[name] != old[name]
        ]
        try:
            if len(commands) > _AT_ONCE:
                raise BackendError("all at once")
            await self._haproxy.tell(commands)
        except BackendError:
            await self._haproxy.replace_map(self._map, lines)

    async def hasten(self, apps: frozenset[str]) -> None:
        """Try exactly these addresses quickly, again and again, for whoever connects from now on. Raises BackendError."""
        old, self._soon = self._soon, apps
        if old == apps:
            return
        fresh = self._soon_file.with_suffix(".new")
        fresh.write_text("".join(f"{address}\n" for address in sorted(apps)))
        fresh.replace(self._soon_file)
        if self._haproxy.up:
            await self._haproxy.tell(f"add acl {self._soon_file} {address}" for address in sorted(apps - old))
            await self._haproxy.tell(f"del acl {self._soon_file} {address}" for address in sorted(old - apps))

    async def established(self, apps: Collection[str]) -> list[Session]:
        """Connections that lead to these addresses; those that are still being tried go on to whoever has them. Raises BackendError."""
        if not apps or not self._haproxy.up:
            return []
        return [s for s in await self._haproxy.sessions() if s.leads_to in apps and s.established]

    async def shut(self, sessions: Sequence[Session]) -> None:
        """End these connections. Raises BackendError."""
        if sessions and self._haproxy.up:
            await self._haproxy.shut(sessions)

    async def _started(self) -> None:
        """It has read the files."""

    def _settings(self) -> str:
        config = self._config
        tries = max(1, round(config.hold / config.connect_timeout))
        text = (
            common_settings(self._folder, config.max_connections)
            + f"""
defaults
  mode tcp
  timeout client {round(1000 * config.idle_timeout)}
  timeout server {round(1000 * config.idle_timeout)}
  timeout connect {round(1000 * config.connect_timeout)}
  timeout http-request {round(1000 * config.greeting_timeout)}
  timeout http-keep-alive 1s
  retries {tries}
  maxconn {config.max_connections}

backend clients
  stick-table type ipv6 size 100k expire 2m store conn_cur
"""
        )
        if config.https_port:
            text += self._tls()
        if config.http_port:
            text += self._redirect()
        return text

    def _tls(self) -> str:
        config = self._config
        return f"""
frontend tls
  bind :{config.https_port}
  bind [::]:{config.https_port} v6only
  tcp-request connection track-sc0 src table clients
  tcp-request connection reject if {{ sc0_conn_cur(clients) gt {config.max_per_client} }}
  tcp-request inspect-delay {round(1000 * config.greeting_timeout)}
  tcp-request content reject if !{{ req.ssl_hello_type 1 }}
  tcp-request content set-var(sess.to) req.ssl_sni,lower,rtrim(.),map_str({self._map})
  tcp-request content reject if !{{ var(sess.to) -m found }}
  tcp-request content set-dst var(sess.to)
  # A condition looks at each protocol that is offered: this one, and no other.
  acl challenge req.ssl_alpn -m str {PROTOCOL}
  acl others req.ssl_alpn -m reg ^(?!{PROTOCOL}$)
  tcp-request content set-dst-port int({ENTRY_PORT})
  tcp-request content set-dst-port int({CHALLENGE_PORT}) if challenge !others
  use_backend challenges if challenge !others
  use_backend soon if {{ var(sess.to) -m str -f {self._soon_file} }}
  default_backend devices

backend devices
  server device 0.0.0.0:0 send-proxy-v2

backend soon
  timeout connect {round(1000 * SOON)}
  retries {max(1, round(config.hold / SOON))}
  server device 0.0.0.0:0 send-proxy-v2

backend challenges
  server device 0.0.0.0:0
"""

    def _redirect(self) -> str:
        config = self._config
        port = "" if config.https_port in (0, 443) else f":{config.https_port}"
        return f"""
frontend http
  mode http
  bind :{config.http_port}
  bind [::]:{config.http_port} v6only
  tcp-request connection track-sc0 src table clients
  tcp-request connection reject if {{ sc0_conn_cur(clients) gt {config.max_per_client} }}
  http-request set-var(txn.name) req.hdr(host),field(1,:),lower,rtrim(.)
  http-request return status 421 content-type text/plain string "This name is not served here.\\n" unless {{ var(txn.name),map_str({self._map}) -m found }}
  http-request redirect code 308 location https://%[var(txn.name)]{port}%[capture.req.uri]
"""
