"""Moments as people write them, turned into points of an app's timeline. Pure: the present time is passed in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from fractal.api.errors import InvalidInput, NotFound
from fractal.core.model import Point

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_POINT = re.compile(r"([1-9]\d{0,8})\.([1-9]\d{0,8})")
_AGE = re.compile(
    r"(\d{1,9}|an?)\s*(s|m|h|d|w|sec(?:ond)?s?|min(?:ute)?s?|hours?|days?|weeks?)(?:\s+ago)?", re.IGNORECASE
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CLOCK = re.compile(
    rf"(?:(today|yesterday|{'|'.join(_DAYS)})(?:[\s,]+(?:at\s+)?|$))?(?:(\d{{1,2}}):(\d\d)(?::(\d\d))?)?",
    re.IGNORECASE,
)


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
    """A time as people write it, as wall-clock milliseconds.

    An age (`90s`, `10m`, `2h`, `3d`, `1w`, `2 hours ago`, `a day ago`), a day and a time of the clock (`yesterday 10:00`,
    `monday 9:30`, `today 08:00`, `14:15`: the last time that it was so), or an ISO time, in `zone` unless it has an offset.
    Raises InvalidInput.
    """
    text = text.strip()
    if text.lower() == "now":
        return now_ms
    if age := _AGE.fullmatch(text):
        count = int(age[1]) if age[1].isdecimal() else 1
        return now_ms - count * _UNITS[age[2][0].lower()]
    try:
        if text and (clock := _CLOCK.fullmatch(text)):
            return _by_the_clock(clock, datetime.fromtimestamp(now_ms / 1000, zone))
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            when = when.replace(tzinfo=zone)
        return int(when.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(
            f"{text[:60]!r} is no moment: write EPOCH.NUMBER, a time such as 2026-05-01T12:00 or `yesterday 10:00`, "
            "or an age such as 2h or `2 hours ago`"
        ) from error


def _by_the_clock(match: re.Match[str], now: datetime) -> int:
    """The last time that it was that time on that day; without a time of the clock, the time of now."""
    day = (match[1] or "").lower()
    when = now
    if match[2]:
        when = now.replace(hour=int(match[2]), minute=int(match[3]), second=int(match[4] or 0), microsecond=0)
    if day == "yesterday":
        when -= timedelta(days=1)
    elif day in _DAYS:
        when -= timedelta(days=(now.weekday() - _DAYS.index(day)) % 7)
        if when > now or (not match[2] and when == now):
            when -= timedelta(days=7)
    elif not day and when > now:
        when -= timedelta(days=1)
    return int(when.timestamp() * 1000)


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
