"""Which moments of an app stay, what is merged and what may go: a pure reading of records, pins and a policy.

Calendar labels only say where an hour, a day or a week *ends* along the line of moments; how much stays is counted. So a
clock that is wrong by a day or a decade moves borders, and lets nothing go that the counts keep.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fractal.core.model import Point
from fractal.core.moments import Moment

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FULL_AFTER = 8
"""Weeks after which a chain begins again with a full record, however little changed."""
ANCHORS = 2
"""Newest ends of an hour, day and week that stay whatever the policy says: the next merge builds on them."""

Slot = tuple[Point, int]
"""Names a record: the moment that it leads to, and its level."""


class Piece(Protocol):
    """A stored record: it leads from `parent` (None: from nothing) to `point`."""

    @property
    def point(self) -> Point:
        """The moment that it leads to."""

    @property
    def level(self) -> int:
        """0: a tick; 1 to 3: a merge of an hour, a day, a week or everything."""

    @property
    def parent(self) -> Point | None:
        """The moment that must be there before."""

    @property
    def stored(self) -> int:
        """Bytes in the store."""


P = TypeVar("P", bound=Piece)


@dataclass(frozen=True, slots=True)
class Route(Generic[P]):
    """The shortest way to a moment: how many records, how many bytes, and which is the last."""

    hops: int
    bytes: int
    last: P


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How much stays: counted, newest first."""

    ticks: int
    """Newest moments of any kind."""
    hourly: int
    """Last moments of an hour; likewise days and weeks."""
    daily: int
    weekly: int
    bytes: int = 0
    """Stored bytes that the kept moments may need together; 0: any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """What a policy keeps of an archive as it stands."""

    kept: Mapping[Point, str]
    """Moment -> why it stays."""
    needed: frozenset[Slot]
    """Records that a way to a kept moment takes."""
    let_go: tuple[Slot, ...]
    """The other records, oldest first."""
    bytes: int
    """Of what is needed."""
    dropped: tuple[Point, ...]
    """Moments that would be kept if there were room."""
    over: int
    """Bytes above the limit that nothing can be dropped for: pins and the newest moment stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """A record to be made of what is on the device: from `parent` to `point` in one step."""

    point: Point
    level: int
    parent: Point | None
    """None: a full one."""
    limit: int | None
    """Sealed bytes of what it replaces: it is given up if it would be larger. None: any size."""
    replaces: int
    """How many records it stands in for."""


def rank(wall_ms: int, next_ms: int) -> int:
    """1, 2 or 3 if a moment is the last of its hour, day or week, the next one being at `next_ms`; else 0."""
    if wall_ms // HOUR_MS == next_ms // HOUR_MS:
        return 0
    if wall_ms // DAY_MS == next_ms // DAY_MS:
        return 1
    return 2 if _week(wall_ms) == _week(next_ms) else 3


def ends(line: Sequence[Moment]) -> dict[Point, int]:
    """The moments of a line that end an hour, a day or a week, oldest first. The newest moment never does yet."""
    pairs = itertools.pairwise(line)
    return {a.point: found for a, b in pairs if (found := rank(a.wall_ms, b.wall_ms))}


def anchors(line: Sequence[Moment], fulls: Collection[Point] = ()) -> set[Point]:
    """What a device keeps as parents of coming merges: the newest ends of each kind, and the moments held in full."""
    marks = {**ends(line), **dict.fromkeys((m.point for m in line if m.point in fulls), 3)}
    order = [(p, marks[p]) for p in sorted(marks)]
    return {p for level in (1, 2, 3) for p, _ in [m for m in order if m[1] >= level][-ANCHORS:]}


def routes(pieces: Iterable[P], held: Collection[Point] = frozenset()) -> dict[Point, Route[P]]:
    """The shortest way to every moment that can be reached, from nothing or from what is `held` already.

    Fewest records first, then fewest bytes. Parents are older than what builds on them, so one pass does it.
    """
    best: dict[Point, Route[P]] = {}
    for piece in sorted(pieces, key=lambda p: (p.point.epoch, p.point.number)):
        if piece.point in held:
            continue
        if piece.parent is None or piece.parent in held:
            route = Route(1, piece.stored, piece)
        elif (before := best.get(piece.parent)) is not None:
            route = Route(before.hops + 1, before.bytes + piece.stored, piece)
        else:
            continue
        known = best.get(piece.point)
        if known is None or (route.hops, route.bytes) < (known.hops, known.bytes):
            best[piece.point] = route
    return best


def way(found: Mapping[Point, Route[P]], point: Point) -> list[P]:
    """The records of the way to a moment that is in `found`, in the order in which they are applied."""
    result = [found[point].last]
    while (parent := result[-1].parent) is not None and parent in found:
        result.append(found[parent].last)
    return result[::-1]


# --- what stays -----------------------------------------------------------------------------------------------------


