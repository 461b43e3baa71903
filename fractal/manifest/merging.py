"""A service over the one that it extends, as Compose merges them: on the trees, in whatever form each of them says it.

https://github.com/compose-spec/compose-spec/blob/main/13-merge.md
"""

from __future__ import annotations

import re

from fractal.manifest.document import Items, Node, Scalar, Table

Path = tuple[str, ...]
"""Keys below the service."""

REPLACED: frozenset[Path] = frozenset({("command",), ("entrypoint",), ("healthcheck", "test")})
"""Sequences that are not added to."""
PAIRS: frozenset[Path] = frozenset(
    {
        *(("environment",), ("labels",), ("annotations",), ("sysctls",)),
        *(("build", "args"), ("build", "labels"), ("deploy", "labels")),
    }
)
NAMES: frozenset[Path] = frozenset({("depends_on",), ("networks",)})
LISTS: frozenset[Path] = frozenset({("env_file",), ("dns",), ("dns_search",), ("tmpfs",)})
BY_TARGET: frozenset[Path] = frozenset({("volumes",), ("devices",)})
"""Sequences of which one item stands for each place inside."""

DRIVE = re.compile(r"([A-Za-z]):(?=\\|/[^:]*:/)")
"""Begins a path of Windows, before where it is mounted: `c:/x` alone is a volume named `c`."""


def merged(under: Node, over: Node, path: Path = ()) -> Node:
    """`over` goes before."""
    under, over = _alike(under, path), _alike(over, path)
    if isinstance(under, Table) and isinstance(over, Table):
        entries = dict(under.entries)
        for name, (line, value) in over.entries.items():
            below = merged(entries[name][1], value, (*path, name)) if name in entries else value
            entries[name] = (line, below)
        return Table(over.line, entries)
    if isinstance(under, Items) and isinstance(over, Items) and path not in REPLACED:
        taken = {target(item) for item in over.items} - {""} if path in BY_TARGET else set[str]()
        return Items(over.line, (*(i for i in under.items if target(i) not in taken), *over.items))
    return over


def _alike(node: Node, path: Path) -> Node:
    """The form that two of its kind can be merged in; what is neither form stays, and is told where it is read."""
    said = not (isinstance(node, Scalar) and node.value is None)
    if path in PAIRS:
        return _as_table(node, "=")
    if path in NAMES:
        return _as_table(node, "")
    if path in LISTS and isinstance(node, Scalar) and said:
        return Items(node.line, (node,))
    if path == ("build",) and isinstance(node, Scalar) and said:
        return Table(node.line, {"context": (node.line, node)})
    if path == ("extra_hosts",) and isinstance(node, Table):
        return _as_items(node)
    return node


def _as_table(node: Node, between: str) -> Node:
    if not isinstance(node, Items) or not all(isinstance(item, Scalar) for item in node.items):
        return node
    entries: dict[str, tuple[int, Node]] = {}
    for item in node.items:
        assert isinstance(item, Scalar)
        name, said, value = item.text.partition(between) if between else (item.text, "", "")
        entries[name] = (item.line, Scalar(item.line, value if said else None, value))
    return Table(node.line, entries)


def _as_items(table: Table) -> Node:
    """`NAME=VALUE` for each value of a mapping to values, or to lists of them."""
    items: list[Node] = []
    for name, (line, value) in table.entries.items():
        for one in value.items if isinstance(value, Items) else (value,):
            if not isinstance(one, Scalar):
                return table
            text = f"{name}={one.text}"
            items.append(Scalar(line, text, text))
    return Items(table.line, tuple(items))


def target(node: Node) -> str:
    """The place inside, of the short or the long form; "" if it says none."""
    if isinstance(node, Table):
        _, said = node.entries.get("target", (0, None))
        return said.text.rstrip("/") if isinstance(said, Scalar) else ""
    text = node.text if isinstance(node, Scalar) else ""
    parts = _parts(text[2:] if DRIVE.match(text) else text)
    return (parts[1] if len(parts) > 1 else parts[0]).rstrip("/")


def _parts(text: str) -> list[str]:
    """What is between colons, but for those inside of `${...}`."""
    parts, depth = [""], 0
    for char in text:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == ":" and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts
