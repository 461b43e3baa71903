"""Whatever bytes a `portable/1` stream holds, the receiver refuses them or stays inside its own folder."""

from __future__ import annotations

import hashlib
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fractal.api.errors import Corrupt
from fractal.builtin.copy.portable import MAGIC, MAX_BODY, Decoder, Record, encode
from fractal.builtin.copy.receive import Receiver
from fractal.builtin.copy.send import stream
from fractal.builtin.copy.survey import fingerprint, survey
from fractal.builtin.copy.tree import Meta, opened
from fractal.testing.trees import Tree, tree

NO_STOP = threading.Event()
META = Meta(0o644, 10**18, 0, 0)
FOLDER = Meta(0o755, 10**18, 0, 0)

names = st.sampled_from(
    [
        b"a",
        b"b",
        b"link",
        b"a/b",
        b"link/x",
        b"link/../x",
        b"..",
        b"../outside/f",
        b"/etc/x",
        b"",
        b".",
        b"a//b",
        b"a/.",
        b"b/c",
    ]
)
metas = st.builds(
    Meta,
    st.integers(0, 2**16 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
numbers = st.one_of(st.integers(0, 200_000), st.integers(0, 2**64 - 1))
records = st.one_of(
    st.builds(Record, st.just("X"), names),
    st.builds(Record, st.just("D"), names, metas),
    st.builds(Record, st.sampled_from("FP"), names, metas, numbers),
    st.builds(Record, st.just("M"), names, metas),
    st.builds(Record, st.just("W"), number=numbers, data=st.binary(max_size=100)),
    st.builds(
        Record,
        st.just("A"),
        st.sampled_from([b"user.a", b"security.x", b"user.", b"trusted.t"]),
        data=st.binary(max_size=20),
    ),
    st.builds(
        Record,
        st.just("L"),
        names,
        metas,
        data=st.sampled_from([b"../outside", b"/", b"..", b"a", b"", b"/etc/passwd", b"x\0y"]),
    ),
    st.builds(Record, st.just("H"), names, data=names),
)


def sealed(body: list[Record], start: Record) -> bytes:
    """A stream with a right start and end around any records."""
    data = MAGIC + encode(start) + b"".join(encode(record) for record in body)
    return data + encode(
        Record("E", number=1 + len(body), data=hashlib.blake2b(data, digest_size=32).digest())
    )


class World:
    """A folder to receive into, a parent to start from, and the outside, which nothing may touch."""

    def __init__(self, top: Path) -> None:
        self.outside, self.parent, self.made = top / "outside", top / "parent", top / "made"
        for folder in (self.outside, self.parent, self.made):
            folder.mkdir()
        (self.outside / "f").write_bytes(b"outside")
        (self.parent / "a").write_bytes(b"parent's a")
        (self.parent / "b").mkdir()
        (self.parent / "b" / "c").write_bytes(b"parent's c" * 20_000)
        (self.parent / "link").symlink_to(self.outside)
        self.before = self.watched()

    def watched(self) -> tuple[Tree, Tree]:
        return tree(self.outside), tree(self.parent)

    def receive(self, data: bytes, *, incremental: bool, step: int = 65536) -> None:
        parent = self.parent if incremental else None
        with Receiver.over(self.made, parent, NO_STOP) as receiver:
            for at in range(0, len(data), step):
                receiver.feed(data[at : at + step])
            receiver.finish()

    def start(self, *, incremental: bool) -> Record:
        if not incremental:
            return Record("S", data=bytes(32))
        with opened(self.parent) as folder:
            return Record("S", number=1, data=fingerprint(survey(folder, NO_STOP)))


@contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="portable-") as folder:
        yield World(Path(folder))


def no_special_files(top: Path) -> bool:
    kinds = {stat.S_IFMT(path.lstat().st_mode) for path in top.rglob("*")}
    return kinds <= {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}


@given(body=st.lists(records, max_size=12), incremental=st.booleans())
@example(
    body=[
        Record("L", b"b", META, data=b"../outside"),
        Record("F", b"b/f", META, 3),
        Record("W", data=b"out"),
    ],
    incremental=False,
)
@example(body=[Record("F", b"link/f", META, 3), Record("W", data=b"out")], incremental=True)
@example(body=[Record("X", b"link/f")], incremental=True)
@example(body=[Record("H", b"a", data=b"link/f"), Record("M", b"a", FOLDER)], incremental=True)
@example(body=[Record("P", b"a", META, 2**62)], incremental=True)
@example(body=[Record("F", b"a", META, 2**62), Record("W", number=2**61, data=b"x")], incremental=False)
@settings(max_examples=250, deadline=None)
def test_any_records_stay_inside(body: list[Record], incremental: bool) -> None:
    with world() as here:
        with suppress(Corrupt, OSError):  # OSError: what the disk, not the stream, refuses, such as a size
            here.receive(sealed(body, here.start(incremental=incremental)), incremental=incremental)
        assert here.watched() == here.before
        assert no_special_files(here.made)


@given(data=st.binary(max_size=400), step=st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused(data: bytes, step: int) -> None:
    for garbage in (data, MAGIC + data, MAGIC + encode(Record("S", data=bytes(32))) + data):
        with world() as here, pytest.raises(Corrupt):
            here.receive(garbage, incremental=False, step=step)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_stream_is_refused(data: st.DataObject) -> None:
    with world() as here:
        whole = b"".join(stream(here.parent, None, NO_STOP))
        at = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["cut", "flip", "drop", "double"]))
        changed = {
            "cut": whole[:at],
            "flip": whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :],
            "drop": whole[:at] + whole[at + 1 :],
            "double": whole + whole[at:],
        }[kind]
        with pytest.raises((Corrupt, OSError)):
            here.receive(changed, incremental=False)
        assert here.watched() == here.before


