"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC

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
