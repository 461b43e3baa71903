"""A record: one committed snapshot. Its creation, after all segments are stored, is the commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from fractal.api.canonical import Value, encode
from fractal.api.errors import Corrupt, InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.archive.layout import is_id
from fractal.core.model import Point, Segment
from fractal.core.retention import Slot
from fractal.crypto.stream import SEGMENT

__all__ = [
    "KIND",
    "MAX_SEGMENTS",
    "ObjectRef",
    "Record",
    "RecordBody",
    "Segment",
    "check_segments",
    "make_record",
    "object_header",
    "record_of",
]

MAX_SEGMENTS = 1 << 14
"""One TiB per object."""
KIND = "archive-record"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Where a sealed stream is, and who can open it."""

    id: str
    """Random, lower-case hex."""
    segments: tuple[Segment, ...]
    sealed_key: bytes
    """The object's key, sealed to the app's public key."""
    generation: int
    """Of the app's key."""

    @property
    def stored(self) -> int:
        """Bytes in the store."""
        return sum(s.size for s in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBody:
    """What a record says; its place in the store says epoch and number."""

    format: str
    """The snapshotter's stream format, e.g. `portable/1`."""
    object: ObjectRef
    parent: Point | None = None
    """The snapshot against which the stream was sent; None: a full one."""
    parent_hash: bytes = b""
    """Hash of the parent's record."""
    previous_hash: bytes = b""
    """Hash of the record before it in its epoch, so that none can be taken out; of the parent's for an epoch's first."""
    wall_ms: int = 0
    """The snapshot's own time, by the wall clock of its device: a label."""
    level: int = 0
    """0: a tick; 1 to 3: a merge, another way to the same moment."""
    manifest_hash: bytes = b""
    """BLAKE2b of the manifest's text that the app ran by."""
    name: str = ""
    """What the snapshot is called on its device: tells an owner that was killed whether it wrote it already."""
    moment_hash: bytes = b""
    """Of a merge: hash of the moment's own record, in whose place it stands; b"" in that record itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record with its place and author, verified."""

    epoch: int
    number: int
    device: str
    """Who wrote and signed it."""
    body: RecordBody
    hash: bytes = field(repr=False)
    """Names exactly this record; later ones refer to it by that."""

    @property
    def point(self) -> Point:
        """Its place in the app's archive."""
        return Point(epoch=self.epoch, number=self.number)

    @property
    def slot(self) -> Slot:
        """Its name: the moment and the level."""
        return self.point, self.level

    @property
    def identity(self) -> bytes:
        """Names the moment, by whichever record one comes to it: what later records call their `parent_hash`."""
        return self.body.moment_hash or self.hash

    @property
    def parent(self) -> Point | None:
        """The snapshot that the stream builds on; None: a full one."""
        return self.body.parent

    @property
    def wall_ms(self) -> int:
        """The snapshot's own time: a label."""
        return self.body.wall_ms

    @property
    def level(self) -> int:
        """0: a tick."""
        return self.body.level

    @property
    def format(self) -> str:
        """Format of the stream."""
        return self.body.format

    @property
    def stored(self) -> int:
        """Bytes in the store."""
        return self.body.object.stored


def record_of(key: str, slot: Slot, device: str, body: Value) -> Record:
    """The record out of a statement that stood under `key`. Raises Corrupt."""
    point, level = slot
    try:
        said = from_plain(RecordBody, body)
        _check(point, level, said)
    except InvalidInput as error:
        raise Corrupt(f"{key}: {error}") from error
    return make_record(point, device, said, key)


def make_record(point: Point, device: str, body: RecordBody, key: str) -> Record:
    """A record whose statement is stored, or about to be, under `key`."""
    said = key.encode() + b"\0" + device.encode() + b"\0" + encode(to_plain(body))
    digest = blake2b(said, digest_size=32, person=b"fhs-record").digest()
    return Record(epoch=point.epoch, number=point.number, device=device, body=body, hash=digest)


def object_header(group: str, app: str, epoch: int, body: RecordBody) -> Value:
    """The header of a record's object: what the sealed stream is bound to."""
    parent = body.parent
    return {
        "group": group,
        "app": app,
        "object": body.object.id,
        "kind": "snapshot",
        "epoch": epoch,
        "parent": [parent.epoch, parent.number] if parent else [],
        "format": body.format,
        "level": body.level,
        "generation": body.object.generation,
    }


def _check(point: Point, level: int, body: RecordBody) -> None:
    ref = body.object
    if not is_id(ref.id) or ref.generation < 0 or not body.format.isprintable():
        raise InvalidInput("malformed")
    if body.level != level or len(body.moment_hash) != (32 if level else 0):
        raise InvalidInput("not of the level that its name says")
    check_segments(ref.segments)
    if body.parent is None:
        return
    # Parents are older, so that every chain ends.
    if body.parent.number < 1 or body.parent >= point or len(body.parent_hash) != 32:
        raise InvalidInput("a parent that is not older")


def check_segments(segments: Sequence[Segment]) -> None:
    """Raises InvalidInput for segments that no object has."""
    if not 0 < len(segments) <= MAX_SEGMENTS:
        raise InvalidInput(f"{len(segments)} segments")
    if any(not 0 < s.size <= SEGMENT or len(s.hash) != 32 for s in segments):
        raise InvalidInput("a segment of impossible size")
    if any(s.size != SEGMENT for s in segments[:-1]):
        raise InvalidInput("a segment that is not full before the last")
