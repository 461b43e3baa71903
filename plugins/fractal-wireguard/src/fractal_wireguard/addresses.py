"""Addresses inside the tunnels, derived from ids, so that nobody hands them out and nobody can claim another's.

IPv6 carries what HAProxy passes on: 80 bits of a hash do not meet by chance. IPv4, for ports that are passed on packet by packet, has
24 bits below 10/8: two that meet are told apart by whoever sees both, a gateway. Only single addresses are ever routed, so a
network of the house that uses 10/8 keeps all but these.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from fractal.api.errors import BackendError

NETWORK = ipaddress.IPv6Network("fd68:7366:7261::/48")
_NETWORK4 = ipaddress.IPv4Network("10.0.0.0/8")

ENTRY_PORT = 47443
"""TCP at an app's address: TLS behind a PROXY header."""
CHALLENGE_PORT = 47444
"""TCP at an app's address: TLS of an authority's challenge, as it came."""
HEARTBEAT_PORT = 47445
"""UDP at a device's address."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Of a device or an app, as text."""

    v6: str
    v4: str

    @property
    def allowed(self) -> tuple[str, str]:
        """As WireGuard's allowed-ips."""
        return f"{self.v4}/32", f"{self.v6}/128"


@lru_cache(4096)
def of_device(device: str) -> Addresses:
    """A device's own."""
    return _derived(f"device {device}")


@lru_cache(4096)
def of_app(group: str, app: str) -> Addresses:
    """An app's, wherever it runs."""
    return _derived(f"app {group} {app}")


def _derived(text: str) -> Addresses:
    digest = hashlib.sha256(f"fractal-wireguard 1 {text}".encode()).digest()
    return Addresses(
        v6=str(NETWORK[int.from_bytes(digest[:10], "big") or 1]),
        v4=str(_NETWORK4[int.from_bytes(digest[10:13], "big") or 1]),
    )


def interface_name(device: str) -> str:
    """At most 15 characters. wireguard-go's sockets are named by interface in the file system that all namespaces share."""
    return "hs" + hashlib.sha256(f"fractal-wireguard 1 interface {device}".encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Contact:
    """What a device has published: its public key and, a gateway's, where its tunnels end."""

    key: str
    host: str = ""
    port: int = 0


def read_contact(device: str, plain: Mapping[str, str]) -> Contact:
    """A contact as another device published it. Raises BackendError naming the device and what is wrong."""
    key, endpoint = plain.get("key", ""), plain.get("endpoint", "")
    # 43 digits of base64 hold 258 bits: the last one carries four of the key's, and two that must be zero.
    if not re.fullmatch(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", key):
        raise BackendError(f"device {device} has published no key for the wireguard transport")
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9A-Za-z._-]{1,253})):([0-9]{1,5})", endpoint)
    if endpoint and (match is None or not 0 < int(match[3]) < 65536):
        raise BackendError(f"device {device} has published no usable endpoint for the wireguard transport")
    return Contact(key, (match[1] or match[2]) if match else "", int(match[3]) if match else 0)


def write_contact(key: str, advertise: str, port: int) -> Mapping[str, str]:
    """As it is published."""
    if not advertise:
        return {"key": key}
    named = re.search(r"[^:]:[0-9]+$|\]:[0-9]+$", advertise)
    return {"key": key, "endpoint": advertise if named else f"{advertise}:{port}"}
