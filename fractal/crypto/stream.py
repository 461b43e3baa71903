"""The bulk format: a byte stream of any length as one sealed object (docs/reference/archive-format.md).

    object  = magic  frame*  trailer
    frame   = sealed(u32 length of body, u8 kind)  sealed(body)        body = zstd of at most 8 MiB of the stream
    trailer = a frame of kind 1                                        body = canonical JSON, then zeros as padding

An object has a header, canonical JSON that says what it is. It is not stored with it, as it would tell the store things:
the record says it all. Its hash is additional data of everything that is sealed. Each object has a random key of its own,
from which the sealing key is derived together with the header, and nonces count the frames: they cannot repeat, and a
frame that was cut off, swapped, repeated or taken from another object does not open. Lengths are sealed too, and the
trailer's padding rounds the object up, so that sizes tell little of what an app does.

The key of an object seals nothing else, so 96-bit nonces that count need no randomness, and OpenSSL's ChaCha20-Poly1305 can
be used: four times as fast as libsodium's XChaCha20 on a PC, more on the small ARM boards. zstd releases the interpreter's
lock, so frames are sealed in a few threads at once; everything here may be called from any of them.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, sha256

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fractal.api.canonical import Value, encode, pack
from fractal.api.errors import Corrupt, InvalidInput

FRAME = 8 << 20
"""Bytes of the raw stream per frame. 1 MiB frames store 14 % more on ticks; larger ones only cost memory."""
SEGMENT = 64 << 20
"""Bytes per stored part of an object."""
KEY_SIZE = 32
HASH_SIZE = 32
MAGIC = b"FHSobj\x01\x01"
"""Format version 1, suite 1: zstd, ChaCha20-Poly1305, BLAKE2b for keys, SHA-256 for the stream (processors help with it)."""
LEVEL = 3
"""zstd level: 6 and more take 2.5 times the time for 2 % of the bytes."""
QUICK = zstandard.ZstdCompressionParameters(
    window_log=21,
    chain_log=16,
    hash_log=17,
    search_log=1,
    min_match=6,
    target_length=0,
    strategy=zstandard.STRATEGY_FAST,
)
"""What takes three quarters of that level's time, for 1 % more bytes of an app's data (4 % of programs): between levels 2 and 3."""

_TAG = 16
_HEAD = struct.Struct(">IB")
_HEAD_SIZE = _HEAD.size + _TAG
_DATA, _TRAILER = 0, 1
_MAX_HEADER = 4096
_MAX_BODY = 2 * FRAME
_BUCKETS = tuple(math.ceil(2 ** (power / 16)) for power in range(12 * 16, 26 * 16 + 1))
"""Sizes of the part of an object that lies in its last segment, from 4 KiB to a whole segment."""


@dataclass(frozen=True, slots=True)
class Raw:
    """What the trailer says of the raw stream."""

    length: int
    hash: bytes
    """SHA-256 over the SHA-256 hashes of its frames of 8 MiB each, so that frames are hashed side by side."""


@dataclass(frozen=True)
class ObjectSeal:
    """Seals and opens the frames of one object. Thread-safe."""

    hash: bytes
    """Of the header: additional data of everything sealed."""
    _cipher: ChaCha20Poly1305 = field(repr=False)
    _idle: list[_Desk] = field(default_factory=list, repr=False)
    """What no frame is being sealed with at the moment."""

    @classmethod
    def of(cls, object_key: bytes, header: Value) -> ObjectSeal:
        """For an object with that key and header."""
        text = encode(header)
        if len(text) > _MAX_HEADER:
            raise InvalidInput(f"an object's header of {len(text)} bytes: at most {_MAX_HEADER} are allowed")
        if len(object_key) != KEY_SIZE:
            raise Corrupt("an object's key has the wrong length")
        text = MAGIC + text
        key = blake2b(text, key=object_key, digest_size=KEY_SIZE, person=b"fhs-object").digest()
        return cls(blake2b(text, digest_size=HASH_SIZE, person=b"fhs-header").digest(), ChaCha20Poly1305(key))

    def frame(self, index: int, chunks: list[bytes], quick: bool = False) -> tuple[list[bytes], bytes]:
        """Frame number `index` (from 0) as stored, in parts, and the hash of its raw bytes, at most `FRAME` of them.

        `chunks` is emptied, so that nobody keeps what was taken in. `quick`: time matters more than bytes.
        """
        desk = self._idle.pop() if self._idle else _Desk()
        digest = _frame_hash()
        with desk.gather(chunks) as raw:
            digest.update(raw)
            body = (desk.quick if quick else desk.thorough).compress(raw)
        self._idle.append(desk)
        return self._seal(index, _DATA, body), digest.digest()

    def trailer(self, index: int, raw: Raw, written: int) -> list[bytes]:
        """What follows the last frame. `index` is the number of frames, `written` the bytes of the object so far."""
        text = encode(_trailer(raw, index))
        end = written + _HEAD_SIZE + len(text) + _TAG
        return self._seal(index, _TRAILER, text + bytes(padding(end)))

    def open_head(self, index: int, sealed: bytes) -> tuple[int, int]:
        """Length of the sealed body that follows, and its kind. Raises Corrupt."""
        length, kind = _HEAD.unpack(self._open(2 * index, sealed))
        if kind not in (_DATA, _TRAILER) or length > _MAX_BODY:
            raise Corrupt(f"frame {index} has an impossible length or kind")
        return length + _TAG, kind

    def open_body(self, index: int, sealed: bytes) -> bytes:
        """The body of frame `index`. Raises Corrupt."""
        return self._open(2 * index + 1, sealed)

    def open_data(self, index: int, sealed: bytes) -> tuple[bytes, bytes]:
        """Raw bytes of frame `index` and their hash. Raises Corrupt."""
        body = self.open_body(index, sealed)
        try:
            size = zstandard.frame_content_size(body)
            if not 0 <= size <= FRAME:
                raise Corrupt(f"frame {index} would unfold to {size} bytes")
            raw = zstandard.ZstdDecompressor().decompress(body, max_output_size=FRAME)
        except zstandard.ZstdError as error:
            raise Corrupt(f"frame {index} does not decompress") from error
        digest = _frame_hash()
        digest.update(raw)
        return raw, digest.digest()

    def _seal(self, index: int, kind: int, body: bytes) -> list[bytes]:
        head = self._cipher.encrypt(_nonce(2 * index), _HEAD.pack(len(body), kind), self.hash)
        return [head, self._cipher.encrypt(_nonce(2 * index + 1), body, self.hash)]

    def _open(self, counter: int, sealed: bytes) -> bytes:
        try:
            return self._cipher.decrypt(_nonce(counter), sealed, self.hash)
        except (InvalidTag, ValueError) as error:
            raise Corrupt(f"frame {counter // 2} is damaged or from elsewhere") from error


class _Desk:
    """Compressors and room for a raw frame, used for one frame after the other.

    A frame is gathered in one place and then hashed and compressed by one call each: each call lets go of the interpreter's lock
    and has to get it back, which takes long where other threads, or other programs, want the processors as well. The
    room is kept, as the kernel clears every page of fresh memory, which costs more than the cipher.
    """

    def __init__(self) -> None:
        self._room = memoryview(mmap.mmap(-1, FRAME))

    @cached_property
    def thorough(self) -> zstandard.ZstdCompressor:
        """Most objects are of one frame, and need one of the two."""
        return zstandard.ZstdCompressor(level=LEVEL)

    @cached_property
    def quick(self) -> zstandard.ZstdCompressor:
        """The other."""
        return zstandard.ZstdCompressor(compression_params=QUICK)

    @contextmanager
    def gather(self, chunks: list[bytes]) -> Iterator[memoryview]:
        """The chunks in a row, until the context ends; the list is emptied."""
        size = 0
        for chunk in chunks:
            self._room[size : size + len(chunk)] = chunk
            size += len(chunk)
        chunks.clear()
        with self._room[:size] as raw:
            yield raw


class ObjectReader:
    """Opens a whole object in order. `read(n)` gives the next at most `n` bytes of it, b"" at its end."""

    def __init__(self, object_key: bytes, header: Value, read: Callable[[int], bytes]) -> None:
        self._seal = ObjectSeal.of(object_key, header)
        self._read = read
        self._index = -1
        self._length = 0
        self._hashes = RawHash()
        self._trailer: bytes | None = None
        self.raw: Raw | None = None
        """Known once everything was read and found whole, in order and complete."""

    def next_frame(self) -> bytes | None:
        """The next raw bytes; None after the trailer was checked. Raises Corrupt."""
        sealed = self.next_sealed()
        if sealed is None:
            self.finish()
            return None
        return self.add(*self.open(*sealed))

    def next_sealed(self) -> tuple[int, bytes] | None:
        """The next frame as it is stored, with its number, to be opened by `open`; None at the trailer. Raises Corrupt."""
        if self._trailer is not None:
            return None
        if self._index < 0:
            if self._exactly(len(MAGIC)) != MAGIC:
                raise Corrupt("not an object of this version")
            self._index = 0
        size, kind = self._seal.open_head(self._index, self._exactly(_HEAD_SIZE))
        sealed = self._exactly(size)
        if kind == _TRAILER:
            self._trailer = self._seal.open_body(self._index, sealed)
            return None
        self._index += 1
        return self._index - 1, sealed

    def open(self, index: int, sealed: bytes) -> tuple[bytes, bytes]:
        """A frame's raw bytes and their hash, in any order and several at once. Raises Corrupt."""
        return self._seal.open_data(index, sealed)

    def add(self, raw: bytes, digest: bytes) -> bytes:
        """Count a frame that was opened, in order; its raw bytes."""
        self._hashes.add(digest)
        self._length += len(raw)
        return raw

    def finish(self) -> None:
        """After the last frame: check that the object is whole. Raises Corrupt."""
        if self.raw is None:
            if self._trailer is None:
                raise Corrupt("the object was not read to its end")
            self.raw = self._check_trailer(self._trailer)

    def _exactly(self, size: int) -> bytes:
        parts, missing = [], size
        while missing and (data := self._read(missing)):
            parts.append(data)
            missing -= len(data)
        if missing:
            raise Corrupt("the object ends too early")
        return b"".join(parts)

    def _check_trailer(self, body: bytes) -> Raw:
        if self._read(1):
            raise Corrupt("the object goes on after its end")
        raw = Raw(self._length, self._hashes.digest())
        # A value has one encoding: what says the same is the same bytes.
        if body.rstrip(b"\0") != encode(_trailer(raw, self._index)):
            raise Corrupt("the stream is not what its trailer says")
        return raw


class RawHash:
    """The hash of a raw stream, out of the hashes of its frames in order."""

    def __init__(self) -> None:
        self._hash = sha256(b"fhs-stream")

    def add(self, frame: bytes) -> None:
        """The next frame's hash."""
        self._hash.update(frame)

    def digest(self) -> bytes:
        """Over all frames so far."""
        return self._hash.digest()


def padding(end: int) -> int:
    """Zeros that bring an object of `end` bytes to a size that many objects have.

    What lies in its last segment grows to the next power of 2^(1/16): 2.2 % on average, less than a frame at most.
    """
    last = (end - 1) % SEGMENT + 1
    return _BUCKETS[bisect_left(_BUCKETS, last)] - last


def _trailer(raw: Raw, frames: int) -> Value:
    return {"length": raw.length, "hash": pack(raw.hash), "frames": frames}


def _frame_hash() -> hashlib._Hash:
    return sha256(b"fhs-frame")


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "big")
