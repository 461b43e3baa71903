"""What is not quite as on a real device: pure functions are computed once for all, and an archive's day is short.

Whether a signature holds, what opens with a key and what a beat, an entry or a small object of the store says depends on bytes
and keys alone, so that remembering it changes no history, only its price. What somebody here signed or sealed is known to hold and to open, and what he said in a beat to
be what is read there, before anybody asks. The fold is such a function too, of the state, the entry and the reader's keys: an agent
that starts again folds the same entries again. Every byte that is sealed, signed and stored in a simulation is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, TypeVar

import fractal.agent.care as care
import fractal.agent.jobs.beating as beating
import fractal.agent.journal as journal
import fractal.archive.epochs as epochs
import fractal.archive.reading as reading
import fractal.crypto.keys as keys
import fractal.crypto.seal as seal
from fractal.agent.beats import Beat, beat_bytes, read_beat
from fractal.api.canonical import Value
from fractal.api.errors import FractalError
from fractal.archive.archive import Archive
from fractal.archive.records import Record
from fractal.archive.sealed import GroupKey, SignKeyOf, Statement
from fractal.core.model import GroupState
from fractal.core.retention import Slot
from fractal.crypto.keys import DeviceKeys
from fractal.crypto.seal import Envelope, GroupOpener, parse_envelope

K = TypeVar("K")
V = TypeVar("V")
Fold = Callable[[GroupState, bytes, GroupOpener], GroupState]
SEED_SIZE = 32
"""Bytes of a signing key before its public half (Ed25519, as libsodium keeps it)."""
DAY = 120.0
"""Seconds of a day of verifying and collecting, so that a seed sees some of them: its hour, and the 24 h for which an object must
have been an orphan, are as much shorter."""
MOST = 20_000
"""Results that are remembered; then all are forgotten."""
STATES = 2_000
"""The same for folded states, which are larger."""


@contextmanager
def once() -> Iterator[None]:
    """Remember meanwhile."""
    real: Any = keys
    sealing: Any = seal
    jobs: Any = beating
    logs: Any = journal
    records: Any = reading
    locks: Any = epochs
    bindings = real.bindings
    read: dict[tuple[bytes, str], tuple[bytes | None, Beat]] = {}
    parsed: dict[bytes, Envelope] = {}

    def parse(raw: bytes) -> Envelope:
        return parsed.get(raw) or _remember(parsed, raw, parse_envelope(raw))

    def said(beat: Beat, group: str, keys: DeviceKeys) -> bytes:
        data = beat_bytes(beat, group, keys)
        _remember(read, (data, group), (keys.sign_public, beat))
        return data

    def read_one(data: bytes, group: str, sign_key_of: Callable[[str], bytes | None]) -> Beat:
        known = read.get((data, group))
        if known is None or sign_key_of(known[1].device) != known[0]:
            beat = read_beat(data, group, sign_key_of)
            _remember(read, (data, group), (sign_key_of(beat.device), beat))
            return beat
        return known[1]

    told = jobs.read_beat, jobs.beat_bytes, sealing.parse_envelope
    jobs.read_beat, jobs.beat_bytes, sealing.parse_envelope = read_one, said, parse
    stored = logs.fold, records.open_statement, locks.open_statement, records.record_of
    logs.fold, records.record_of = _folding(logs.fold), _recording(records.record_of)
    records.open_statement, locks.open_statement = map(_opening, stored[1:3])
    real.bindings = sealing.bindings = SimpleNamespace(**{**vars(bindings), **_remembering(bindings)})
    try:
        yield
    finally:
        real.bindings = sealing.bindings = bindings
        logs.fold, records.open_statement, locks.open_statement, records.record_of = stored
        jobs.read_beat, jobs.beat_bytes, sealing.parse_envelope = told


def _opening(open_statement: Callable[..., Statement]) -> Callable[..., Statement]:
    """`open_statement` that opens an object of the store once, for all who have the same keys of the group and of its writer."""
    opened: dict[tuple[str, str, bytes], tuple[tuple[int, bytes], bytes | None, Statement]] = {}

    def still(
        by: tuple[int, bytes], public: bytes | None, said: Statement, own: GroupKey, of: SignKeyOf
    ) -> bool:
        with suppress(FractalError, LookupError):
            return own(by[0]) == by and of(said.by) == public
        return False

    def opening(
        kind: str, key: str, data: bytes, *, sign_key_of: SignKeyOf, group_key: GroupKey
    ) -> Statement:
        known = opened.get((kind, key, data))
        if known is not None and still(*known, group_key, sign_key_of):
            return known[2]
        used: list[tuple[int, bytes]] = []

        def asked(generation: int | None) -> tuple[int, bytes]:
            used.append(group_key(generation))
            return used[-1]

        said = open_statement(kind, key, data, sign_key_of=sign_key_of, group_key=asked)
        _remember(opened, (kind, key, data), (used[-1], sign_key_of(said.by), said))
        return said

    return opening


def _recording(
    record_of: Callable[[str, Slot, str, Value], Record],
) -> Callable[[str, Slot, str, Value], Record]:
    """`record_of` that reads the body of a statement once."""
    made: dict[tuple[str, Slot, str, int], tuple[Value, Record]] = {}

    def recording(key: str, slot: Slot, device: str, body: Value) -> Record:
        # What is remembered holds the body, so that its id is no other's meanwhile.
        place = key, slot, device, id(body)
        known = made.get(place) or _remember(made, place, (body, record_of(key, slot, device, body)))
        return known[1]

    return recording


def _folding(fold: Fold) -> Fold:
    """`fold` that folds an entry after the very same state for the very same keys once; from the beginning on states are the same."""
    beginnings: dict[str, GroupState] = {}
    folded: dict[tuple[Any, ...], tuple[GroupState, GroupState]] = {}

    def step(state: GroupState, raw: bytes, opener: GroupOpener) -> GroupState:
        if not state.position and state == GroupState(id=state.id):
            state = beginnings.setdefault(state.id, state)
        inside: Any = opener
        # What is remembered holds the state, so that its id is no other's meanwhile.
        key = id(state), raw, inside._keys, frozenset(inside._extra.items())
        known = folded.get(key) or _remember(folded, key, (state, fold(state, raw, opener)), STATES)
        return known[1]

    return step


def _remembering(bindings: Any) -> dict[str, Callable[..., bytes]]:
    """Functions of libsodium that give the same for the same bytes, by name; each computes once."""
    held: dict[tuple[bytes, bytes], bytes] = {}
    opened: dict[tuple[bytes, bytes, bytes, bytes], bytes] = {}
    unsealed: dict[tuple[bytes, bytes, bytes], bytes] = {}
    publics: dict[bytes, bytes] = {}

    def sign(message: bytes, secret: bytes) -> bytes:
        signed: bytes = bindings.crypto_sign(message, secret)
        _remember(held, (signed, secret[SEED_SIZE:]), message)
        return signed

    def sign_open(signed: bytes, public: bytes) -> bytes:
        known = held.get((signed, public))
        if known is None:
            known = _remember(held, (signed, public), bindings.crypto_sign_open(signed, public))
        return known

    def encrypt(plain: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes:
        box: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, aad, nonce, key)
        _remember(opened, (box, aad, nonce, key), bytes(plain))
        return box

    def decrypt(box: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes:
        known = opened.get((box, aad, nonce, key))
        if known is None:
            plain = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(box, aad, nonce, key)
            known = _remember(opened, (box, aad, nonce, key), plain)
        return known

    def unseal(sealed: bytes, public: bytes, secret: bytes) -> bytes:
        known = unsealed.get((sealed, public, secret))
        if known is None:
            plain = bindings.crypto_box_seal_open(sealed, public, secret)
            known = _remember(unsealed, (sealed, public, secret), plain)
        return known

    def public_of(secret: bytes) -> bytes:
        known = publics.get(secret)
        return known or _remember(publics, secret, bindings.crypto_scalarmult_base(secret))

    return {
        "crypto_sign": sign,
        "crypto_sign_open": sign_open,
        "crypto_aead_xchacha20poly1305_ietf_encrypt": encrypt,
        "crypto_aead_xchacha20poly1305_ietf_decrypt": decrypt,
        "crypto_box_seal_open": unseal,
        "crypto_scalarmult_base": public_of,
    }


def _remember(known: dict[K, V], key: K, value: V, most: int = MOST) -> V:
    if len(known) > most:
        known.clear()
    known[key] = value
    return value


@contextmanager
def hurried() -> Iterator[None]:
    """A day is two minutes long for those who verify archives and collect orphans."""
    job: Any = care
    orphans: Any = Archive.collect_orphans.__kwdefaults__
    merged: Any = Archive.collect.__kwdefaults__
    told = job.DAY_MS, job.HOUR_MS, job.LOOK, job.FIRST, orphans["grace"]
    job.DAY_MS, job.HOUR_MS, job.LOOK, job.FIRST = int(1000 * DAY), int(1000 * DAY / 8), DAY / 12, DAY / 6
    orphans["grace"] = merged["grace"] = DAY
    try:
        yield
    finally:
        job.DAY_MS, job.HOUR_MS, job.LOOK, job.FIRST, grace = told
        orphans["grace"] = merged["grace"] = grace
