"""Main line and branches of an app's archive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fractal.core.chain import EMPTY, branches, main_line, tip
from fractal.core.model import Point


def p(epoch: int, number: int) -> Point:
    return Point(epoch=epoch, number=number)


LINE = [p(1, 1), p(1, 2), p(1, 3), p(2, 1), p(2, 2)]
BASES = {1: EMPTY, 2: p(1, 2)}


def test_the_tip_is_the_newest_record_of_the_highest_epoch_that_has_one() -> None:
    assert tip(LINE, BASES, 2) == p(2, 2)
    assert tip(LINE, BASES, 1) == p(1, 3)


def test_an_epoch_without_records_ends_at_its_base() -> None:
    assert tip(LINE, {**BASES, 3: p(2, 1)}, 3) == p(2, 1)


def test_an_epoch_whose_taker_died_before_its_base_is_passed_over() -> None:
    assert tip(LINE, BASES, 5) == p(2, 2)


def test_nothing_at_all() -> None:
    assert tip([], {}, 4) == EMPTY
    assert main_line([], {}, 4) == ()


def test_what_the_replaced_owner_still_wrote_is_a_branch() -> None:
    assert main_line(LINE, BASES, 2) == (p(1, 1), p(1, 2), p(2, 1), p(2, 2))
    assert branches(LINE, BASES, 2) == (p(1, 3),)


points = st.builds(p, st.integers(1, 5), st.integers(1, 5))


@given(
    st.lists(points),
    st.dictionaries(st.integers(1, 6), st.one_of(st.just(EMPTY), points)),
    st.integers(0, 6),
)
def test_hostile_bases_never_hang_and_nothing_is_dropped(
    known: list[Point], bases: dict[int, Point], epoch: int
) -> None:
    line, side = main_line(known, bases, epoch), branches(known, bases, epoch)
    assert set(line) | set(side) == set(known)
    assert not set(line) & set(side)
    assert list(line) == sorted(line)
