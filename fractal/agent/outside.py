"""How a client sees a public name: what the doctor looks at from this device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Visit:
    """What a client found behind a name."""

    certificate: bytes
    """DER of the certificate that it was shown."""
    status: int
    """HTTP status of `/`."""


class Outside(Protocol):
    """The way of a client, as this device can go it."""

    async def addresses(self, name: str) -> frozenset[str]:
        """Every address of a host name. Raises BackendError if it has none, or nobody answers."""

    async def visit(self, name: str, address: str, port: int) -> Visit:
        """Ask for `/` by HTTPS. Trust is not checked: what was shown is part of the answer.

        Raises BackendError that says how far it came.
        """
