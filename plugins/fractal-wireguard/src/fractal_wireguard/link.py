"""The tunnel's interface: made in the kernel or by wireguard-go, which is the one difference; addresses, routes, peers after that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fractal.api.context import Context
from fractal.api.errors import BackendError
from fractal_wireguard.addresses import NETWORK, Addresses
from fractal_wireguard.config import WireguardConfig
from fractal_wireguard.daemon import Daemon, kill_orphans
from fractal_wireguard.tools import check_user_space

_SOCKETS = Path("/var/run/wireguard")
_READ = 2.0
"""Seconds for reading peers; a wireguard-go that hangs answers nobody."""
_AT_ONCE = 200
"""Peers in one call: an argument list has its limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a peer is to be."""

    allowed: frozenset[str]
    endpoint: str = ""
    """Where to send until it speaks; "" leaves that as it is."""
    keepalive: int = 0
    """Seconds; 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How a peer is."""

    allowed: frozenset[str]
    endpoint: str
    keepalive: int
    handshake: int
    """Seconds since 1970; 0: never."""
    received: int
    sent: int


class TunnelLink:
    """One WireGuard interface with one UDP port, for all peers."""

    def __init__(
        self, context: Context, config: WireguardConfig, name: str, own: Addresses, key: Path
    ) -> None:
        self._context = context
        self._config = config
        self._own = own
        self._key = key
        self._daemon: Daemon | None = None
        self._addresses: set[str] = set()
        self._routes: set[str] = set()
        self._port = 0
        self.name = name

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel does the work."""
        return self._daemon is None

    async def open(self, port: int, again: Callable[[], Awaitable[None]]) -> None:
        """Make the interface and set it up. `again` gives a new one the peers that it had. Raises BackendError."""
        self._port = port
        if await self._make_in_kernel():
            await self._set_up()
            return
        check_user_space()

        async def started() -> None:
            await self._set_up()
            await again()

        async def ready() -> None:
            # Not by `wg`: it removes a socket that is not listened on yet, and wireguard-go gives up.
            try:
                async with asyncio.timeout(1):
                    _, writer = await asyncio.open_unix_connection(_SOCKETS / f"{self.name}.sock")
                writer.close()
            except (OSError, TimeoutError) as error:
                raise BackendError(f"its socket does not answer: {error}") from error

        argv = ["setpriv", "--pdeathsig", "KILL", "wireguard-go", "-f", self.name]
        self._daemon = Daemon(self._context, argv, ready=ready, started=started)
        await self._daemon.open()

    async def close(self) -> None:
        """Take the interface away, with all tunnels."""
        if self._daemon is None:
            await self._context.run(["ip", "link", "delete", "dev", self.name], check=False)
        else:
            await self._daemon.close()
            # Killed, it leaves its socket; the name is this device's own.
            (_SOCKETS / f"{self.name}.sock").unlink(missing_ok=True)

    async def _make_in_kernel(self) -> bool:
        kind = await self._kind()
        if kind == "wireguard":
            return True  # of an agent that ended without a word: its tunnels go on
        if kind:
            kill_orphans("wireguard-go", self.name)
            await self._context.run(["ip", "link", "delete", "dev", self.name], check=False)
        done = await self._context.run(
            ["ip", "link", "add", "dev", self.name, "type", "wireguard"], check=False
        )
        if done.returncode == 0:
            return True
        words = done.stderr.decode("utf-8", "replace").strip()
        # "Unknown device type", "Operation not supported": no module, and none that can be loaded.
        if "not permitted" in words:
            raise BackendError(f"transport wireguard: interface {self.name} cannot be made: {words}")
        self._context.logger.debug("transport wireguard: no WireGuard in the kernel: %s", words)
        return False

    async def _kind(self) -> str:
        """What an interface of our name is; "" if there is none."""
        done = await self._context.run(["ip", "-d", "-j", "link", "show", "dev", self.name], check=False)
        if done.returncode != 0:
            return ""
        return str(json.loads(done.stdout)[0].get("linkinfo", {}).get("info_kind", "unknown"))

    async def _set_up(self) -> None:
        await self._run("wg", "set", self.name, "listen-port", str(self._port), "private-key", str(self._key))
        _allow_ipv6(self.name)
        await self._run("ip", "link", "set", "dev", self.name, "mtu", str(self._config.mtu), "up")
        addresses, routes = self._addresses, self._routes
        self._addresses, self._routes = await self._present_addresses(), set()
        await self.hold_addresses(addresses)
        segment = str(self._config.segment)
        await self._run(
            *("ip", "-6", "route", "replace", str(NETWORK), "dev", self.name, "advmss", segment),
            *("src", self._own.v6),
        )
        await self.hold_routes(routes)

    async def _present_addresses(self) -> set[str]:
        done = await self._run("ip", "-j", "address", "show", "dev", self.name)
        found = {
            item.get("local", "")
            for one in json.loads(done)
            for item in one.get("addr_info", ())
            if item.get("scope") != "link"
        }
        return found - {self._own.v4, self._own.v6}

    async def hold_addresses(self, wanted: Iterable[str]) -> None:
        """Hold exactly these addresses besides the device's own."""
        target = set(wanted) - {self._own.v4, self._own.v6}
        lines = [
            _address("replace", text, self.name) for text in (self._own.v4, self._own.v6, *sorted(target))
        ]
        lines += [_address("delete", text, self.name) for text in sorted(self._addresses - target)]
        if target != self._addresses or not await self._has_own():
            await self._batch(lines)
        self._addresses = target

    async def _has_own(self) -> bool:
        done = await self._run("ip", "-j", "-6", "address", "show", "dev", self.name)
        return self._own.v6 in done

    async def hold_routes(self, wanted: Iterable[str]) -> None:
        """Reach exactly these IPv4 addresses through the tunnel. (All IPv6 ones below our network lead there.)"""
        target = set(wanted)
        advice = f"advmss {self._config.segment} src {self._own.v4}"
        lines = [
            f"route replace {text}/32 dev {self.name} {advice}" for text in sorted(target - self._routes)
        ]
        lines += [f"route delete {text}/32 dev {self.name}" for text in sorted(self._routes - target)]
        if lines:
            await self._batch(lines)
        self._routes = target

    async def peers(self) -> dict[str, Found]:
        """As they are, by public key. Raises BackendError."""
        done = await self._context.run(["wg", "show", self.name, "dump"], timeout=_READ)
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        return dict(_found(line) for line in lines[1:])

    async def apply(self, wanted: Mapping[str, Wanted], renew: Sequence[str] = ()) -> None:
        """Have exactly these peers. Those that are as they should be are not touched, but for `renew`: new handshakes."""
        found = await self.peers()
        words = [
            w for key in sorted((found.keys() - wanted.keys()) | set(renew)) for w in ("peer", key, "remove")
        ]
        if words:
            await self._set(words)
        changes: list[list[str]] = []
        for key, peer in wanted.items():
            old = None if key in renew else found.get(key)
            if old is not None and (old.allowed, old.keepalive) == (peer.allowed, peer.keepalive):
                continue
            words = ["peer", key]
            if peer.endpoint and old is None:
                words += ["endpoint", peer.endpoint]
            words += ["persistent-keepalive", str(peer.keepalive)]
            words += ["allowed-ips", ",".join(sorted(peer.allowed))]
            changes.append(words)
        for start in range(0, len(changes), _AT_ONCE):
            await self._set([word for words in changes[start : start + _AT_ONCE] for word in words])

    async def _set(self, words: Sequence[str]) -> None:
        await self._run("wg", "set", self.name, *words)

    async def _run(self, *argv: str) -> str:
        done = await self._context.run(argv, timeout=10)
        return done.stdout.decode("utf-8", "replace")

    async def _batch(self, lines: Sequence[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        done = await self._context.run(
            ["ip", "-force", "-batch", "-"], stdin=text.encode(), timeout=10, check=False
        )
        if done.returncode != 0:
            words = done.stderr.decode("utf-8", "replace").strip()
            # Deleting what is gone is no problem.
            if any(
                "Cannot assign" not in w and "No such process" not in w
                for w in words.splitlines()
                if "answers" in w
            ):
                raise BackendError(f"transport wireguard: interface {self.name}: {words[:500]}")


def _address(verb: str, text: str, name: str) -> str:
    if ":" in text:
        # Nobody else can have it, so nobody is asked; and never the source of what others send.
        return f"address {verb} {text}/128 dev {name}" + (" nodad noprefixroute" if verb == "replace" else "")
    return f"address {verb} {text}/32 dev {name}"


def _found(line: str) -> tuple[str, Found]:
    key, _psk, endpoint, allowed, handshake, received, sent, keepalive = line.split("\t")
    return key, Found(
        allowed=frozenset() if allowed == "(none)" else frozenset(allowed.split(",")),
        endpoint="" if endpoint == "(none)" else endpoint,
        keepalive=0 if keepalive == "off" else int(keepalive),
        handshake=int(handshake),
        received=int(received),
        sent=int(sent),
    )


def _allow_ipv6(name: str) -> None:
    """Switch IPv6 on for this interface only, wherever new ones come without it. Raises BackendError."""
    path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    try:
        if path.read_text().strip() != "0":
            path.write_text("0")
    except OSError as error:
        raise BackendError(
            "transport wireguard: this kernel has no IPv6, which the tunnels use inside "
            f"(boot without ipv6.disable=1): {error}"
        ) from error
