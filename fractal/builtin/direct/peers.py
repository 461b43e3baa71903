"""What both ends know: what a route is found by, contacts, and how the way to each peer has been."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fractal.api.errors import BackendError, FractalError, InvalidInput
from fractal.api.names import normal_host
from fractal.api.transport import PUBLIC_PORT, Link, RouteKind
from fractal.builtin.direct.sockets import Traffic

HOST = re.compile(r"[0-9A-Za-z._:%-]{1,253}")
"""A host name or an address. Contacts are published by other members' devices."""


def route_key(kind: RouteKind, name: str) -> str:
    """What a route is found by: the name for HTTPS, `tcp:PORT` or `udp:PORT`. Raises InvalidInput."""
    if kind is RouteKind.HTTPS:
        return normal_host(name)
    match = re.fullmatch(r":([0-9]{1,5})", name)
    if match is None or not 0 < int(match[1]) < 65536:
        raise InvalidInput(f"a {kind.value} route is called :PORT, not {name!r}")
    return f"{kind.value}:{int(match[1])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """A device's published contact: where it listens, and the secret by which it knows the group's gateways.

    Contacts travel sealed in the group's log, so whoever shows the token is, or was, a device of the group.
    """

    host: str
    port: int
    token: bytes = field(repr=False)
    source: str = ""
    """Address from which it connects as a gateway, if that is not `host`."""
    https: int = 0
    """Its public port as a gateway; 0 where it has none."""

    def plain(self) -> Mapping[str, str]:
        """As it is published."""
        plain = {"host": self.host, "port": str(self.port), "token": self.token.hex()}
        plain |= {"source": self.source} if self.source else {}
        return plain | ({PUBLIC_PORT: str(self.https)} if self.https else {})


def read_contact(device: str, plain: Mapping[str, str]) -> Contact:
    """A contact as another device published it. Raises BackendError naming the device and what is wrong."""
    host, port, token = plain.get("host", ""), plain.get("port", ""), plain.get("token", "")
    if not HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise BackendError(f"device {device} has published no usable address for the direct transport")
    if not re.fullmatch(r"([0-9a-f]{2}){16,64}", token):
        raise BackendError(f"device {device} has published no token for the direct transport")
    return Contact(host=host, port=int(port), token=bytes.fromhex(token), source=plain.get("source", ""))


def raise_together(problems: Sequence[FractalError]) -> None:
    """Raise one error of the first one's type that tells of all of them; nothing if there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise type(problems[0])("; ".join(str(problem) for problem in problems))


@dataclass(slots=True)
class Health:
    """How the way to one peer has been."""

    device: str
    endpoint: str = ""
    seen: float | None = None
    """CLOCK_BOOTTIME of the last sign of life."""
    up: bool = False
    detail: str = ""
    traffic: Traffic = field(default_factory=Traffic)

    def alive(self, now: float) -> None:
        """Note a sign of life."""
        self.seen, self.up, self.detail = now, True, ""

    def lost(self, reason: str) -> None:
        """Note that it did not answer."""
        self.up, self.detail = False, reason

    def link(self, now: float) -> Link:
        """As the transport reports it."""
        return Link(
            device=self.device,
            up=self.up,
            last_seen=None if self.seen is None else max(0.0, now - self.seen),
            sent=self.traffic.sent,
            received=self.traffic.received,
            endpoint=self.endpoint,
            detail=self.detail,
        )
