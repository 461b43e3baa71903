"""What stays on a device beside the archive."""

from __future__ import annotations

from fractal.core.keeping import outdone_strays


def test_of_roots_put_aside_the_newest_by_number_stays() -> None:
    names = ["stray-9", "t-3-10", "stray-10", "before-restore-4", "stray-2", "stray-x"]
    assert outdone_strays(names) == {"stray-9", "stray-2"}
    assert outdone_strays(["stray-4"]) == frozenset()
    assert outdone_strays([]) == frozenset()
