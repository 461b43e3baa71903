"""What concerns a Compose file as a whole, on its tree before any service is read: `extends`, `profiles`, `volumes_from`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from fractal.manifest import including
from fractal.manifest.document import Items, Node, Scalar, Table
from fractal.manifest.merging import merged
from fractal.manifest.rules import MAX_SERVICES
from fractal.manifest.values import Where

MAX_CHAIN = 16
MAX_NODES = 50_000
"""Of all services, after what they extend is written out: each of a thousand may extend one with a thousand volumes."""
PROFILES = "COMPOSE_PROFILES"
"""The variable by which Compose is told what profiles to take."""


def services(where: Where) -> tuple[dict[str, Where], dict[str, Where]]:
    """The services that run, with what they extend; and those whose profiles are not chosen."""
    tables = where.table()
    chosen = {p.strip() for p in where.given.values.get(PROFILES, "").split(",") if p.strip()}
    found: dict[str, Where] = {}
    absent: dict[str, Where] = {}
    left = MAX_NODES
    for name, item in tables.items():
        whole = replace(item, node=_extended(item, name, tables, ()))
        left -= _count(whole.node)
        if left < 0:
            item.wrong("too much, counting what it and those before it extend")
            break
        if _chosen(whole, chosen):
            found[name] = whole
        else:
            absent[name] = whole
    if absent and not found:
        # What all of them ask for is told then: whoever installs it has yet to say which ones they are.
        where.need(
            f"--set {PROFILES}=VALUE", f"every service has a profile: say which ones, of {_profiles(absent)}"
        )
        found, absent = dict(islice(absent.items(), MAX_SERVICES)), {}
    # Of the volumes that are written in each, not of those that it has from others: else a few lines would stand for billions.
    return {n: replace(w, node=_with_volumes(w, found)) for n, w in found.items()}, absent


def _count(node: Node) -> int:
    if isinstance(node, Table):
        return 1 + sum(_count(below) for _, below in node.entries.values())
    return 1 + sum(map(_count, node.items)) if isinstance(node, Items) else 1


def called(services: Mapping[str, Where]) -> dict[str, str]:
    """container_name -> service."""
    found = {}
    for name, where in services.items():
        _, node = (
            where.node.entries.get("container_name", (0, None))
            if isinstance(where.node, Table)
            else (0, None)
        )
        if isinstance(node, Scalar) and node.value is not None:
            found[where.resolved_clear(node.text)] = name
    return found


def _chosen(where: Where, chosen: set[str]) -> bool:
    entry = where.node.entries.get("profiles") if isinstance(where.node, Table) else None
    if entry is None:
        return True
    profiles = where.at("profiles", entry[1])
    names = [item.text() for item in profiles.items()]
    if not names or "*" in chosen or chosen & set(names):
        return True
    where.problems.known.setdefault(profiles.key, entry[0])
    return False


def _profiles(services: Mapping[str, Where]) -> str:
    """Their names, as far as they are worth telling."""
    nodes = [one.node.entries["profiles"][1] for one in services.values() if isinstance(one.node, Table)]
    names = [
        item.text
        for node in nodes
        if isinstance(node, Items)
        for item in node.items
        if isinstance(item, Scalar)
    ]
    return ", ".join(dict.fromkeys(names))[:200]


def _extended(where: Where, name: str, tables: dict[str, Where], chain: tuple[str, ...]) -> Node:
    entry = where.node.entries.get("extends") if isinstance(where.node, Table) else None
    if entry is None or not isinstance(where.node, Table):
        return where.node
    extends = where.at("extends", entry[1])
    table = (
        extends.table(frozenset({"service", "file"})) if isinstance(entry[1], Table) else {"service": extends}
    )
    base = table["service"].text() if "service" in table else ""
    if "file" in table:
        other = including.file(table["file"])
        if other is None:
            return where.node
        _, services = other.entries.get("services", (0, None))
        found = services.entries if isinstance(services, Table) else {}
        tables = {one: replace(where, node=node) for one, (_, node) in found.items()}
        chain, name = (*(f"/{one}" for one in chain), f"/{name}"), "/"  # of another file: no name of this one
    if base not in tables or base in (*chain, name) or len(chain) > MAX_CHAIN:
        extends.wrong(f"{base[:80]!r} is no other service of that file, or extends this one itself")
        return where.node
    under = _extended(tables[base], base, tables, (*chain, name))
    return merged(under, where.node) if isinstance(under, Table) else where.node


def _with_volumes(where: Where, found: dict[str, Where]) -> Node:
    """The volumes of the services in `volumes_from` added, which its own go over."""
    node = where.node
    if not isinstance(node, Table) or "volumes_from" not in node.entries:
        return node
    line, given = node.entries["volumes_from"]
    items: list[Node] = []
    for item in where.at("volumes_from", given).items():
        name, _, mode = item.text().partition(":")
        other = found.get(name)
        if other is None or mode not in ("", "rw") or not isinstance(other.node, Table):
            item.wrong(f"{item.text()[:80]!r} is no service of this file; with `:ro`, write its volumes out")
            continue
        _, volumes = other.node.entries.get("volumes", (0, None))
        items += volumes.items if isinstance(volumes, Items) else ()
    _, own = node.entries.get("volumes", (line, Items(line, ())))
    own_items = own.items if isinstance(own, Items) else ()
    return Table(node.line, {**node.entries, "volumes": (line, Items(line, (*items, *own_items)))})
