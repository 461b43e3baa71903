"""Lean streams leave pages out, and bring the very same: any commands on a plain folder, any changes on a real btrfs."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, closing, contextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from fractal_btrfs.lean import PAGE, Lean
from fractal_btrfs.origins import ROOM
from fractal_btrfs.snapshotter import BtrfsSnapshotter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fractal.api.errors import Corrupt, NotFound
from fractal.streams.btrfs_send import START, Decoder, Field, Kind, encode
from fractal.streams.replay import FOLDER, Receiver, copy_range
from fractal.testing.trees import again, plant

Opener = Callable[..., AbstractAsyncContextManager[BtrfsSnapshotter]]
Fields = dict[Field, bytes]
Said = tuple[Kind, Fields]
OWN, PARENT = b"o" * 16, b"p" * 16
FULL, PART = 3 * PAGE, 2 * PAGE + 700


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def pages(*letters: str) -> bytes:
    return b"".join(letter.encode() * PAGE for letter in letters)


def parent_of_streams(top: Path) -> int:
    """A tree whose files have some pages in common."""
    (top / "d" / "e").mkdir(parents=True)
    (top / "a").write_bytes(pages("x", "y", "z"))
    (top / "b").hardlink_to(top / "a")
    (top / "d" / "c").write_bytes(pages("y", "y", "z")[:PART])
    (top / "d" / "e" / "f").write_bytes(pages("x", "x", "x", "x"))
    (top / "l").symlink_to("a")
    return os.open(top, FOLDER)


NAMES = (b"a", b"b", b"d/c", b"d/e/f", b"d", b"d/e", b"l", b"o257-9-0", b"new", b"new/c", b"d/n", b"new/e/f")
names = st.sampled_from(NAMES)
spots = st.integers(0, 4).map(lambda page: page * PAGE)
contents = st.one_of(
    st.lists(st.sampled_from("xyz\0"), min_size=1, max_size=4).map(lambda chosen: pages(*chosen)),
    st.sampled_from([pages("y", "y", "z")[PAGE:PART], pages("x")[:100], b""]),
)
sizes = st.sampled_from([0, PAGE, PAGE + 5, FULL, PART, 6 * PAGE])


def write(path: bytes, offset: int, data: bytes) -> Said:
    return Kind.WRITE, {Field.PATH: path, Field.OFFSET: u64(offset), Field.DATA: data}


def cut(path: bytes, size: int) -> Said:
    return Kind.TRUNCATE, {Field.PATH: path, Field.SIZE: u64(size)}


def rename(path: bytes, new: bytes) -> Said:
    return Kind.RENAME, {Field.PATH: path, Field.PATH_TO: new}


def link(path: bytes, old: bytes) -> Said:
    return Kind.LINK, {Field.PATH: path, Field.PATH_LINK: old}


def clone(path: bytes, offset: int, source: bytes, of: bytes, start: int, length: int) -> Said:
    where = {Field.OFFSET: u64(offset), Field.CLONE_OFFSET: u64(start), Field.CLONE_LENGTH: u64(length)}
    return Kind.CLONE, {Field.PATH: path, Field.CLONE_UUID: of, Field.CLONE_PATH: source, **where}


def only(kind: Kind) -> Callable[[bytes], Said]:
    return lambda path: (kind, {Field.PATH: path})


commands = st.one_of(
    st.builds(write, names, spots, contents),
    st.builds(write, names, spots, contents),
    st.builds(write, names, st.integers(0, FULL), contents),
    st.builds(cut, names, sizes),
    st.builds(rename, names, names),
    st.builds(link, names, names),
    st.builds(
        clone, names, spots, names, st.sampled_from([OWN, PARENT]), spots, st.sampled_from([PAGE, 2 * PAGE])
    ),
    *[names.map(only(k)) for k in (Kind.UNLINK, Kind.REMOVE_FOLDER, Kind.MAKE_FILE, Kind.MAKE_FOLDER)],
)


def copied_or_not(source: int, start: int, length: int, target: int, offset: int) -> None:
    """As the kernel clones: all of the range or nothing."""
    if os.fstat(source).st_size < start + length:
        raise Corrupt("beyond the end")
    copy_range(source, start, length, target, offset)


class Replica:
    """A copy of the parent that a stream is replayed in."""

    def __init__(self, folder: Path) -> None:
        self.top, before = folder / "copy", folder / "before"
        self.top.mkdir()
        before.mkdir()
        self._copy, self.before = parent_of_streams(self.top), parent_of_streams(before)
        self.receiver = Receiver(lambda _: self._copy, self.before, copied_or_not)

    def close(self) -> None:
        self.receiver.close()
        os.close(self._copy)
        os.close(self.before)

    def content(self) -> dict[str, bytes | str]:
        found: dict[str, bytes | str] = {}
        for path in sorted(self.top.rglob("*")):
            what = "folder" if path.is_dir() else path.read_bytes() if not path.is_symlink() else "link"
            found[str(path.relative_to(self.top))] = what
        return found


def first() -> bytes:
    fields = {Field.PATH: b"s", Field.UUID: OWN, Field.TRANSACTION: u64(7)}
    return START + encode(Kind.SNAPSHOT, {**fields, Field.CLONE_UUID: PARENT})


@settings(deadline=None, max_examples=150)
@given(st.lists(commands, max_size=14), st.sampled_from([0, 1500, ROOM]), st.integers(1, 3 * PAGE))
@example([rename(b"a", b"o257-9-0"), write(b"o257-9-0", 0, pages("x"))], ROOM, PAGE)
@example([cut(b"a", 0), cut(b"a", FULL), write(b"b", 0, pages("x", "y", "z"))], ROOM, PAGE)
@example([clone(b"a", 0, b"d/c", PARENT, 0, PAGE), write(b"b", 0, pages("x"))], ROOM, PAGE)
@example([(Kind.UNLINK, {Field.PATH: b"a"}), only(Kind.MAKE_FILE)(b"a"), write(b"a", 0, pages("x"))], ROOM, 9)
@example(
    [only(Kind.UNLINK)(b"a"), only(Kind.MAKE_FILE)(b"n"), rename(b"n", b"a"), write(b"a", 0, b"x")], ROOM, 9
)
@example([rename(b"d", b"new"), rename(b"new/c", b"d"), write(b"d", 0, pages("y"))], ROOM, PAGE)
def test_any_commands_come_to_the_same(said: Sequence[Said], room: int, size: int) -> None:
    """Also those that the kernel would not say in such an order."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plain").mkdir()
        (Path(folder) / "lean").mkdir()
        with (
            closing(Replica(Path(folder) / "plain")) as plain,
            closing(Replica(Path(folder) / "lean")) as lean,
            closing(Lean(plain.before, pytest.fail, room)) as filtered,
        ):
            whole = first()
            plain.receiver.feed(whole)
            for kind, fields in [*said, (Kind.END, {})]:
                raw = encode(kind, fields)
                with suppress(Corrupt):  # there is no such file: the kernel says only what can be done
                    plain.receiver.feed(raw)
                    whole += raw
            left = b"".join(filtered.feed(whole[at : at + size]) for at in range(0, len(whole), size))
            filtered.finish()
            assert len(left) <= len(whole)
            lean.receiver.feed(left)
            assert lean.receiver.finish() == plain.receiver.finish()
            assert lean.content() == plain.content()


