"""Configuration of the `wireguard` transport. Light: read by the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fractal.api.errors import Misconfigured

DEFAULT_PORT = 51820
MIN_MTU = 1280
"""Bytes; below it the kernel switches IPv6 off on an interface (RFC 8200, section 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardConfig:
    """A device behind NAT needs no setting; a gateway needs `advertise`, `https_port` and `http_port`. Times are seconds."""

    advertise: str = field(
        default="",
        metadata={
            "help": "On a gateway: address or name under which devices reach it, to be followed by :PORT if NAT changes it."
        },
    )
    port: int = field(
        default=0,
        metadata={
            "help": "UDP port of the tunnels. Default: 51820 with `advertise`, else any free one, kept over restarts."
        },
    )
    https_port: int = field(
        default=0, metadata={"help": "Public port for TLS on a gateway. Default 0: none."}
    )
    http_port: int = field(
        default=0, metadata={"help": "Public port on a gateway that redirects to TLS. Default 0: none."}
    )
    interface: str = field(
        default="",
        metadata={
            "help": "Name of the tunnel's interface. Default: made from the device's id, unlike any other."
        },
    )
    mtu: int = field(
        default=MIN_MTU, metadata={"help": "Bytes of the largest packet in the tunnel, 1280 to 1420."}
    )
    segment: int = field(
        default=1172,
        metadata={
            "help": "Bytes of the largest TCP segment in the tunnel, so that packets pass where the way carries 1300."
        },
    )
    keepalive: int = field(
        default=25, metadata={"help": "Seconds between packets that keep the way through a NAT open."}
    )
    heartbeat: float = field(
        default=0.5,
        metadata={"help": "Seconds between signs of life in the tunnel; three that are missed renew it."},
    )
    hold: float = field(
        default=20.0,
        metadata={"help": "Seconds for which a new connection waits for an app that is changing hands."},
    )
    greeting_timeout: float = field(
        default=5.0, metadata={"help": "Seconds in which a client must have said which name it wants."}
    )
    connect_timeout: float = field(
        default=2.0,
        metadata={"help": "Seconds for one try to connect to a device or an app; repeated for `hold`."},
    )
    idle_timeout: float = field(
        default=3600.0,
        metadata={"help": "Seconds without a byte either way after which a connection is closed."},
    )
    max_connections: int = field(default=2000, metadata={"help": "Most connections at one time on one port."})
    max_per_client: int = field(
        default=200, metadata={"help": "Most connections at one time from one client address."}
    )

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if self.advertise and not re.fullmatch(
            r"[0-9A-Za-z._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", self.advertise
        ):
            raise Misconfigured(
                "advertise", f"{self.advertise!r} is no NAME, ADDRESS, NAME:PORT or [IPv6]:PORT"
            )
        if self.interface and not re.fullmatch(r"[a-z][a-z0-9_-]{0,14}", self.interface):
            raise Misconfigured("interface", "1-15 characters of [a-z0-9_-], a letter first")
        for key, value in (
            ("port", self.port),
            ("https_port", self.https_port),
            ("http_port", self.http_port),
        ):
            if not 0 <= value < 65536:
                raise Misconfigured(key, f"{value} is no port")
        if not MIN_MTU <= self.mtu <= 1420:
            raise Misconfigured("mtu", f"{self.mtu} is not between {MIN_MTU} and 1420")
        if not 536 <= self.segment <= self.mtu - 60:
            raise Misconfigured("segment", f"{self.segment} is not between 536 and {self.mtu - 60}")
        for key, number in (
            ("heartbeat", self.heartbeat),
            ("hold", self.hold),
            ("connect_timeout", self.connect_timeout),
        ):
            if number <= 0:
                raise Misconfigured(key, "must be more than 0")

    @property
    def udp_port(self) -> int:
        """The configured port of the tunnels; 0: any."""
        return self.port or (DEFAULT_PORT if self.advertise else 0)
