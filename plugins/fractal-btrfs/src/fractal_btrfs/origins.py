"""Where in the parent the things lie that a send stream names, while the stream moves them about.

A stream names what it acts on by where that is at this point of its replay: under its final name, one that it had, or a made-up one
such as `o257-9-0`. Only where a name leads elsewhere than in the parent is anything kept in mind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

ROOM = 16 << 20
"""Bytes that all names together may take, roughly. Beyond that nothing is known of any."""
_EACH = 400
"""Bytes of one name's bookkeeping."""


@dataclass(slots=True)
class _Node:
    origin: bytes | None
    """Path in the parent; None: it is not of the parent."""
    children: dict[bytes, _Node] = field(default_factory=dict)
    """Names that lead elsewhere than below `origin`."""


class Origins:
    """Told of every name that something appears at, in order. `exists` tells whether the parent has a path.

    What leaves a name need not be told: until something else appears there, the stream has nothing to say of it.
    """

    def __init__(self, exists: Callable[[bytes], bool], room: int) -> None:
        self._exists = exists
        self._room = room
        self._top = _Node(b"")

    def of(self, path: bytes) -> bytes | None:
        """The path in the parent, where there may be nothing; None: it is something new, or that is not known."""
        found, rest = self._deepest(path)
        return _below(found.origin, rest)

    def made(self, path: bytes) -> None:
        """Something new is there."""
        if self._node(path) is not None:
            self._put(path, _Node(None))

    def led(self, old: bytes, new: bytes) -> None:
        """A file, or a folder with all that is in it, has another name."""
        node = self._node(old)
        if node is None:
            self.made(new)
        else:
            self._put(new, node)

    def forget(self) -> None:
        """From now on nothing is known of any name."""
        self._top = _Node(None)

    def _deepest(self, path: bytes) -> tuple[_Node, list[bytes]]:
        """The last node on the way, and the names that are left."""
        at, parts = self._top, path.split(b"/")
        for number, part in enumerate(parts):
            child = at.children.get(part)
            if child is None:
                return at, parts[number:]
            at = child
        return at, []

    def _node(self, path: bytes) -> _Node | None:
        """None: nothing is known of that name, and the parent has nothing there."""
        found, rest = self._deepest(path)
        if not rest:
            return found
        origin = _below(found.origin, rest)
        return _Node(origin) if origin is not None and self._exists(origin) else None

    def _put(self, path: bytes, node: _Node) -> None:
        at, (*rest, name) = self._top, path.split(b"/")
        for part in rest:
            at = at.children.get(part) or self._add(at, part, _Node(_below(at.origin, [part])))
        self._add(at, name, node)

    def _add(self, at: _Node, name: bytes, node: _Node) -> _Node:
        at.children[name] = node
        self._room -= _EACH + len(name) + len(node.origin or b"")
        if self._room < 0:
            self.forget()
        return node


def _below(origin: bytes | None, rest: list[bytes]) -> bytes | None:
    if origin is None:
        return None
    return b"/".join([origin, *rest] if origin else rest)