def left_of(top: Path, *said: Said, room: int = ROOM) -> list[tuple[bytes, int, bytes]]:
    """The writes that are left: path, offset, data."""
    with tempfile.TemporaryDirectory(dir=top) as folder:
        parent = parent_of_streams(Path(folder))
        try:
            with closing(Lean(parent, pytest.fail, room)) as lean:
                whole = lean.feed(first() + b"".join(encode(*one) for one in said) + encode(Kind.END, {}))
                lean.finish()
        finally:
            os.close(parent)
    found = [c for c in Decoder().feed(whole) if c.kind is Kind.WRITE]
    return [(c.path(), c.number(Field.OFFSET), c.data(Field.DATA)) for c in found]


def test_only_pages_that_differ_are_left(tmp_path: Path) -> None:
    assert left_of(tmp_path, write(b"a", 0, pages("x", "y", "z"))) == []
    assert left_of(tmp_path, write(b"a", 0, pages("q", "y", "q"))) == [
        (b"a", 0, pages("q")),
        (b"a", 2 * PAGE, pages("q")),
    ]
    assert left_of(tmp_path, write(b"d/c", PAGE, pages("y", "z")[: PART - PAGE])) == []
    assert left_of(tmp_path, write(b"a", 2 * PAGE, pages("z", "x"))) == [(b"a", 3 * PAGE, pages("x"))]


def test_a_file_is_found_under_every_name_that_the_stream_gives_it(tmp_path: Path) -> None:
    same = pages("x", "y", "z")
    assert left_of(tmp_path, rename(b"a", b"o257-9-0"), write(b"o257-9-0", 0, same)) == []
    assert left_of(tmp_path, rename(b"d", b"m"), rename(b"m/e", b"e"), write(b"e/f", 0, pages("x"))) == []
    made = only(Kind.MAKE_FOLDER)(b"new")
    assert left_of(tmp_path, made, link(b"new/n", b"b"), write(b"new/n", 0, same)) == []
    swapped = rename(b"a", b"t"), rename(b"d/c", b"a"), rename(b"t", b"d/c")
    assert left_of(tmp_path, *swapped, write(b"d/c", 0, same), write(b"a", 0, pages("y", "y"))) == []


