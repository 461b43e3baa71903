"""Of two looks at the end of a log, what the second one has beyond the first."""

from __future__ import annotations

import pytest

from fractal.agent.control.following import beyond, by_service


@pytest.mark.parametrize(
    ("before", "now", "fresh"),
    [
        ("abc", "abc", ""),
        ("abc", "abcd", "d"),
        ("abc", "bcde", "de"),
        ("abc", "xyz", "xyz"),
        ("", "ab", "ab"),
        ("ab", "", ""),
        ("aab", "aabaab", "aab"),
    ],
)
def test_only_what_is_new_is_shown(before: str, now: str, fresh: str) -> None:
    assert list(beyond(list(before), list(now))) == list(fresh)


def test_services_are_told_apart() -> None:
    records = [{"service": "a", "line": "1"}, {"service": "b", "line": "1"}, {"service": "a", "line": "2"}]
    assert by_service(records) == {"a": ["1", "2"], "b": ["1"]}