@given(step=st.integers(1, 5000))
@settings(max_examples=20, deadline=None)
def test_chunks_may_be_cut_anywhere(step: int) -> None:
    with world() as here:
        here.receive(b"".join(stream(here.parent, None, NO_STOP)), incremental=False, step=step)
        assert tree(here.made) == tree(here.parent)


@given(body=st.lists(records, max_size=8), step=st.integers(1, 50))
def test_what_is_decoded_was_encoded(body: list[Record], step: int) -> None:
    data = sealed(body, Record("S", data=bytes(32)))
    decoder = Decoder()
    decoded: list[Record] = []
    try:
        for at in range(0, len(data), step):
            decoded += decoder.feed(data[at : at + step])
        decoder.finish()
    except Corrupt:
        assert body[: len(decoded) - 1] == decoded[1:]
    else:
        assert decoded[1:-1] == body


@pytest.mark.parametrize("kind", [b"c", b"b", b"p", b"s", b"C", b"\0", b"\xff"])
def test_there_is_no_record_for_devices(kind: bytes) -> None:
    with world() as here, pytest.raises(Corrupt, match=r"unknown record|malformed"):
        here.receive(
            MAGIC + encode(Record("S", data=bytes(32))) + kind + (8).to_bytes(4, "big") + b"dev/null",
            incremental=False,
        )


def test_a_record_that_claims_gigabytes_is_refused_at_once() -> None:
    with world() as here, pytest.raises(Corrupt, match="a record of"):
        head = b"W" + (2**32 - 1).to_bytes(4, "big")
        here.receive(MAGIC + encode(Record("S", data=bytes(32))) + head + bytes(MAX_BODY), incremental=False)


def test_a_link_planted_in_the_parent_is_not_followed() -> None:
    """The parent's `b` was a folder when the stream was made; now it is a link to the outside."""
    with world() as here:
        start = here.start(incremental=True)
        (here.parent / "b" / "c").unlink()
        (here.parent / "b").rmdir()
        (here.parent / "b").symlink_to(here.outside)
        with pytest.raises(Corrupt, match="another snapshot"):
            here.receive(sealed([Record("P", b"b/f", META, 7)], start), incremental=True)
        fresh = here.start(incremental=True)
        with pytest.raises(Corrupt, match="b/f"):
            here.receive(sealed([Record("P", b"b/f", META, 7)], fresh), incremental=True)


def test_what_is_kept_from_the_parent_is_never_written() -> None:
    """`a` is one file with the parent's `a`: new data must go to a new file."""
    with world() as here:
        body = [
            Record("P", b"a", META, 10),
            Record("W", number=0, data=b"CHANGED"),
            Record("M", b"b/c", Meta(0o600, 0, 0, 0)),
        ]
        here.receive(sealed(body, here.start(incremental=True)), incremental=True)
        assert (here.made / "a").read_bytes() == b"CHANGEDs a"
        assert stat.S_IMODE((here.made / "b" / "c").stat().st_mode) == 0o600
        assert here.watched() == here.before
        assert not (here.made / "a").samefile(here.parent / "a")
