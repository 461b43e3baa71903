"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal.api.errors import FractalError, InvalidInput, NotFound
from fractal.core.model import Point
from fractal.core.moments import Moment, find, parse_time

NOW = 1_780_000_000_000
LINE = [Point(epoch=1, number=n) for n in (1, 2, 3)]
SIDE = Point(epoch=1, number=4)
MOMENTS = [Moment(p, NOW - 60_000 * (5 - i)) for i, p in enumerate([*LINE, SIDE])]


def at(wanted: str) -> Point:
    return find(MOMENTS, LINE, wanted, NOW, UTC).point


@pytest.mark.parametrize(
    ("wanted", "point"),
    [
        ("", LINE[2]),
        ("1.2", LINE[1]),
        ("1.4", SIDE),
        ("200s", LINE[1]),
        ("4m ago", LINE[1]),
        ("1 m", LINE[2]),
    ],
)
def test_found(wanted: str, point: Point) -> None:
    assert at(wanted) == point


@pytest.mark.parametrize("wanted", ["9.9", "2d", "1999-01-01"])
def test_not_there(wanted: str) -> None:
    with pytest.raises(NotFound):
        at(wanted)


def test_iso_times_are_local_unless_they_say_otherwise() -> None:
    assert parse_time("2026-05-01T12:00+02:00", NOW, UTC) == parse_time("2026-05-01T10:00", NOW, UTC)


@given(st.text(max_size=40))
def test_any_text_is_a_moment_or_a_clear_error(wanted: str) -> None:
    try:
        at(wanted)
    except (InvalidInput, NotFound) as error:
        assert isinstance(error, FractalError)
        assert str(error)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("now", "2026-05-28T20:26:40"),
        ("2 hours ago", "2026-05-28T18:26:40"),
        ("an hour ago", "2026-05-28T19:26:40"),
        ("90 minutes", "2026-05-28T18:56:40"),
        ("A Day ago", "2026-05-27T20:26:40"),
        ("3 weeks ago", "2026-05-07T20:26:40"),
        ("yesterday 10:00", "2026-05-27T10:00:00"),
        ("Yesterday at 9:05:30", "2026-05-27T09:05:30"),
        ("yesterday", "2026-05-27T20:26:40"),
        ("today 08:00", "2026-05-28T08:00:00"),
        ("08:00", "2026-05-28T08:00:00"),
        ("23:00", "2026-05-27T23:00:00"),
        ("monday 10:00", "2026-05-25T10:00:00"),
        ("thursday 10:00", "2026-05-28T10:00:00"),
        ("thursday, 23:00", "2026-05-21T23:00:00"),
        ("friday", "2026-05-22T20:26:40"),
        ("2026-05-01 12:00", "2026-05-01T12:00:00"),
        ("2026-05-01", "2026-05-01T00:00:00"),
        ("2026-05-01T12:00+02:00", "2026-05-01T10:00:00"),
    ],
)
def test_times_as_people_write_them(text: str, meant: str) -> None:
    now = int(datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC).timestamp() * 1000)  # a Thursday
    assert datetime.fromtimestamp(parse_time(text, now, UTC) / 1000, UTC).isoformat()[:19] == meant


@pytest.mark.parametrize(
    "text", ["", "ago", "yesterday 25:00", "tomorrow", "10:61", "yesterdaynoon", "-2h", "2 years"]
)
def test_no_times(text: str) -> None:
    with pytest.raises(InvalidInput, match="no moment"):
        parse_time(text, NOW, UTC)
