"""Transport kind: the way from a public name to an app's service, through gateways that cannot read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

from fractal.api.backend import Backend, C, Offer

PUBLIC_PORT = "https"
"""Where a gateway's contact says, in decimal, at which port clients reach it by TLS."""


class RouteKind(Enum):
    """What a route carries."""

    HTTPS = "https"
    """TLS by server name; ends on the device with the app's own certificate."""
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """An app's certificate chain and private key, PEM. The key never leaves the devices that may host the app."""

    chain: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRoute:
    """On the device that runs the app: bring traffic for `name` to a local endpoint."""

    group: str
    app: str
    name: str
    """Lower-case DNS name for HTTPS, `:PORT` for TCP and UDP."""
    kind: RouteKind
    host: str
    port: int
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """On a gateway: where traffic for a name goes."""

    group: str
    app: str
    name: str
    kind: RouteKind
    device: str
    """Id of the device that serves it; "" while the app is changing hands: connections are held, then refused."""
    contact: Mapping[str, str] = field(default_factory=dict)
    """What that device published about itself for this transport (`Transport.contact`)."""
    epoch: int = 0
    moving: bool = False
    """Whether it is about to go to another device, or just does: who connects now should find the next one at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A device that a gateway serves, or a gateway that a device uses."""

    device: str
    contact: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Health of the way to one peer."""

    device: str
    up: bool
    last_seen: float | None = None
    """Seconds ago."""
    sent: int = 0
    received: int = 0
    endpoint: str = ""
    detail: str = ""


class Transport(Protocol):
    """Both ends apply the full desired set each time; what did not change is not disturbed."""

    def contact(self) -> Mapping[str, str]:
        """What others need to reach this device (addresses, public keys); published in the log when it changes."""

    async def serve(self, gateways: Sequence[Peer], routes: Sequence[LocalRoute]) -> None:
        """On a device: reach exactly these gateways and serve exactly these routes.

        Where a route is taken away nothing new is let in, so that gateways hold it, and requests under way may finish for
        a second before their connections end: a planned move takes its routes away first.
        """

    async def forward(self, peers: Sequence[Peer], targets: Sequence[Target]) -> None:
        """On a gateway: serve exactly these devices and lead exactly these names. A target whose device changed has its
        old connections closed; one whose device is "" holds new connections for a few seconds."""

    async def links(self) -> Sequence[Link]:
        """Health of each peer."""


class TransportOffer(Offer):
    """A `TransportBackend` of any config type: what `fractal_transports` yields."""

    __slots__ = ()


@runtime_checkable
class SupportsChallenge(Protocol):
    """Lets a certificate authority see that a name leads here: ACME's TLS-ALPN-01 (RFC 8737)."""

    async def challenge(self, group: str, app: str, name: str, certificate: Certificate | None) -> None:
        """On the device that runs the app: until called with None, clients of `name` that offer `acme-tls/1` and no other
        protocol get this self-signed certificate, and nothing else after the handshake. All others are served as before.

        Independent of `serve`: the app's first certificate is asked for before there is a route that can be served, and a
        gateway must lead the name here (its target names this device). Not kept over a restart. Raises BackendError,
        InvalidInput for a malformed name or a certificate that cannot be used.
        """


@runtime_checkable
class SupportsProbe(Protocol):
    """On a gateway: tries a name as a client would."""

    async def probe(self, name: str, kind: RouteKind) -> None:
        """Connect at the public port and get as far as the serving device, for HTTPS through the whole TLS handshake.

        Raises BackendError saying how far it came, NotSupported where this device has no such port.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportBackend(TransportOffer, Backend[Transport, C]):
    """Offers a `Transport`."""
