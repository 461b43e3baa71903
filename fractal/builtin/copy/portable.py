r"""The stream format `portable/1`: a tree, or what changed in it, for any file system. Pure: bytes in, values out.

    stream = "fractal portable/1\n" record*
    record = kind (1 byte) length (u32) body          numbers big-endian; a body is at most 1 MiB

    S  incremental (u8), fingerprint of the parent (32 bytes, zero for a full stream)        always first
    X  path                                 remove: a file, or a folder with all that is in it
    D  meta path                            folder, new or kept, with this metadata
    F  meta size (u64) path                 file of holes, filled by the W after it; replaces what is no folder
    P  meta size (u64) path                 file that begins as the parent's file at this path, cut or extended to size
    M  meta path                            the parent's file at this path, with other metadata
    W  offset (u64) data                    bytes of the F or P before it
    A  length (u16) name value              extended attribute `user.*` of the D, F, P or M before it
    L  meta length (u16) path target        symbolic link
    H  length (u16) path target             another name for the file at `target` in the new tree
    E  records (u64) hash (32 bytes)        always last: how many records came before, BLAKE2b of all bytes before

    meta = mode (u16) mtime in ns (i64) uid (u32) gid (u32)

Paths are bytes, relative, with `/` between parts. The path of the tree's own folder is empty and occurs in D only.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fractal.api.errors import Corrupt
from fractal.builtin.copy.tree import MAX_DEPTH, Meta

FORMAT = "portable/1"
MAGIC = b"fractal portable/1\n"
MAX_BODY = 1 << 20
MAX_PATH = 16 << 10
MAX_ATTRIBUTES = 128
DATA = 256 << 10
"""Bytes in one W as we write them."""
NO_PARENT = bytes(32)

_HEAD = struct.Struct(">cI")
_META = struct.Struct(">HqII")
_SIZED = struct.Struct(">HqIIQ")
_START = struct.Struct(">B32s")
_END = struct.Struct(">Q32s")
_OFFSET = struct.Struct(">Q")
_SHORT = struct.Struct(">H")
MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Record:
    """One record, taken apart. What a kind does not have is empty."""

    kind: str
    path: bytes = b""
    meta: Meta | None = None
    number: int = 0
    """F, P: size. W: offset. S: 1 if incremental. E: how many records came before."""
    data: bytes = b""
    """W: bytes. A: value. L, H: target. S: fingerprint. E: hash."""


def encode(record: Record) -> bytes:
    """The record's bytes."""
    body = _body(record)
    return _HEAD.pack(record.kind.encode("ascii"), len(body)) + body


def _body(record: Record) -> bytes:
    match record.kind:
        case "S":
            return _START.pack(record.number, record.data)
        case "E":
            return _END.pack(record.number, record.data)
        case "W":
            return _OFFSET.pack(record.number) + record.data
        case "X":
            return record.path
        case "A" | "H":
            return _SHORT.pack(len(record.path)) + record.path + record.data
    assert record.meta is not None
    meta = _META.pack(record.meta.mode, record.meta.mtime_ns, record.meta.uid, record.meta.gid)
    match record.kind:
        case "F" | "P":
            return meta + _OFFSET.pack(record.number) + record.path
        case "L":
            return meta + _SHORT.pack(len(record.path)) + record.path + record.data
    return meta + record.path


