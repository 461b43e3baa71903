"""`volumes` and `ports` of a Compose service. Every path is refused that could lead out of the app's own folder."""

from __future__ import annotations

from fractal.api.app import Mount, Port
from fractal.manifest import rules
from fractal.manifest.document import Scalar
from fractal.manifest.values import Where

_MOUNT_KEYS = frozenset({"type", "source", "target", "read_only"})
_PORT_KEYS = frozenset({"name", "target", "published", "protocol", "host_ip", "mode", "app_protocol"})


def mounts(where: Where) -> tuple[Mount, ...]:
    """Every mount of a service; `Mount.volume` is a folder directly below the volume root."""
    return tuple(found for item in where.items() if (found := _mount(item)) is not None)


def _mount(where: Where) -> Mount | None:
    if isinstance(where.node, Scalar):
        parts = where.text().split(":")
        if len(parts) == 1:
            where.wrong(f"{parts[0][:80]!r}: give the volume a name, as in `data:{parts[0][:80]}`")
            return None
        if len(parts) > 3:
            where.wrong("expected NAME:/TARGET or NAME:/TARGET:ro")
            return None
        flags = set(parts[2].split(",")) if len(parts) == 3 else set()
        if unknown := sorted(flags - {"ro", "rw", "z", "Z"}):
            where.wrong(f"option {unknown[0][:40]!r} is not supported")
        return _made(where, parts[0], parts[1], read_only="ro" in flags)
    table = where.table(_MOUNT_KEYS)
    if not {"source", "target"} <= set(table):
        where.wrong("needs `source` and `target`")
        return None
    if "type" in table and table["type"].choice(frozenset({"volume", "bind"})) == "":
        return None
    read_only = table["read_only"].flag() if "read_only" in table else False
    return _made(where, table["source"].text(), table["target"].text(), read_only=read_only)


def _made(where: Where, source: str, target: str, *, read_only: bool) -> Mount | None:
    volume = _folder(where, source)
    if not target.startswith("/") or ".." in target.split("/"):
        where.wrong(f"{target[:80]!r} is not an absolute path inside the service")
        return None
    return None if volume is None else Mount(volume=volume, target=target, read_only=read_only)


def _folder(where: Where, source: str) -> str | None:
    """The folder below the volume root for a volume's name, or for a path relative to the manifest."""
    if source.startswith(("/", "~", "\\")) or "\\" in source or ".." in source.split("/"):
        where.wrong(
            f"{source[:80]!r} leads out of the app's folder; name a volume or a folder such as ./data"
        )
        return None
    name = "-".join(part for part in source.split("/") if part not in ("", "."))
    if not rules.VOLUME.fullmatch(name):
        where.wrong(f"{source[:80]!r} cannot be a folder of the app")
        return None
    return name


def ports(where: Where) -> tuple[Port, ...]:
    """Ports inside the service. Where they are published is the routes' business, so that part is left aside."""
    return tuple(found for item in where.items() if (found := _port(item)) is not None)


def _port(where: Where) -> Port | None:
    if isinstance(where.node, Scalar):
        text, _, protocol = where.text().partition("/")
        number, name = text.rpartition(":")[2], ""
        protocol = protocol or "tcp"
    else:
        table = where.table(_PORT_KEYS)
        if "target" not in table:
            where.wrong("needs `target`")
            return None
        number = table["target"].text()
        name = table["name"].name(rules.PORT, "a port's name") if "name" in table else ""
        protocol = table["protocol"].text() if "protocol" in table else "tcp"
    if not number.isascii() or not number.isdecimal() or not 1 <= int(number[:6]) <= 65535:
        where.wrong(f"{number[:40]!r} is not a port from 1 to 65535 (ranges are not supported)")
        return None
    if protocol not in ("tcp", "udp"):
        where.wrong(f"protocol {protocol[:20]!r} is not tcp or udp")
        return None
    return Port(
        name=name or (number if protocol == "tcp" else f"{number}-udp"),
        container=int(number),
        protocol=protocol,
    )