def test_what_is_not_known_is_sent(tmp_path: Path) -> None:
    """A name too many, a file that is new under an old name, a page that the stream itself changed before."""
    same = write(b"a", 0, pages("x"))
    said = [(b"a", 0, pages("x"))]
    assert left_of(tmp_path, rename(b"d/c", b"n"), same, room=300) == said
    unlinked, made = only(Kind.UNLINK)(b"a"), only(Kind.MAKE_FILE)
    assert left_of(tmp_path, unlinked, made(b"a"), same) == said
    assert left_of(tmp_path, unlinked, made(b"o258-9-0"), rename(b"o258-9-0", b"a"), same) == said
    other = write(b"a", 0, pages("q")), unlinked, made(b"a"), write(b"a", PAGE, pages("y"))
    assert left_of(tmp_path, *other) == [(b"a", 0, pages("q")), (b"a", PAGE, pages("y"))]
    assert left_of(tmp_path, cut(b"b", 100), same) == said
    assert left_of(tmp_path, write(b"b", 0, pages("q", "q")), same) == [(b"b", 0, pages("q", "q")), *said]


def test_what_happened_to_a_file_that_could_not_be_opened_is_not_known(tmp_path: Path) -> None:
    """Cut to nothing while the process had no descriptor left: afterwards none of its pages may be left out, by any name."""
    parent = parent_of_streams(tmp_path)
    said: list[str] = []
    try:
        with closing(Lean(parent, said.append)) as lean:
            left = lean.feed(first())
            with no_descriptor_left():
                left += lean.feed(encode(*cut(b"a", 0)))
            same = write(b"b", 0, pages("x", "y", "z"))
            left += lean.feed(b"".join(encode(*one) for one in (cut(b"a", FULL), same, (Kind.END, {}))))
            lean.finish()
    finally:
        os.close(parent)
    assert [c.data(Field.DATA) for c in Decoder().feed(left) if c.kind is Kind.WRITE] == [
        pages("x", "y", "z")
    ]
    assert len(said) == 1, "and not for each command"


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- on a real btrfs -------------------------------------------------------------------------------------------------

FILES = ("a", "b", "d/c", "d/e/f", "db", "d/log")


def act(root: Path, chance: Random) -> None:
    """One thing that an app might do to its files, if it can be done."""
    path, other = (root / chance.choice(FILES) for _ in range(2))
    what = chance.choice(DEEDS)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        what(path, other, chance)


def patched(path: Path, _: Path, chance: Random) -> None:
    """Pages here and there; some are what they were."""
    with path.open("r+b", buffering=0) as file:
        for __ in range(chance.randrange(1, 6)):
            at = chance.randrange(40) * PAGE
            file.seek(at)
            same = file.read(PAGE)
            file.seek(at)
            file.write(
                same if chance.random() < 0.3 else chance.randbytes(chance.choice([PAGE, 2 * PAGE, 900]))
            )
        os.fsync(file.fileno())


def rewritten(path: Path, _: Path, chance: Random) -> None:
    path.write_bytes(path.read_bytes() if path.exists() and chance.random() < 0.5 else content(chance))


def replaced(path: Path, _: Path, chance: Random) -> None:
    new = path.with_name("new")
    new.write_bytes(content(chance))
    new.rename(path)


def content(chance: Random) -> bytes:
    return Random(chance.randrange(3)).randbytes(chance.randrange(60 * PAGE))


def shared(path: Path, other: Path, _: Random) -> None:
    subprocess.run(
        ["cp", "--reflink=always", path, other], check=False, stderr=subprocess.DEVNULL, timeout=60
    )


def punched(path: Path, _: Path, chance: Random) -> None:
    at = [str(chance.randrange(30) * PAGE), str(chance.randrange(1, 9) * PAGE)]
    how = chance.choice(["--punch-hole", "--zero-range", "--keep-size"])
    subprocess.run(
        ["fallocate", how, "-o", at[0], "-l", at[1], path], check=False, stderr=subprocess.DEVNULL, timeout=60
    )


def moved(path: Path, other: Path, _: Random) -> None:
    path.rename(other)


def swapped(path: Path, other: Path, _: Random) -> None:
    spare = path.with_name("spare")
    path.rename(spare)
    other.rename(path)
    spare.rename(other)


