"""Moments as people write them, turned into points of an app's timeline. Pure: the present time is passed in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, tzinfo

from fractal.api.errors import InvalidInput, NotFound
from fractal.core.model import Point

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_POINT = re.compile(r"([1-9]\d{0,8})\.([1-9]\d{0,8})")
_AGE = re.compile(r"(\d{1,9})\s*([smhdw])(?:\s+ago)?")


@dataclass(frozen=True, slots=True)
class Moment:
    """A kept moment of an app: its point and the wall-clock label of its snapshot."""

    point: Point
    wall_ms: int


def parse_point(text: str) -> Point | None:
    """`EPOCH.NUMBER` as a point; None for anything else."""
    match = _POINT.fullmatch(text.strip())
    return Point(epoch=int(match[1]), number=int(match[2])) if match else None


def parse_time(text: str, now_ms: int, zone: tzinfo) -> int:
    """An age (`90s`, `10m`, `2h`, `3d`, `1w`, with or without "ago") or an ISO time as wall-clock milliseconds.

    A time without an offset is in `zone`. Raises InvalidInput.
    """
    text = text.strip()
    if age := _AGE.fullmatch(text):
        return now_ms - int(age[1]) * _UNITS[age[2]]
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            when = when.replace(tzinfo=zone)
        return int(when.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{text[:60]!r} is no moment: write EPOCH.NUMBER, a time such as 2026-05-01T12:00, or an age such as 2h"
        ) from error


def find(moments: Iterable[Moment], line: Iterable[Point], wanted: str, now_ms: int, zone: tzinfo) -> Moment:
    """The moment that `wanted` means; "" the newest of the main line.

    A point may lie on a branch; a time or an age means the newest snapshot of the main line that is not younger.
    Raises InvalidInput, NotFound naming the nearest moments.
    """
    by_point = {m.point: m for m in moments}
    main = [by_point[p] for p in line if p in by_point]
    if not by_point:
        raise NotFound("it has no snapshot yet")
    point = parse_point(wanted)
    if point is not None:
        if point in by_point:
            return by_point[point]
        near = ", ".join(f"{p.epoch}.{p.number}" for p in sorted(by_point)[-5:])
        raise NotFound(f"there is no snapshot {wanted}; the newest are {near}")
    if not wanted:
        return main[-1] if main else by_point[max(by_point)]
    at = parse_time(wanted, now_ms, zone)
    older = [m for m in main if m.wall_ms <= at]
    if not older:
        raise NotFound(
            f"no snapshot is that old; the oldest is {main[0].point.epoch}.{main[0].point.number}"
            if main
            else "its main line has no snapshot yet"
        )
    return max(older, key=lambda m: (m.point, m.wall_ms))
