"""Streams: replayed as `btrfs receive` would, and never outside of the new snapshot, whoever made them."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from fractal_btrfs.snapshotter import BtrfsSnapshotter
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal.api.errors import Corrupt
from fractal.streams.btrfs_send import Decoder, Field, Kind
from fractal.streams.crc32c import MAX_LENGTH, by_byte, crc32c, folded
from fractal.testing.trees import again, alter, plant, undo

Fields = dict[Field, bytes]
START = b"btrfs-stream\0\1\0\0\0"
UUID = bytes(range(16))


def command(kind: Kind, fields: Fields) -> bytes:
    """A well-formed command."""
    body = b"".join(struct.pack("<HH", field, len(data)) + data for field, data in fields.items())
    bare = struct.pack("<IHI", len(body), kind, 0) + body
    return bare[:6] + struct.pack("<I", by_byte(bare)) + bare[10:]


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def stream(*commands: tuple[Kind, Fields]) -> bytes:
    """A full stream with the right head, end and checksums around any commands."""
    head = (Kind.SUBVOLUME, {Field.PATH: b"x", Field.UUID: UUID, Field.TRANSACTION: u64(7)})
    everything = [head, *commands, (Kind.END, {})]
    return START + b"".join(command(kind, fields) for kind, fields in everything)


def file(path: bytes) -> tuple[Kind, Fields]:
    return Kind.MAKE_FILE, {Field.PATH: path}


def write(path: bytes, data: bytes = b"reached") -> tuple[Kind, Fields]:
    return Kind.WRITE, {Field.PATH: path, Field.OFFSET: u64(0), Field.DATA: data}


def link(path: bytes, target: bytes) -> tuple[Kind, Fields]:
    return Kind.MAKE_LINK, {Field.PATH: path, Field.PATH_LINK: target}


def clone(uuid: bytes, path: bytes) -> tuple[Kind, Fields]:
    numbers = {Field.OFFSET: u64(0), Field.CLONE_OFFSET: u64(0), Field.CLONE_LENGTH: u64(4096)}
    return Kind.CLONE, {Field.PATH: b"f", Field.CLONE_UUID: uuid, Field.CLONE_PATH: path, **numbers}


def mode(path: bytes) -> tuple[Kind, Fields]:
    return Kind.MODE, {Field.PATH: path, Field.MODE: u64(0o4777)}


def hostile(outside: bytes) -> dict[str, bytes]:
    """Streams that try to reach `outside`, a folder with a file `secret`, or that fit no tree."""
    through = link(b"way", outside)
    header = (Kind.SUBVOLUME, {Field.PATH: b"y", Field.UUID: UUID, Field.TRANSACTION: u64(7)})
    fifo = (Kind.MAKE_FIFO, {Field.PATH: b"pipe"})
    to_link = {Field.PATH: b"f", Field.PATH_LINK: b"way/secret"}
    attribute = {Field.NAME: b"user.x", Field.VALUE: b"reached"}
    return {
        "a write through a link": stream(link(b"f", outside + b"/secret"), write(b"f")),
        "a write below a link": stream(through, write(b"way/secret")),
        "a file below a link": stream(through, file(b"way/new")),
        "a folder below a link": stream(through, (Kind.MAKE_FOLDER, {Field.PATH: b"way/new"})),
        "a truncation below a link": stream(
            through, (Kind.TRUNCATE, {Field.PATH: b"way/secret", Field.SIZE: u64(0)})
        ),
        "permissions through a link": stream(link(b"f", outside + b"/secret"), mode(b"f")),
        "permissions below a link": stream(through, mode(b"way/secret")),
        "an owner below a link": stream(
            through, (Kind.OWNER, {Field.PATH: b"way/secret", Field.UID: u64(7), Field.GID: u64(7)})
        ),
        "an attribute below a link": stream(
            through, (Kind.SET_ATTRIBUTE, {Field.PATH: b"way/secret", **attribute})
        ),
        "a removal below a link": stream(through, (Kind.UNLINK, {Field.PATH: b"way/secret"})),
        "a move out": stream(
            through, file(b"f"), (Kind.RENAME, {Field.PATH: b"f", Field.PATH_TO: b"way/new"})
        ),
        "a move in": stream(through, (Kind.RENAME, {Field.PATH: b"way/secret", Field.PATH_TO: b"f"})),
        "a second name of a file outside": stream(through, (Kind.LINK, to_link)),
        "data of a file outside": stream(through, file(b"f"), clone(UUID, b"way/secret")),
        "data of a stranger": stream(file(b"f"), clone(bytes(16), b"f")),
        "a path upward": stream(file(b"../new")),
        "a path upward inside": stream((Kind.MAKE_FOLDER, {Field.PATH: b"d"}), file(b"d/../../new")),
        "an absolute path": stream(file(outside + b"/new")),
        "a path with a zero": stream(file(b"a\0b")),
        "an empty part": stream(file(b"a//b")),
        "a write into a pipe": stream(fifo, write(b"pipe")),
        "a write into nothing": stream(write(b"nothing")),
        "a write far out": stream(
            file(b"f"), (Kind.WRITE, {Field.PATH: b"f", Field.OFFSET: u64(1 << 63), Field.DATA: b"x"})
        ),
        "a file twice": stream(file(b"f"), file(b"f")),
        "the top removed": stream((Kind.REMOVE_FOLDER, {Field.PATH: b""})),
        "two snapshots": stream(header),
        "an increment without a parent": START
        + command(
            Kind.SNAPSHOT,
            {Field.PATH: b"x", Field.UUID: UUID, Field.TRANSACTION: u64(7), Field.CLONE_UUID: UUID},
        ),
        "no snapshot": START + command(Kind.END, {}),
        "a field missing": stream((Kind.MAKE_FILE, {})),
        "a number too short": stream(file(b"f"), (Kind.MODE, {Field.PATH: b"f", Field.MODE: b"\1"})),
        "something after the end": stream() + command(Kind.END, {}),
        "another protocol": b"btrfs-stream\0\2\0\0\0" + stream()[17:],
    }


@pytest.mark.parametrize("name", hostile(b"/x"))
async def test_a_hostile_stream_reaches_nothing(
    snapshotter: BtrfsSnapshotter, disk: Path, tmp_path: Path, name: str
) -> None:
    outside = (
        disk / f"outside-{tmp_path.name}"
    )  # the same file system, so that links and shared data would work
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret" * 1000)
    before = described(outside)
    with pytest.raises(Corrupt):
        data = hostile(os.fsencode(outside))[name]
        await snapshotter.receive("app", "s1", again(data), stream_format=snapshotter.format)
    assert described(outside) == before
    assert await snapshotter.volumes() == []
    assert list(disk.glob(f"{tmp_path.name}-*/volumes/*/*")) == []


async def test_a_device_node_arrives_without_its_number(snapshotter: BtrfsSnapshotter) -> None:
    """It could be the machine's disk."""
    node = (Kind.MAKE_NODE, {Field.PATH: b"disk", Field.DEVICE: u64(0xFD00), Field.MODE: u64(0o60644)})
    made = await snapshotter.receive("app", "s1", again(stream(node)), stream_format=snapshotter.format)
    found = (made.path / "disk").lstat()
    assert stat.S_ISCHR(found.st_mode)
    assert found.st_rdev == 0
    with pytest.raises(Corrupt):
        await snapshotter.receive(
            "app", "s2", again(stream(node, write(b"disk"))), stream_format=snapshotter.format
        )