def folders_swapped(path: Path, _: Path, __: Random) -> None:
    top = path.parents[1]
    (top / "d").rename(top / "was")
    (top / "was" / "e").rename(top / "d")
    (top / "was").rename(top / "d" / "e")


def linked(path: Path, other: Path, _: Random) -> None:
    other.hardlink_to(path)


def removed(path: Path, _: Path, __: Random) -> None:
    path.unlink()


def truncated(path: Path, _: Path, chance: Random) -> None:
    os.truncate(path, chance.randrange(60 * PAGE))


DEEDS: tuple[Callable[[Path, Path, Random], None], ...] = (
    *[patched] * 6,
    *[rewritten, replaced, shared, punched] * 2,
    *(moved, swapped, folders_swapped, linked, removed, truncated),
)


def described(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(top))] = (info.st_mode, info.st_nlink, info.st_mtime_ns, content)
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_any_changes_come_to_the_same(snapshotter: BtrfsSnapshotter, seed: int) -> None:
    """Each moment from each before it, by the whole stream and by the lean one."""
    chance = Random(seed)
    root = await snapshotter.create_root("app")
    plant(root)
    (root / "db").write_bytes(chance.randbytes(50 * PAGE))
    for number in range(8):
        for _ in range(number * 4):
            act(root, chance)
        await snapshotter.snapshot("app", f"s{number}")
    for volume in ("plain", "lean"):
        whole = snapshotter.send("app", "s0")
        await snapshotter.receive(volume, "s0", whole, stream_format=snapshotter.format)
    saved = 0
    for parent in range(7):
        for number in range(parent + 1, 8):
            name, base = f"s{number}", f"s{parent}"
            plain = b"".join([chunk async for chunk in snapshotter.send("app", name, base)])
            lean = b"".join([chunk async for chunk in snapshotter.send_lean("app", name, base)])
            saved += len(plain) - len(lean)
            states = []
            for volume, stream in (("plain", plain), ("lean", lean)):
                await snapshotter.delete(volume, name)
                made = await snapshotter.receive(
                    volume, name, again(stream), stream_format=snapshotter.format, parent=base
                )
                states.append(described(made.path))
            (origin,) = [s.path for s in await snapshotter.snapshots("app") if s.name == name]
            assert states[0] == states[1] == described(origin)
            assert len(lean) <= len(plain)
    assert saved > 0


async def test_a_far_parent_beside_a_hole_costs_no_more_than_the_ticks(snapshotter: BtrfsSnapshotter) -> None:
    """The kernel gives up looking for who shares an extent when many snapshots do, and sends all of it for the hole that follows."""
    chance = Random(5)
    root = await snapshotter.create_root("app")
    with (root / "db").open("wb") as file:
        file.write(chance.randbytes(16 << 20))
        file.seek(PAGE, os.SEEK_CUR)
        file.write(chance.randbytes(1 << 20))
    await snapshotter.snapshot("app", "s0")
    ticks = 0
    for number in range(1, 50):
        with (root / "db").open("r+b") as file:
            file.seek(chance.randrange(4096) * PAGE)
            file.write(chance.randbytes(PAGE))
        await snapshotter.snapshot("app", f"s{number}")
        ticks += sum([len(c) async for c in snapshotter.send("app", f"s{number}", f"s{number - 1}")])
    whole = sum([len(c) async for c in snapshotter.send("app", "s49", "s0")])
    lean = b"".join([c async for c in snapshotter.send_lean("app", "s49", "s0")])
    assert len(lean) < ticks < whole
    await snapshotter.receive("copy", "s0", snapshotter.send("app", "s0"), stream_format=snapshotter.format)
    made = await snapshotter.receive(
        "copy", "s49", again(lean), stream_format=snapshotter.format, parent="s0"
    )
    assert described(made.path) == described(root)


async def test_chunks_stay_bounded_and_a_lean_send_can_be_broken_off(snapshotter: BtrfsSnapshotter) -> None:
    root = await snapshotter.create_root("app")
    await snapshotter.snapshot("app", "s1")
    (root / "large").write_bytes(os.urandom(6 << 20))
    await snapshotter.snapshot("app", "s2")
    chunks = [len(chunk) async for chunk in snapshotter.send_lean("app", "s2", "s1")]
    assert sum(chunks) > 6 << 20
    assert max(chunks) <= 1 << 20
    async with aclosing(snapshotter.send_lean("app", "s2", "s1")) as stream:
        await anext(stream)
    reading = asyncio.ensure_future(anext(snapshotter.send_lean("app", "s2", "s1")))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    await snapshotter.delete("app", "s1")
    with pytest.raises(NotFound):
        await anext(snapshotter.send_lean("app", "s2", "s1"))
