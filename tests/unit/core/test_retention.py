"""What stays, what is merged, what goes: on bare points, at full length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal.core.model import Point
from fractal.core.moments import Moment
from fractal.core.retention import (
    DAY_MS,
    HOUR_MS,
    Keep,
    Merge,
    anchors,
    ends,
    next_merge,
    rank,
    retain,
    routes,
    way,
)

MONDAY = 1_780_272_000_000 - 1_780_272_000_000 % DAY_MS
KEEP = Keep(ticks=120, hourly=48, daily=30, weekly=52)


@dataclass(frozen=True)
class Piece:
    """A record, as far as retention looks at it."""

    point: Point
    level: int
    parent: Point | None
    stored: int


def p(number: int, epoch: int = 1) -> Point:
    return Point(epoch=epoch, number=number)


def ticks(count: int, size: int = 10, full: int = 1000) -> list[Piece]:
    return [Piece(p(n), 0, p(n - 1) if n > 1 else None, size if n > 1 else full) for n in range(1, count + 1)]


def line(count: int, step_ms: int, start_ms: int = MONDAY) -> list[Moment]:
    return [Moment(p(n), start_ms + (n - 1) * step_ms) for n in range(1, count + 1)]


def names(points: Iterable[Point]) -> list[int]:
    return sorted(q.number for q in points)


def test_an_end_is_the_last_of_its_hour_day_or_week() -> None:
    assert rank(MONDAY, MONDAY + HOUR_MS - 1) == 0
    assert rank(MONDAY + HOUR_MS - 1, MONDAY + HOUR_MS) == 1
    assert rank(MONDAY + DAY_MS - 1, MONDAY + DAY_MS) == 2
    assert rank(MONDAY - 1, MONDAY) == 3
    assert rank(MONDAY - 1, MONDAY + 400 * DAY_MS) == 3
    assert rank(MONDAY, MONDAY - 1) == 3, "a clock that is set back ends the hour too"
    assert names(ends(line(13, HOUR_MS // 4))) == [4, 8, 12]
    assert ends([]) == {}


def test_the_shortest_way_is_taken_also_from_what_is_held() -> None:
    pieces = [*ticks(6), Piece(p(5), 1, p(1), 20), Piece(p(6), 3, None, 900)]
    found = routes(pieces)
    assert [x.level for x in way(found, p(5))] == [0, 1]
    assert way(found, p(6)) == [Piece(p(6), 3, None, 900)]
    assert names(x.point for x in way(routes(pieces, {p(3)}), p(4))) == [4]
    assert p(9) not in found
    assert p(4) not in routes([x for x in pieces if x.point != p(3)])


def test_all_that_is_new_stays_then_ends_of_hours_days_and_weeks() -> None:
    step = 10 * 60_000
    count = 6 * 24 * 20
    kept = retain(
        line(count, step), ticks(count), Keep(ticks=3, hourly=4, daily=3, weekly=1), pins={p(7)}
    ).kept
    assert kept[p(count)] == "newest"
    assert kept[p(7)] == "pinned"
    last = count - 6
    assert [n for n in names(kept) if kept[p(n)] == "hourly"] == [last - 18, last - 12, last - 6, last]
    assert [n for n in names(kept) if kept[p(n)] == "daily"] == [144 * d for d in (17, 18, 19)]
    assert [n for n in names(kept) if kept[p(n)] == "weekly"] == [144 * 14]
    assert kept[p(144 * 7)] == "merge"


def test_what_a_kept_moment_builds_on_stays_without_being_kept() -> None:
    count = 60
    found = retain(line(count, HOUR_MS // 30), ticks(count), Keep(ticks=1, hourly=0, daily=0, weekly=0))
    assert names(q for q, _ in found.needed) == list(range(1, count + 1))
    assert found.let_go == ()
    merged = [*ticks(count), Piece(p(30), 1, p(1), 40)]
    found = retain(line(count, HOUR_MS // 30), merged, Keep(ticks=1, hourly=0, daily=0, weekly=0))
    assert names(q for q, _ in found.let_go) == list(range(2, 31))
    assert (p(30), 1) in found.needed


def test_bytes_are_capped_by_letting_the_oldest_go_but_no_pin_and_not_the_newest() -> None:
    count = 400
    pieces = [*ticks(count), *(Piece(p(n), 3, None, 1000) for n in range(100, 400, 100))]
    moments = line(count, HOUR_MS)
    open_end = retain(moments, pieces, KEEP)
    assert open_end.over == 0 and open_end.dropped == ()
    tight = retain(moments, pieces, Keep(ticks=5, hourly=48, daily=30, weekly=52, bytes=2100))
    assert tight.bytes <= 2100
    assert tight.over == 0
    assert tight.dropped == tuple(sorted(tight.dropped))
    assert max(tight.dropped) < min(tight.kept), "the oldest go first"
    pinned = retain(moments, pieces, Keep(ticks=5, hourly=4, daily=3, weekly=5, bytes=100), pins={p(3)})
    assert names(pinned.kept) == [3, 400]
    assert pinned.over == pinned.bytes - 100 > 0


def test_a_branch_stays_as_long_as_the_day_of_its_end() -> None:
    moments = line(20, DAY_MS)
    late = [Moment(Point(epoch=2, number=n), MONDAY + (19 + n) * DAY_MS) for n in range(1, 11)]
    side = [p(21), p(22)]
    keep = Keep(ticks=1, hourly=1, daily=5, weekly=1)
    pieces = [
        *ticks(22),
        *(
            Piece(m.point, 0, p(20) if m.point.number == 1 else Point(epoch=2, number=m.point.number - 1), 1)
            for m in late
        ),
    ]
    young = retain([*moments, *late[:3]], [x for x in pieces if x.point <= late[2].point], keep, sides=side)
    assert young.kept[p(22)] == "branch"
    assert p(21) not in young.kept and (p(21), 0) in young.needed
    old = retain([*moments, *late], pieces, keep, sides=side)
    assert p(22) not in old.kept
    assert (p(22), 0) in old.let_go


def test_a_clock_that_leaps_lets_nothing_go_that_the_counts_keep() -> None:
    keep = Keep(ticks=10, hourly=24, daily=7, weekly=4)
    count = 24 * 6
    straight = line(count, HOUR_MS // 6)
    leaps = [
        Moment(m.point, m.wall_ms + (10 * 365 * DAY_MS if 100 <= m.point.number < 120 else 0))
        for m in straight
    ]
    before = retain(straight[:100], ticks(100), keep).kept
    after = retain(leaps, ticks(count), keep).kept
    hours = [n for n in names(before) if before[p(n)] == "hourly"]
    assert all(p(n) in after for n in hours[2:]), "both leaps end an hour of their own"
    assert len(hours) > 10


# --- merges -----------------------------------------------------------------------------------------------------------


def due(pieces: list[Piece], count: int, step: int, held: Iterable[int], **options: object) -> Merge | None:
    return next_merge(line(count, step), pieces, {p(n) for n in held}, epoch=1, **options)  # type: ignore[arg-type]


def test_an_hour_is_merged_once_and_only_if_parent_and_end_are_here() -> None:
    step = HOUR_MS // 4
    assert due(ticks(4), 4, step, range(5)) is None, "the hour is not over"
    merge = due(ticks(9), 9, step, [1, 4, 8])
    assert merge == Merge(point=p(4), level=1, parent=p(1), limit=30, replaces=3)
    assert due(ticks(9), 9, step, [8]) is None
    done = [*ticks(9), Piece(p(4), 1, p(1), 25)]
    merge = due(done, 9, step, [1, 4, 8])
    assert merge == Merge(point=p(8), level=1, parent=p(4), limit=40, replaces=4)
    assert due(done, 9, step, [1, 4, 8], refused={(p(8), 1)}) is None
    assert due(done, 9, step, [4]) is None


def test_an_hour_with_one_tick_needs_no_merge() -> None:
    assert due(ticks(5), 5, HOUR_MS, range(6)) is None


def test_a_day_and_a_week_are_merged_and_a_chain_begins_again_when_it_is_heavy_or_old() -> None:
    step = DAY_MS // 2
    merge = due(ticks(3), 3, step, range(1, 4))
    assert merge is None, "one tick from the full one to the end of the day"
    merge = due(ticks(5, full=10_000), 5, step, range(1, 6))
    assert merge == Merge(point=p(4), level=2, parent=p(2), limit=20, replaces=2)
    heavy = [Piece(x.point, 0, x.parent, 400) if x.parent else x for x in ticks(7)]
    merge = due(heavy, 7, step, range(1, 8))
    assert merge == Merge(point=p(4), level=2, parent=p(2), limit=800, replaces=2)
    merge = due([*heavy, Piece(p(4), 2, p(2), 700)], 7, step, range(1, 8))
    assert merge == Merge(point=p(6), level=3, parent=None, limit=None, replaces=5)
    # Eight weeks of hardly any change: the merge of the eighth is a full one.
    weeks = 9
    light = ticks(7 * weeks + 1, size=1, full=10_000)
    chain: list[Piece] = list(light)
    found: list[Merge] = []
    while (merge := due(chain, len(light), DAY_MS, range(1, len(light) + 1))) is not None:
        found.append(merge)
        chain.append(Piece(merge.point, merge.level, merge.parent, merge.limit or 10_000))
    assert [m.parent is None for m in found].count(True) == 1
    assert found[-1].point == p(7 * 9) or found[-2].parent is None


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(-3, 300), min_size=2, max_size=120),
    sizes=st.lists(st.integers(1, 100), min_size=120, max_size=120),
    keep=st.builds(
        Keep,
        ticks=st.integers(1, 20),
        hourly=st.integers(0, 10),
        daily=st.integers(0, 5),
        weekly=st.integers(0, 5),
        bytes=st.sampled_from([0, 0, 500, 3000]),
    ),
)
def test_every_kept_moment_can_be_reached_by_what_is_needed(
    steps: list[int], sizes: list[int], keep: Keep
) -> None:
    """Whatever the clock did, ticks and merges are let go only when no kept moment needs them, again and again."""
    wall, moments, pieces = MONDAY, [], list[Piece]()
    for number, step in enumerate(steps, 1):
        wall += step * 600_000
        moments.append(Moment(p(number), wall))
        reached = routes(pieces)
        parent = p(number - 1) if p(number - 1) in reached else None
        pieces.append(Piece(p(number), 0, parent, sizes[number - 1] if parent else 500))
        live = [m for m in moments if m.point in routes(pieces)]
        while (merge := next_merge(live, pieces, {m.point for m in live}, epoch=1)) is not None:
            pieces.append(Piece(merge.point, merge.level, merge.parent, merge.limit or 500))
        found = retain(live, pieces, keep)
        left = [x for x in pieces if (x.point, x.level) in found.needed]
        assert set(found.kept) <= set(routes(left)), "what is needed is enough"
        assert found.kept[p(number)] == "newest"
        fulls = {x.point for x in pieces if x.parent is None}
        assert keep.bytes or anchors(live, fulls) <= set(found.kept)
        pieces = left


def test_twelve_weeks_stay_bounded() -> None:
    """The bound on records, bytes and the length of a way that the rules promise. The year on real formats is in `tests/soak`."""
    keep, full = Keep(ticks=12, hourly=48, daily=30, weekly=6), 50_000
    moments, pieces = list[Moment](), list[Piece]()
    longest = most = heaviest = fulls = 0
    for number in range(1, 12 * 7 * 24 * 6):
        moments.append(Moment(p(number), MONDAY + number * 600_000))
        pieces.append(Piece(p(number), 0, p(number - 1) if number > 1 else None, 30 if number > 1 else full))
        if number % 6 != 2:
            continue
        here = anchors(moments, {x.point for x in pieces if x.parent is None})
        while (merge := next_merge(moments, pieces, here, epoch=1)) is not None:
            fulls += merge.parent is None
            size = full if merge.limit is None else merge.limit * 9 // 10
            pieces.append(Piece(merge.point, merge.level, merge.parent, size))
        found = retain(moments, pieces, keep)
        pieces = [x for x in pieces if (x.point, x.level) in found.needed]
        there = routes(pieces)
        moments = [m for m in moments if m.point in there]
        longest = max(longest, *(r.hops for r in there.values()))
        most, heaviest = max(most, len(pieces)), max(heaviest, found.bytes)
    assert longest <= 1 + 8 + 6 + 23 + 6, "full, weeks, days, hours, ticks"
    assert most <= (12 + 6) + (48 + 23) + (30 + 6) + (6 + 8) + 2, (
        "what is kept, and a way to the oldest of each"
    )
    assert heaviest < (6 + 30 / 7 + 2) * 1.5 * full
    assert 1 <= fulls <= 12


@pytest.mark.parametrize("keep", [Keep(ticks=1, hourly=0, daily=0, weekly=0)])
def test_an_empty_archive_is_no_problem(keep: Keep) -> None:
    found = retain([], list[Piece](), keep)
    assert (found.kept, found.let_go, found.bytes) == ({}, (), 0)
    assert next_merge([], list[Piece](), set(), epoch=1) is None
