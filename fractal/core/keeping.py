"""What a device keeps of an app beside what its archive has: what waits to be stored, and what was put aside. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

TRIES = 3
"""How often a snapshot is found unreadable before later ones of its epoch are tried too."""
STRAY = "stray-"
"""Begins the name of a root that no epoch claimed and that was put aside; its number follows."""


class Waiting(Protocol):
    """A snapshot that waits to be stored."""

    @property
    def name(self) -> str:
        """Of the local snapshot."""

    @property
    def epoch(self) -> int:
        """To which it belongs."""


W = TypeVar("W", bound=Waiting)


def to_store(queue: Sequence[W], failures: Mapping[str, int]) -> tuple[W, ...]:
    """What to try next, and what after that if it fails: oldest first, but nothing that cannot be stored stands before the rest for ever.

    `failures` counts, by name, how often a snapshot could not be read; a store that is away is none's fault, and what is half uploaded
    is not given up for another. An epoch's snapshots go in order, so its oldest comes first also when it failed before, then the first
    that did not fail so often. Each epoch's are in no other's way.
    """
    fresh = next((q for q in queue if failures.get(q.name, 0) < TRIES), None)
    if fresh is None:
        return tuple(queue[:1])
    oldest = next(q for q in queue if q.epoch == fresh.epoch)
    return (fresh,) if oldest is fresh else (oldest, fresh)


def outrun(queue: Sequence[W], stored: str) -> tuple[W, ...]:
    """What is given up as a later one of its epoch was stored: stored after that, older data would be the newest of the line."""
    names = [q.name for q in queue]
    if stored not in names:
        return ()
    at = names.index(stored)
    return tuple(q for q in queue[:at] if q.epoch == queue[at].epoch)


def outdone_strays(names: Iterable[str]) -> frozenset[str]:
    """Of the names of local snapshots, the roots put aside that a later one outdoes: one such copy is enough to look into."""
    strays = [n for n in names if n.startswith(STRAY) and n.removeprefix(STRAY).isdecimal()]
    return frozenset(sorted(strays, key=lambda n: int(n.removeprefix(STRAY)))[:-1])