class Decoder:
    """Takes a stream apart, however it is cut into chunks; refuses what is not exactly one whole stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._hash = hashlib.blake2b(digest_size=32)
        self._records = 0
        self._begun = False
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[Record]:
        """The records that `chunk` completes. Raises Corrupt. Holds no more than one record back."""
        for start in range(0, len(chunk), MAX_BODY):
            self._buffer += chunk[start : start + MAX_BODY]
            yield from self._take()

    def finish(self) -> None:
        """Raises Corrupt unless the stream is complete."""
        if not self._ended:
            raise Corrupt(f"{FORMAT} stream: it ends too early, after {self._records} records")

    def _take(self) -> Iterator[Record]:
        if not self._begun:
            if not MAGIC.startswith(bytes(self._buffer[: len(MAGIC)])):
                raise Corrupt(f"{FORMAT} stream: it does not begin like one")
            if len(self._buffer) < len(MAGIC):
                return
            self._consume(len(MAGIC))
            self._begun = True
        while len(self._buffer) >= _HEAD.size:
            if self._ended:
                break
            kind, length = _HEAD.unpack_from(self._buffer)
            if length > MAX_BODY:
                raise Corrupt(f"{FORMAT} stream: a record of {length} bytes")
            if len(self._buffer) < _HEAD.size + length:
                return
            record = decode(kind, bytes(self._buffer[_HEAD.size : _HEAD.size + length]))
            self._check_place(record)
            self._consume(_HEAD.size + length)
            self._records += 1
            yield record
        if self._ended and self._buffer:
            raise Corrupt(f"{FORMAT} stream: bytes after its end")

    def _consume(self, count: int) -> None:
        self._hash.update(self._buffer[:count])
        del self._buffer[:count]

    def _check_place(self, record: Record) -> None:
        if (record.kind == "S") != (self._records == 0):
            raise Corrupt(f"{FORMAT} stream: a start record belongs at the start, and only there")
        if record.kind == "E":
            if record.number != self._records or record.data != self._hash.digest():
                raise Corrupt(f"{FORMAT} stream: its hash does not fit, it was damaged on the way")
            self._ended = True


def decode(kind: bytes, body: bytes) -> Record:
    """One record, checked for all that can be seen without the others. Raises Corrupt."""
    try:
        return _decode(kind.decode("ascii"), body)
    except (struct.error, UnicodeDecodeError) as error:
        raise Corrupt(f"{FORMAT} stream: a malformed {kind!r} record") from error


def _decode(kind: str, body: bytes) -> Record:
    match kind:
        case "S":
            incremental, fingerprint = _START.unpack(body)
            return Record(kind, number=_at_most(incremental, 1), data=fingerprint)
        case "E":
            count, digest = _END.unpack(body)
            return Record(kind, number=count, data=digest)
        case "W":
            return Record(kind, number=_OFFSET.unpack_from(body)[0], data=body[_OFFSET.size :])
        case "X":
            return Record(kind, _path(body))
        case "A":
            name, value = _pair(body)
            return Record(kind, _attribute(name), data=value)
        case "H":
            path, target = _pair(body)
            return Record(kind, _path(path), data=_path(target))
        case "L":
            path, target = _pair(body[_META.size :])
            return Record(kind, _path(path), _meta(body), data=_target(target))
        case "F" | "P":
            size = _SIZED.unpack_from(body)[-1]
            return Record(kind, _path(body[_SIZED.size :]), _meta(body), _at_most(size, MAX_SIZE))
        case "M":
            return Record(kind, _path(body[_META.size :]), _meta(body))
        case "D":
            path = body[_META.size :]
            return Record(kind, _path(path) if path else path, _meta(body))
    raise Corrupt(f"{FORMAT} stream: unknown record {kind!r}")


def _meta(body: bytes) -> Meta:
    mode, mtime_ns, uid, gid = _META.unpack_from(body)
    return Meta(_at_most(mode, 0o7777), mtime_ns, uid, gid)


def _pair(body: bytes) -> tuple[bytes, bytes]:
    (length,) = _SHORT.unpack_from(body)
    first, second = body[_SHORT.size : _SHORT.size + length], body[_SHORT.size + length :]
    if len(first) != length:
        raise Corrupt(f"{FORMAT} stream: a record is shorter than it says")
    return first, second


def _path(path: bytes) -> bytes:
    parts = path.split(b"/")
    if (
        len(path) > MAX_PATH
        or len(parts) > MAX_DEPTH
        or b"\0" in path
        or any(part in {b"", b".", b".."} or len(part) > 255 for part in parts)
    ):
        raise Corrupt(f"{FORMAT} stream: path {path[:80]!r} is not allowed")
    return path


def _target(target: bytes) -> bytes:
    """What a symbolic link says is its own business: it is stored and never followed."""
    if not 0 < len(target) < 4096 or b"\0" in target:
        raise Corrupt(f"{FORMAT} stream: link target {target[:80]!r} is not allowed")
    return target


def _attribute(name: bytes) -> bytes:
    if not name.startswith(b"user.") or not 5 < len(name) < 256 or b"\0" in name:
        raise Corrupt(f"{FORMAT} stream: attribute {name[:80]!r} is not allowed")
    return name


def _at_most(value: int, limit: int) -> int:
    if value > limit:
        raise Corrupt(f"{FORMAT} stream: {value} where at most {limit} is allowed")
    return value
