"""Send streams of btrfs, protocol 1: bytes to commands. They may be hostile; nothing here touches a file.

A stream is `btrfs-stream\\0`, the protocol as u32, then commands: length u32, kind u16, CRC-32C u32 over the command with zeros in
its place, and attributes, each of a kind u16, length u16 and its bytes. All little-endian (`fs/btrfs/send.h`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from fractal.api.errors import Corrupt
from fractal.streams.crc32c import crc32c

FORMAT = "btrfs-send/1"
MAX_COMMAND = 65_536
"""Bytes of a command's attributes; the kernel's own bound in protocol 1."""
MAX_PATH = 4096
_MAGIC = b"btrfs-stream\0"
START = _MAGIC + b"\1\0\0\0"
"""What a stream begins with."""
_HEAD = struct.Struct("<IHI")
_FIELD = struct.Struct("<HH")


class Kind(IntEnum):
    """Commands."""

    SUBVOLUME = 1
    SNAPSHOT = 2
    MAKE_FILE = 3
    MAKE_FOLDER = 4
    MAKE_NODE = 5
    MAKE_FIFO = 6
    MAKE_SOCKET = 7
    MAKE_LINK = 8
    RENAME = 9
    LINK = 10
    UNLINK = 11
    REMOVE_FOLDER = 12
    SET_ATTRIBUTE = 13
    REMOVE_ATTRIBUTE = 14
    WRITE = 15
    CLONE = 16
    TRUNCATE = 17
    MODE = 18
    OWNER = 19
    TIMES = 20
    END = 21


class Field(IntEnum):
    """Attributes of commands."""

    UUID = 1
    TRANSACTION = 2
    SIZE = 4
    MODE = 5
    UID = 6
    GID = 7
    DEVICE = 8
    MODIFIED = 10
    ACCESSED = 11
    NAME = 13
    VALUE = 14
    PATH = 15
    PATH_TO = 16
    PATH_LINK = 17
    OFFSET = 18
    DATA = 19
    CLONE_UUID = 20
    CLONE_PATH = 22
    CLONE_OFFSET = 23
    CLONE_LENGTH = 24


@dataclass(frozen=True, slots=True)
class Command:
    """One command; its accessors raise Corrupt where it lacks what is asked for."""

    kind: Kind
    fields: dict[int, bytes]
    raw: memoryview = field(default=memoryview(b""), repr=False, compare=False)
    """As it is in the stream."""

    def data(self, field: Field) -> bytes:
        """The bytes of an attribute."""
        try:
            return self.fields[field]
        except KeyError:
            raise Corrupt(f"{FORMAT} stream: {self.kind.name} without {field.name}") from None

    def number(self, field: Field) -> int:
        """An u64."""
        data = self.data(field)
        if len(data) != 8:
            raise Corrupt(f"{FORMAT} stream: {self.kind.name}: {field.name} of {len(data)} bytes")
        return int.from_bytes(data, "little")

    def offset(self, field: Field) -> int:
        """An u64 that is a place in a file."""
        number = self.number(field)
        if number >= 1 << 63:
            raise Corrupt(f"{FORMAT} stream: {self.kind.name}: {field.name} is {number}")
        return number

    def uuid(self, field: Field) -> bytes:
        """16 bytes."""
        data = self.data(field)
        if len(data) != 16:
            raise Corrupt(f"{FORMAT} stream: {self.kind.name}: {field.name} of {len(data)} bytes")
        return data

    def time_ns(self, field: Field) -> int:
        """Nanoseconds since 1970."""
        data = self.data(field)
        if len(data) != 12:
            raise Corrupt(f"{FORMAT} stream: {self.kind.name}: {field.name} of {len(data)} bytes")
        seconds, nanoseconds = struct.unpack("<qI", data)
        return int(seconds) * 10**9 + int(nanoseconds)

    def path(self, field: Field = Field.PATH) -> bytes:
        """A path below the snapshot's top, which itself is the empty one."""
        path = self.data(field)
        bad = path and not {b"", b".", b".."}.isdisjoint(path.split(b"/"))
        if bad or b"\0" in path or len(path) > MAX_PATH:
            raise Corrupt(f"{FORMAT} stream: {self.kind.name}: {path[:80]!r} is no path below the snapshot")
        return path


def encode(kind: Kind, fields: Mapping[Field, bytes]) -> bytes:
    """A command as it is in a stream."""
    body = b"".join(_FIELD.pack(name, len(data)) + data for name, data in fields.items())
    head = _HEAD.pack(len(body), kind, 0)
    return _HEAD.pack(len(body), kind, crc32c(head + body)) + body


class Decoder:
    """`feed` chunks of any size, then `finish`."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[Command]:
        """The commands that are complete now. Raises Corrupt."""
        # Large, and there are many: nothing is copied but what a command is about.
        view, at = memoryview(self._buffer + chunk if self._buffer else chunk), 0
        if not self._started:
            if len(view) < len(START):
                self._buffer = bytes(view)
                return
            self._start(view)
            at = len(START)
        while len(view) - at >= _HEAD.size:
            length, kind, crc = _HEAD.unpack_from(view, at)
            if self._ended or length > MAX_COMMAND:
                what = "goes on after its end" if self._ended else f"has a command of {length} bytes"
                raise Corrupt(f"{FORMAT} stream: it {what}")
            end = at + _HEAD.size + length
            if end > len(view):
                break
            yield self._command(kind, crc, view[at:end])
            at = end
        self._buffer = bytes(view[at:])

    def finish(self) -> None:
        """Raises Corrupt unless the stream came to its end."""
        if not self._ended or self._buffer:
            raise Corrupt(
                f"{FORMAT} stream: it {'goes on after its end' if self._ended else 'was cut short'}"
            )

    def _start(self, view: memoryview) -> None:
        if view[: len(_MAGIC)] != _MAGIC:
            raise Corrupt(f"{FORMAT} stream: it does not begin as one")
        version = int.from_bytes(view[len(_MAGIC) : len(START)], "little")
        if version != 1:
            raise Corrupt(f"{FORMAT} stream: it is of protocol {version}")
        self._started = True

    def _command(self, kind: int, crc: int, raw: memoryview) -> Command:
        head = _HEAD.pack(len(raw) - _HEAD.size, kind, 0)
        if crc32c(head + raw[_HEAD.size :]) != crc:
            raise Corrupt(f"{FORMAT} stream: a command's checksum does not match")
        try:
            command = Command(Kind(kind), _fields(raw), raw)
        except ValueError:
            raise Corrupt(f"{FORMAT} stream: unknown command {kind}") from None
        self._ended = command.kind is Kind.END
        return command


def _fields(raw: memoryview) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = _HEAD.size
    while at < len(raw):
        if at + 4 > len(raw):
            break
        kind, length = _FIELD.unpack_from(raw, at)
        found[kind] = bytes(raw[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(raw):
        raise Corrupt(f"{FORMAT} stream: a command's attributes do not fill it")
    return found
