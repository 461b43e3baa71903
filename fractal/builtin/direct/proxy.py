"""The PROXY protocol, version 2 (HAProxy's specification `proxy-protocol.txt`), as gateway and device speak it.

The gateway puts one header before each connection and each datagram: who the client is, which route it asked for, and
that the sender is the gateway it says it is. A LOCAL header is a health probe and is answered by `ANSWER`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from fractal.api.errors import InvalidInput
from fractal.builtin.direct.hello import Cursor

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FIXED = 16
"""Bytes of a header before the part whose length it tells."""
MAX_REST = 1024
ANSWER = b"\x06"
"""What a device says to a probe."""

_AUTHORITY = 0x02
_TOKEN = 0xE0
_GATEWAY = 0xE1
_STREAM, _DATAGRAM = 1, 2
_INET, _INET6 = 1, 2

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One header. `client` is None in a probe."""

    client: Address | None
    server: Address | None = None
    """The gateway's address that the client connected to."""
    route: str = ""
    token: bytes = field(default=b"", repr=False)
    gateway: str = ""
    datagram: bool = False


def encode(header: Header) -> bytes:
    """The header's bytes. Raises InvalidInput for an address that is no IP address."""
    tlvs = b"".join(
        bytes([kind]) + len(value).to_bytes(2, "big") + value
        for kind, value in (
            (_AUTHORITY, header.route.encode("ascii")),
            (_TOKEN, header.token),
            (_GATEWAY, header.gateway.encode("ascii")),
        )
        if value
    )
    if header.client is None:
        return SIGNATURE + b"\x20\x00" + len(tlvs).to_bytes(2, "big") + tlvs
    server = header.server or header.client
    try:
        addresses = [ipaddress.ip_address(host.partition("%")[0]) for host, _port in (header.client, server)]
    except ValueError as error:
        raise InvalidInput(f"{header.client} or {server} is no IP address") from error
    if len({address.version for address in addresses}) > 1:
        addresses = [_as_v6(address) for address in addresses]
    family = _INET if addresses[0].version == 4 else _INET6
    ports = b"".join(port.to_bytes(2, "big") for _host, port in (header.client, server))
    rest = b"".join(address.packed for address in addresses) + ports + tlvs
    kind = family << 4 | (_DATAGRAM if header.datagram else _STREAM)
    return SIGNATURE + bytes([0x21, kind]) + len(rest).to_bytes(2, "big") + rest


def rest_length(fixed: bytes) -> int:
    """How many bytes follow the first `FIXED` ones. Raises InvalidInput if they do not begin a header."""
    if len(fixed) != FIXED or not fixed.startswith(SIGNATURE) or fixed[12] not in (0x20, 0x21):
        raise InvalidInput("no PROXY protocol header")
    length = int.from_bytes(fixed[14:16], "big")
    if length > MAX_REST:
        raise InvalidInput(f"a PROXY protocol header of {length} bytes")
    return length


def decode(data: bytes) -> Header:
    """The header that `data` is, exactly. Raises InvalidInput."""
    if rest_length(data[:FIXED]) != len(data) - FIXED:
        raise InvalidInput("a PROXY protocol header of the wrong length")
    rest = Cursor(data[FIXED:])
    kind = data[13]
    client = server = None
    if data[12] == 0x21:
        if kind >> 4 not in (_INET, _INET6) or kind & 15 not in (_STREAM, _DATAGRAM):
            raise InvalidInput(f"a PROXY protocol header of unknown kind {kind:#x}")
        size = 4 if kind >> 4 == _INET else 16
        hosts = [_text(rest.take(size)) for _ in range(2)]
        client, server = [(host, rest.number(2)) for host in hosts]
    tlvs: dict[int, bytes] = {}
    while rest.left:
        tlv = rest.number(1)
        tlvs[tlv] = rest.block(2)
    try:
        route, gateway = (tlvs.get(tlv, b"").decode("ascii") for tlv in (_AUTHORITY, _GATEWAY))
    except UnicodeDecodeError as error:
        raise InvalidInput("a PROXY protocol header with text that is not ASCII") from error
    return Header(
        client=client,
        server=server,
        route=route,
        token=tlvs.get(_TOKEN, b""),
        gateway=gateway,
        datagram=client is not None and kind & 15 == _DATAGRAM,
    )


def split(datagram: bytes) -> tuple[Header, bytes]:
    """Header and payload of a datagram that begins with a header. Raises InvalidInput."""
    end = FIXED + rest_length(datagram[:FIXED])
    return decode(datagram[:end]), datagram[end:]


def _as_v6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(f"::ffff:{address}") if address.version == 4 else address


def _text(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
