"""The layout of stores that keep objects as files: every key has one place, and every place one key or none."""

from __future__ import annotations

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from fractal.api.errors import InvalidInput
from fractal.api.names import check_key
from fractal.api.store_files import first_folders, may_hold, object_key, object_names


def is_key(text: str) -> bool:
    try:
        check_key(text)
    except InvalidInput:
        return False
    return True


PARTS = st.one_of(
    st.text("ab.-_0", min_size=1, max_size=6),
    st.integers(195, 399).map(lambda length: "x" * length),
    st.integers(195, 205).map(lambda length: "." * length),
)
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join).filter(is_key)
NAMES = st.text("ab.=+x/\n", max_size=8) | st.sampled_from(["x" * 200 + "+", "+" + "x" * 3 + "=", "..", "."])


@given(KEYS)
def test_a_key_comes_back_from_its_place(key: str) -> None:
    folders, file = object_names(key.split("/"))
    assert object_key(folders, file) == key
    for name in (*folders, file):
        assert name not in {"", ".", ".."}
        assert len(name) <= 255
        assert "/" not in name


@given(KEYS, KEYS)
def test_no_two_keys_share_a_place_or_block_each_other(one: str, two: str) -> None:
    places = [
        PurePosixPath(*folders, file) for folders, file in map(object_names, (one.split("/"), two.split("/")))
    ]
    assert (places[0] == places[1]) == (one == two)
    assert places[0] not in places[1].parents


@given(st.lists(NAMES, max_size=4), NAMES)
def test_what_is_listed_is_where_it_would_be_looked_for(folders: list[str], file: str) -> None:
    key = object_key(folders, file)
    if key is not None:
        assert object_names(check_key(key)) == (folders, file)


@given(KEYS, st.integers(0, 400))
def test_a_walk_finds_every_key_with_the_prefix(key: str, length: int) -> None:
    prefix = key[:length]
    start = first_folders(prefix)
    assert start is not None
    folders, _ = object_names(key.split("/"))
    assert folders[: len(start)] == start
    for depth in range(len(start) + 1, len(folders) + 1):
        assert may_hold(folders[:depth], prefix)


@given(st.text("ab./", max_size=8))
def test_no_walk_starts_for_a_prefix_of_no_key(prefix: str) -> None:
    start = first_folders(prefix)
    if start is None:
        assert not is_key(prefix + "a")
