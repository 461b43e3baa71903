"""`ports` of a Compose service: those inside. Where they are published is the routes' business."""

from __future__ import annotations

import re

from fractal.api.app import Port
from fractal.manifest import rules
from fractal.manifest.document import Scalar
from fractal.manifest.values import Where

_PORT_KEYS = frozenset({"name", "target", "published", "protocol", "host_ip", "mode", "app_protocol"})
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
MAX_RANGE = 1000
PUBLISHED = "routes publish; no port of the device is taken"
NOT_ROUTED = "routes carry TCP and UDP; the app's own services reach it by SCTP"


def ports(where: Where) -> tuple[Port, ...]:
    """Ports of a service, ranges one by one."""
    found: dict[tuple[int, str], Port] = {}
    for item in where.items():
        for port in _ports(item):
            found.setdefault((port.container, port.protocol), port)
        if len(found) > rules.MAX_PORTS:
            item.wrong(f"more than {rules.MAX_PORTS} ports")
            break
    return tuple(found.values())


def _ports(where: Where) -> list[Port]:
    if isinstance(where.node, Scalar):
        text, _, protocol = where.text().partition("/")
        published, _, number = text.rpartition(":")
        name, protocol = "", protocol or "tcp"
        if published:
            where.idle(PUBLISHED)
        if (not number or not _RANGE.fullmatch(number)) and where.incomplete():
            return []
    else:
        table = where.table(_PORT_KEYS, extensions=True)
        for key in ("published", "host_ip", "mode", "app_protocol"):
            if key in table:
                table[key].idle(PUBLISHED)
        if "target" not in table:
            where.wrong("needs `target`")
            return []
        if table["target"].incomplete():
            return []
        number = table["target"].text()
        name = table["name"].name(rules.PORT, "a port's name") if "name" in table else ""
        protocol = table["protocol"].text() if "protocol" in table else "tcp"
    return _made(where, number, name, protocol.lower())


def _made(where: Where, number: str, name: str, protocol: str) -> list[Port]:
    match = _RANGE.fullmatch(number)
    first = int(match[1]) if match else 0
    last = int(match[2] or match[1]) if match else 0
    if not 1 <= first <= last <= 65535 or last - first >= MAX_RANGE:
        where.wrong(f"{number[:40]!r} is not a port from 1 to 65535, or a range of at most {MAX_RANGE}")
        return []
    if protocol == "sctp":
        where.idle(NOT_ROUTED)
        return []
    if protocol not in ("tcp", "udp"):
        where.wrong(f"protocol {protocol[:20]!r} is not tcp, udp or sctp")
        return []
    suffix = "" if protocol == "tcp" else "-udp"
    return [
        Port(name=name if name and first == last else f"{port}{suffix}", container=port, protocol=protocol)
        for port in range(first, last + 1)
    ]
