"""What stays on a device beside the archive."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fractal.core.keeping import TRIES, outdone_strays, outrun, to_store


def test_of_roots_put_aside_the_newest_by_number_stays() -> None:
    names = ["stray-9", "t-3-10", "stray-10", "before-restore-4", "stray-2", "stray-x"]
    assert outdone_strays(names) == {"stray-9", "stray-2"}
    assert outdone_strays(["stray-4"]) == frozenset()
    assert outdone_strays([]) == frozenset()


@dataclass(frozen=True)
class Tick:
    name: str
    epoch: int


def queue(*epochs: int) -> list[Tick]:
    """Snapshots of these epochs, oldest first, named after their places."""
    return [Tick(str(n), epoch) for n, epoch in enumerate(epochs)]


def names(found: tuple[Tick, ...]) -> list[str]:
    return [q.name for q in found]


def test_the_oldest_comes_first_and_alone() -> None:
    assert names(to_store(queue(4, 4, 4), {})) == ["0"]
    assert names(to_store(queue(4, 4, 4), {"0": TRIES - 1})) == ["0"]
    assert to_store([], {}) == ()


def test_after_one_that_failed_too_often_the_next_is_tried_in_the_same_go() -> None:
    assert names(to_store(queue(4, 4, 4), {"0": TRIES})) == ["0", "1"]
    assert names(to_store(queue(4, 4, 4), {"0": TRIES, "1": TRIES})) == ["0", "2"]
    assert names(to_store(queue(4, 4), {"0": TRIES, "1": TRIES})) == ["0"]


def test_a_replaced_epoch_is_in_no_other_ones_way() -> None:
    assert names(to_store(queue(3, 4), {"0": TRIES})) == ["1"]
    assert names(to_store(queue(3, 4, 4), {"0": TRIES, "1": TRIES})) == ["1", "2"]
    assert names(to_store(queue(3, 3, 4), {"2": TRIES})) == ["0"]


def test_what_is_older_than_what_was_stored_is_given_up_in_its_own_epoch_only() -> None:
    assert names(outrun(queue(3, 4, 3, 4, 4), "3")) == ["1"]
    assert outrun(queue(3, 4), "0") == ()
    assert outrun(queue(3, 4), "gone") == ()


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=12))
def test_all_that_can_be_read_is_stored_in_order_whatever_cannot(drawn: list[tuple[int, bool]]) -> None:
    waiting = queue(*(epoch for epoch, _ in drawn))
    bad = {str(n) for n, (_, readable) in enumerate(drawn) if not readable}
    everything, stored, failures, goes = list(waiting), list[Tick](), dict[str, int](), 0
    while any(q.name not in bad for q in waiting):
        goes += 1
        assert goes <= len(drawn) * (TRIES + 1), "something waits for ever"
        for tried in to_store(waiting, failures):
            if tried.name not in bad:
                gone = {tried, *outrun(waiting, tried.name)}
                stored.append(tried)
                waiting = [q for q in waiting if q not in gone]
                break
            failures[tried.name] = failures.get(tried.name, 0) + 1
    for epoch in (1, 2, 3):
        good = [q for q in everything if q.epoch == epoch and q.name not in bad]
        assert [q for q in stored if q.epoch == epoch] == good