def described(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a stream carries, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *top.rglob("*")]:
        info = path.lstat()
        attributes = {
            n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)
        }
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        target = str(path.readlink()) if path.is_symlink() else ""
        times = info.st_mtime_ns
        owner = (info.st_uid, info.st_gid, info.st_nlink if content else 0)
        found[str(path.relative_to(top))] = (info.st_mode, times, owner, attributes, content, target)
    return found


def dress_up(root: Path) -> None:
    """What `plant` has not: owners, attributes, pipes, sockets, second names, shared data."""
    os.chown(root / "data" / "notes.txt", 1234, 4321)
    os.chown(root / "data" / "latest", 12, 34, follow_symlinks=False)
    os.setxattr(root / "data" / "notes.txt", "user.colour", b"blue")
    os.setxattr(root / "data", "user.kind", bytes(range(256)))
    os.setxattr(root / "data" / "latest", "trusted.mark", b"of a link", follow_symlinks=False)
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(root / "whiteout", stat.S_IFCHR | 0o600, 0)
    (root / "second name").hardlink_to(root / "data" / "big.db")
    subprocess.run(["cp", "--reflink=always", root / "data" / "big.db", root / "shared"], check=True)
    (root / "data" / "script").chmod(0o4750)
    root.chmod(0o751)


