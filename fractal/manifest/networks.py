"""Networks of a Compose file: which services share one, and which have no way out. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fractal.api import canonical
from fractal.api.app import ServiceSpec
from fractal.manifest import keys
from fractal.manifest.document import Items
from fractal.manifest.values import Where

DEFAULT = "default"
"""The network of services that name none."""
MODES = {"bridge": "", "default": "", "none": "none", "host": "host"}
"""With `host` a service reaches all that the device does."""
SERVICE, CONTAINER = "service:", "container:"
NAMED = "network:"
"""Of a mode that is the name of a network of the engine's, ours alone."""
BELONGS = (
    *("networks", "ports", "hostname", "domainname", "dns", "dns_search", "dns_opt", "extra_hosts"),
    "links",
)
"""Keys that say something of a network that belongs to another service."""
MAX_NETWORKS = 16
"""Of a file."""
_DRIVERS = frozenset({"", "bridge", "default"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ROOTLESS = frozenset({"slirp4netns", "pasta", "private"})
"""What Podman without root would do for the network that others have anyway."""


def declared(where: Where | None) -> dict[str, bool]:
    """Networks of the file -> whether they have no way out."""
    found = {}
    for name, item in where.table().items() if where is not None else ():
        entries = item.table(frozenset({"driver", "internal", *keys.NETWORK_IDLE}), extensions=True)
        for key in keys.NETWORK_IDLE.keys() & entries.keys():
            entries[key].idle(keys.NETWORK)
        driver = entries["driver"].text() if "driver" in entries else ""
        if driver in keys.NETWORK_DRIVERS:
            entries["driver"].idle(keys.NETWORK_DRIVERS[driver])
        elif driver not in _DRIVERS:
            entries["driver"].wrong("not supported: an app's networks are bridges of its own")
        found[name] = "internal" in entries and entries["internal"].flag()
    if where is not None and len(found) > MAX_NETWORKS:
        where.wrong(f"more than {MAX_NETWORKS}: a device's engine has room for some thirty, of all apps")
    return found


def read(
    table: Mapping[str, Where],
    known: Mapping[str, bool],
    names: frozenset[str],
    found: dict[str, str],
    called: Mapping[str, str],
) -> None:
    """`network_mode` and `networks` of a service, as options. `called` is container_name -> service."""
    mode = _mode(table["network_mode"], table, names, called) if "network_mode" in table else ""
    if mode.startswith(NAMED):
        name = mode.removeprefix(NAMED)
        found["networks"] = _text({name: known.get(name, False)})
    elif mode:
        found["network_mode"] = _text(mode)
    else:
        found["networks"] = _text({name: known.get(name, False) for name in _joined(table, known)})


def shared_with(table: Mapping[str, Where], called: Mapping[str, str]) -> dict[str, str]:
    """The service whose network this one has is started before it."""
    text = _of_service(table["network_mode"].loose_text(), called) if "network_mode" in table else ""
    return {text.removeprefix(SERVICE): "started"} if text.startswith(SERVICE) else {}


def _of_service(mode: str, called: Mapping[str, str]) -> str:
    """A container that the file names is one of its services."""
    service = called.get(mode.removeprefix(CONTAINER)) if mode.startswith(CONTAINER) else None
    return f"{SERVICE}{service}" if service else mode


def _mode(where: Where, table: Mapping[str, Where], names: frozenset[str], called: Mapping[str, str]) -> str:
    if where.incomplete():
        return ""
    text = _of_service(where.loose_text(), called)
    if text.startswith(CONTAINER):
        where.wrong(
            f"{text[:80]!r} is no container of this file: put that service here too, and write `service:NAME`"
        )
        return ""
    if text.startswith(SERVICE):
        if text.removeprefix(SERVICE) not in names:
            where.wrong(f"{text.removeprefix(SERVICE)[:80]!r} is no service of this file")
        for key in BELONGS:
            if key in table:
                table[key].wrong(
                    f"belongs to the service whose network this is: write it there ({text[:80]})"
                )
        return text
    if text not in MODES and _NAME.fullmatch(text) and "networks" not in table:
        where.idle(keys.NETWORK)
        return "" if text in _ROOTLESS else f"{NAMED}{text}"
    mode = where.choice(MODES)
    if mode == "host":
        where.allowed("host-network", "it reaches all that the device does, and takes its ports")
    if mode and "networks" in table:
        table["networks"].wrong(f"`network_mode: {mode}` leaves no network of the app's")
    return mode


def _joined(table: Mapping[str, Where], known: Mapping[str, bool]) -> list[str]:
    if (networks := table.get("networks")) is None:
        return [DEFAULT]
    if isinstance(networks.node, Items):
        given = {item.text(): item for item in networks.items()}
    else:
        given = networks.table()
        for item in given.values():
            for key, below in item.table(frozenset({*keys.NETWORK_IDLE, "aliases"}), extensions=True).items():
                if key == "aliases":
                    _called(networks, below)
                else:
                    below.idle(keys.NETWORK)
    for name, item in given.items():
        if not name and item.incomplete():
            continue
        if name != DEFAULT and name not in known:
            item.wrong(f"{name[:80]!r} is not among the file's `networks`")
    if len(given) > MAX_NETWORKS:
        networks.wrong(f"more than {MAX_NETWORKS}")
    return list(given) or [DEFAULT]


def _called(networks: Where, aliases: Where) -> None:
    """What else a service is called in its networks."""
    found = [(item.node.line, item.key, item.text()) for item in aliases.items()]
    service = networks.key.removeprefix("services.").rpartition(".")[0]
    networks.problems.aliases.setdefault(service, []).extend(found)


def settled(services: Sequence[ServiceSpec]) -> list[ServiceSpec]:
    """The services, without a word of networks where all share the same, with a way out: one network does then."""
    texts = {text for one in services if (text := one.options.get("networks")) is not None}
    if len(texts) > 1 or any(any(json.loads(text).values()) for text in texts):
        return list(services)
    return [
        replace(one, options={k: v for k, v in one.options.items() if k != "networks"}) for one in services
    ]


def _text(value: str | dict[str, bool]) -> str:
    return canonical.encode({"": value})[4:-1].decode()
