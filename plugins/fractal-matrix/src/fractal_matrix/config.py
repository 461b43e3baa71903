"""Configuration of the `matrix` coordination backend. Light: read by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixConfig:
    """One ordered log per group, in a room of a Matrix homeserver. Who a device is there: `homeserver login`."""

    timeout: float = field(
        default=8.0, metadata={"help": "Seconds after which a request to the homeserver is given up."}
    )
    staleness: float = field(
        default=0.0,
        metadata={
            "help": "Seconds by which the homeserver's answers may lag. 0 for Synapse in one process; more where it runs with workers."
        },
    )
    ca_file: str = field(
        default="",
        metadata={
            "help": "Absolute path of the certificates (PEM) to trust instead of the system's, for a homeserver with a CA of its own."
        },
    )
    cleartext: bool = field(
        default=False,
        metadata={
            "help": "Also talk to a homeserver without TLS. Only where nobody else is on the way, as its access tokens can be read there."
        },
    )
