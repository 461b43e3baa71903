"""Which snapshots form an app's main line, which are branches: a pure reading of records and bases.

Every epoch starts from its base, a point of an earlier epoch (or from nothing). The main line of the highest epoch goes back
along bases; records beyond the point where a later epoch branched off are kept as branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

from fractal.core.model import Point

EMPTY = Point(epoch=0, number=0)
"""The beginning of every app: no data."""
in_order = attrgetter("epoch", "number")
"""What points are sorted by: as they are compared, and quicker."""


def tip(points: Iterable[Point], bases: Mapping[int, Point], epoch: int) -> Point:
    """The newest point of the main line that ends with `epoch`; EMPTY if there is none.

    An epoch without records ends where it began; one without a base either (its taker died before choosing) is passed
    over, so that the next one applies the same rule.
    """
    newest: dict[int, int] = {}
    for point in points:
        newest[point.epoch] = max(newest.get(point.epoch, 0), point.number)
    while epoch > 0:
        if number := newest.get(epoch, 0):
            return Point(epoch=epoch, number=number)
        base = bases.get(epoch)
        if base is not None:
            return base
        epoch -= 1
    return EMPTY


def main_line(points: Iterable[Point], bases: Mapping[int, Point], epoch: int) -> tuple[Point, ...]:
    """Points of the main line that ends with `epoch`, oldest first."""
    known = sorted(set(points), key=in_order)
    line: list[Point] = []
    end = tip(known, bases, epoch)
    while end.number:
        line.extend(reversed([p for p in known if p.epoch == end.epoch and p.number <= end.number]))
        base = bases.get(end.epoch)
        # A base lies in an earlier epoch; anything else was forged and would make this loop for ever.
        end = base if base is not None and base.epoch < end.epoch else EMPTY
    return tuple(reversed(line))


def on_line(point: Point, bases: Mapping[int, Point], epoch: int) -> bool:
    """Whether a point lies on the main line that ends with `epoch`, if it exists at all: also one that was let go."""
    end = None
    while epoch > point.epoch:
        base = bases.get(epoch)
        # An epoch whose taker died before it chose a base has no records: it is passed over.
        epoch, end = (epoch - 1, None) if base is None else (base.epoch, base.number)
    return epoch == point.epoch > 0 and (end is None or point.number <= end)


def branches(points: Iterable[Point], bases: Mapping[int, Point], epoch: int) -> tuple[Point, ...]:
    """Points that are on no part of the main line, oldest first: what replaced owners still wrote."""
    known = frozenset(points)
    return tuple(sorted(known - frozenset(main_line(known, bases, epoch))))