def undress(root: Path) -> None:
    """Changes of the same kinds."""
    os.removexattr(root / "data", "user.kind")
    os.setxattr(root / "data" / "notes.txt", "user.colour", b"red")
    (root / "pipe").rename(root / "data" / "pipe")
    (root / "second name").unlink()
    subprocess.run(["cp", "--reflink=always", root / "shared", root / "shared again"], check=True)
    (root / "data").rename(root / "moved")
    (root / "data").mkdir()
    (root / "moved" / "script").rename(root / "data" / "script")


async def test_the_kernels_stream_is_replayed_as_btrfs_receive_does(
    snapshotter: BtrfsSnapshotter, other_disks: tuple[Path, Path], tmp_path: Path
) -> None:
    root = await snapshotter.create_root("app")
    plant(root)
    dress_up(root)
    target = other_disks[0] / tmp_path.name
    target.mkdir()
    states = []
    for number, change in enumerate((lambda _: None, alter, undo, undress)):
        change(root)
        snapshot = await snapshotter.snapshot("app", f"s{number}")
        parent = f"s{number - 1}" if number else None
        data = b"".join([chunk async for chunk in snapshotter.send("app", f"s{number}", parent)])
        made = await snapshotter.receive(
            "copy", f"s{number}", again(data), stream_format=snapshotter.format, parent=parent
        )
        subprocess.run(["btrfs", "receive", "-q", target], input=data, check=True, timeout=60)
        reference = target / snapshot.path.name
        assert described(made.path) == described(reference) == described(snapshot.path)
        states.append(described(made.path))
    assert len({len(state) for state in states}) > 1


def chunks_of(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@settings(deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_commands_or_corrupt(data: bytes, begun: bool) -> None:
    decoder = Decoder()
    try:
        for found in decoder.feed(START + data if begun else data):
            found.path()
        decoder.finish()
    except Corrupt:
        return
    raise AssertionError("no chance of a whole stream")


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=30))
def test_chunks_may_be_cut_anywhere(sizes: list[int]) -> None:
    whole = stream(file(b"a"), write(b"a", b"data"), link(b"b", b"a"))
    decoder = Decoder()
    found = [c.kind for chunk in chunks_of(whole, sizes) for c in decoder.feed(chunk)]
    decoder.finish()
    assert found == [Kind.SUBVOLUME, Kind.MAKE_FILE, Kind.WRITE, Kind.MAKE_LINK, Kind.END]


@settings(deadline=None)
@given(st.integers(0, MAX_LENGTH), st.binary(min_size=1, max_size=64))
def test_checksums_are_the_plain_ways(length: int, pattern: bytes) -> None:
    data = (pattern * (length // len(pattern) + 1))[:length]
    assert crc32c(data) == folded(data) == by_byte(data)


def test_the_checksum_is_crc32c() -> None:
    """RFC 3720 appendix B.4: 32 bytes of zeros inverted at both ends; inverting the start is XORing the first four bytes."""
    for tail, expected in ((bytes(28), 0x8A9136AA), (bytes(range(4, 32)), 0x46DD794E)):
        first = bytes(4) if not any(tail) else bytes(range(4))
        assert by_byte(bytes(b ^ 0xFF for b in first) + tail) ^ 0xFFFFFFFF == expected
