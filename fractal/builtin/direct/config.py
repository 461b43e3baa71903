"""Configuration of the `direct` transport. Light: read by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectConfig:
    """Every port is bound on `listen`; times are seconds."""

    listen: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on, for gateways and for clients."}
    )
    advertise: str = field(
        default="",
        metadata={"help": "Address or name under which other devices reach this one. Default: `listen`."},
    )
    source: str = field(
        default="",
        metadata={
            "help": "Address from which this device, as a gateway, connects to others. Default: the system's."
        },
    )
    device_port: int = field(
        default=0,
        metadata={"help": "TCP and UDP port for gateways. Default 0: any free one, kept over restarts."},
    )
    https_port: int = field(
        default=0, metadata={"help": "Public port for TLS on a gateway. Default 0: none."}
    )
    http_port: int = field(
        default=0, metadata={"help": "Public port on a gateway that redirects to TLS. Default 0: none."}
    )
    lan: bool = field(
        default=False,
        metadata={"help": "Serve TLS also to clients that reach the device port without a gateway."},
    )
    hold: float = field(
        default=20.0,
        metadata={"help": "Seconds for which a new connection waits for an app that is changing hands."},
    )
    greeting_timeout: float = field(
        default=5.0, metadata={"help": "Seconds in which a client must have said which name it wants."}
    )
    connect_timeout: float = field(
        default=5.0, metadata={"help": "Seconds for connecting to a device or an app."}
    )
    idle_timeout: float = field(
        default=3600.0,
        metadata={"help": "Seconds without a byte either way after which a connection is closed."},
    )
    half_open_timeout: float = field(
        default=60.0,
        metadata={"help": "Seconds for which one direction may stay open after the other has ended."},
    )
    probe_interval: float = field(
        default=5.0, metadata={"help": "Seconds between a gateway's looks at whether a device answers."}
    )
    max_connections: int = field(default=2000, metadata={"help": "Most connections at one time on one port."})
    max_per_client: int = field(
        default=200, metadata={"help": "Most connections at one time from one client address on one port."}
    )
