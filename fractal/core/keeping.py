"""What a device keeps of an app beside what its archive has: a pure reading of names."""

from __future__ import annotations

from collections.abc import Iterable

STRAY = "stray-"
"""Begins the name of a root that no epoch claimed and that was put aside; its number follows."""


def outdone_strays(names: Iterable[str]) -> frozenset[str]:
    """Of the names of local snapshots, the roots put aside that a later one outdoes: one such copy is enough to look into."""
    strays = [n for n in names if n.startswith(STRAY) and n.removeprefix(STRAY).isdecimal()]
    return frozenset(sorted(strays, key=lambda n: int(n.removeprefix(STRAY)))[:-1])