def retain(
    line: Sequence[Moment],
    pieces: Collection[P],
    keep: Keep,
    *,
    pins: Collection[Point] = (),
    sides: Collection[Point] = (),
) -> Retained:
    """What stays of `pieces`, for the main line `line` (oldest first) and `sides`, moments off it."""
    found = routes(pieces)
    wanted = {p: why for p, why in _wanted(line, keep, pins, sides, _fulls(pieces)).items() if p in found}
    dropped: list[Point] = []
    needed, size = _needed(found, wanted)
    if keep.bytes:
        firm = {p for p, why in wanted.items() if why in ("newest", "pinned")}
        for point in sorted(p for p in wanted if p not in firm):
            if size <= keep.bytes:
                break
            del wanted[point]
            dropped.append(point)
            needed, size = _needed(found, wanted)
    slots = {(p.point, p.level) for p in pieces}
    return Retained(
        kept=wanted,
        needed=needed,
        let_go=tuple(sorted(slots - needed)),
        bytes=size,
        dropped=tuple(dropped),
        over=max(0, size - keep.bytes) if keep.bytes else 0,
    )


def _wanted(
    line: Sequence[Moment],
    keep: Keep,
    pins: Collection[Point],
    sides: Collection[Point],
    fulls: Collection[Point],
) -> dict[Point, str]:
    """Moments that the rules name, each with the strongest reason."""
    marks = ends(line)
    hours, days, weeks = ([p for p in marks if marks[p] >= level] for level in (1, 2, 3))
    daily = last(days, keep.daily)
    wanted: dict[Point, str] = {}
    # A replaced owner's work stays as long as the day on which it was replaced.
    horizon = daily[0] if len(daily) == keep.daily and daily else None
    for epoch in {p.epoch for p in sides}:
        newest = max(p for p in sides if p.epoch == epoch)
        if horizon is None or newest >= horizon:
            wanted[newest] = "branch"
    wanted.update(dict.fromkeys(anchors(line, fulls), "merge"))
    wanted.update(dict.fromkeys((m.point for m in last(line, keep.ticks)), "recent"))
    wanted.update(dict.fromkeys(last(hours, keep.hourly), "hourly"))
    wanted.update(dict.fromkeys(daily, "daily"))
    wanted.update(dict.fromkeys(last(weeks, keep.weekly), "weekly"))
    if line:
        wanted[line[-1].point] = "newest"
    wanted.update(dict.fromkeys(pins, "pinned"))
    return wanted


def _needed(found: Mapping[Point, Route[P]], kept: Iterable[Point]) -> tuple[frozenset[Slot], int]:
    needed: dict[Slot, int] = {}
    for point in kept:
        last: P | None = found[point].last
        while last is not None and (last.point, last.level) not in needed:
            needed[last.point, last.level] = last.stored
            last = found[last.parent].last if last.parent is not None else None
    return frozenset(needed), sum(needed.values())


# --- what is merged ---------------------------------------------------------------------------------------------------


def next_merge(
    line: Sequence[Moment],
    pieces: Collection[P],
    held: Collection[Point],
    *,
    epoch: int,
    refused: Collection[Slot] = (),
) -> Merge | None:
    """The oldest merge that is due and possible: of a moment of the own `epoch` that is held here, as its parent is.

    Not again what was `refused`: it came out larger than what it would replace.
    """
    marks = ends(line)
    fulls = _fulls(pieces)
    levels: dict[Point, int] = {}
    for piece in pieces:
        levels[piece.point] = max(levels.get(piece.point, 0), piece.level)
    open_ends = [
        (point, level)
        for point, level in marks.items()
        if point.epoch == epoch and point in held and point not in fulls and levels.get(point, 0) < level
    ]
    found = routes(pieces) if open_ends else {}
    for point, level in open_ends:
        parents = [p for p in found if p < point and p in held and (p in fulls or marks.get(p, 0) >= level)]
        merge = _merge(point, level, max(parents, default=None), marks, pieces, found)
        if merge is not None and (point, merge.level) not in refused:
            return merge
    return None


def _merge(
    point: Point,
    level: int,
    parent: Point | None,
    marks: Mapping[Point, int],
    pieces: Collection[P],
    found: Mapping[Point, Route[P]],
) -> Merge | None:
    if (
        point not in found
        or (level == 3 and parent is None)
        or _wants_full(point, level, parent, marks, found)
    ):
        hops = found[point].hops if point in found else 0
        return Merge(point=point, level=3, parent=None, limit=None, replaces=hops)
    if parent is None:
        return None
    there = routes(pieces, {parent})
    # A moment off the way from `parent` has a way of its own that begins with nothing: that is not what is replaced.
    if there[point].hops < 2 or way(there, point)[0].parent != parent:
        return None
    return Merge(
        point=point, level=level, parent=parent, limit=there[point].bytes, replaces=there[point].hops
    )


def _wants_full(
    point: Point,
    level: int,
    parent: Point | None,
    marks: Mapping[Point, int],
    found: Mapping[Point, Route[P]],
) -> bool:
    """Whether what builds on the last full record weighs more than half of it, or is old."""
    if level < 2:
        return False
    full = way(found, point)[0]
    weeks = sum(1 for p, mark in marks.items() if mark == 3 and full.point < p <= point)
    heavy = parent is not None and found[parent].bytes - full.stored > full.stored / 2
    return heavy or weeks >= FULL_AFTER


def _fulls(pieces: Iterable[P]) -> set[Point]:
    return {p.point for p in pieces if p.parent is None}


def _week(wall_ms: int) -> int:
    """Weeks begin on Mondays, UTC; 1970 began on a Thursday."""
    return (wall_ms // DAY_MS + 3) // 7


T = TypeVar("T")


def last(items: Sequence[T], count: int) -> Sequence[T]:
    """The last `count` of them, also none."""
    return items[-count:] if count else items[:0]
