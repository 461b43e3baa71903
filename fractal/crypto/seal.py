"""Sealing: the envelope of a log entry, and bytes for everybody in the group.

An envelope is a canonical object (docs/explanation/decisions/0004-log-envelope.md). Its outside, the header, is what a
fold must know before it can unseal; its inside is sealed to the group key with the header as additional data and padded,
so that a log server sees who writes when, and not what. The signature covers both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nacl import bindings
from nacl.exceptions import CryptoError

from fractal.api import canonical
from fractal.api.context import Entropy
from fractal.api.coordination import MAX_ENTRY
from fractal.api.errors import Corrupt, Denied, InvalidInput
from fractal.api.plain import to_plain
from fractal.core.entries import KINDS, Entry, GroupCreated, NewDevice, NewMember
from fractal.core.log import (
    Header,
    Ignored,
    Invalid,
    Knocked,
    Opened,
    Opening,
    Unsealable,
    group_id,
)
from fractal.core.model import GroupState
from fractal.crypto import keys as key_module
from fractal.crypto.keys import (
    KEY_SIZE,
    SIGNATURE_SIZE,
    DeviceKeys,
    device_statement,
    member_statement,
    statement,
    verify,
)

VERSION = 1
NONCE_SIZE = 24
TAG_SIZE = 16
SMALLEST_BUCKET = 256

_HASH = 32
_MAX_AUTHOR = 64
_KIND_OF: Mapping[type, str] = {body: kind for kind, body in KINDS.items()}


# --- sealing under a symmetric key -----------------------------------------------------------------------------------


def seal_group(plain: bytes, group_key: bytes, aad: bytes, entropy: Entropy) -> bytes:
    """`plain` for whoever holds the key: nonce, then XChaCha20-Poly1305 bound to `aad`.

    The nonce is random: 192 bits do not repeat. `aad` begins with what the value is for; see `keys.statement`.
    """
    nonce = entropy.bytes(NONCE_SIZE)
    return nonce + bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, aad, nonce, group_key)


def open_group(sealed: bytes, group_key: bytes, aad: bytes) -> bytes:
    """What `seal_group` sealed under the same key and `aad`. Raises Corrupt."""
    if len(sealed) < NONCE_SIZE + TAG_SIZE:
        raise Corrupt("sealed value is too short to be one")
    nonce, box = sealed[:NONCE_SIZE], sealed[NONCE_SIZE:]
    try:
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(box, aad, nonce, group_key)
    except (CryptoError, ValueError) as error:
        raise Corrupt("sealed value does not open: damaged, moved, or under another key") from error


def key_check(group_key: bytes) -> bytes:
    """A commitment to a group key that tells nothing about it: 32 bytes, stated in the entry that brings the key."""
    return hashlib.blake2b(group_key, digest_size=_HASH, person=b"fhs-keycheck").digest()


def pad(data: bytes) -> bytes:
    """`data` with its length before it, filled up to a bucket: 256, then four steps to each doubling."""
    framed = len(data).to_bytes(4, "big") + data
    return framed + bytes(_bucket(len(framed)) - len(framed))


def unpad(padded: bytes) -> bytes:
    """What `pad` padded. Raises InvalidInput for anything that `pad` does not give."""
    length = int.from_bytes(padded[:4], "big")
    data = padded[4 : 4 + length]
    if len(padded) < 4 or len(data) != length or pad(data) != padded:
        raise InvalidInput("padding is wrong")
    return data


def _bucket(size: int) -> int:
    if size <= SMALLEST_BUCKET:
        return SMALLEST_BUCKET
    step = 1 << max((size - 1).bit_length() - 3, 6)
    return -(-size // step) * step


# --- the envelope ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A parsed envelope. Nothing in it is believed before its signature was checked."""

    group: str
    author: str
    number: int
    prev: bytes
    position: int
    head: bytes
    generation: int
    box: bytes = field(default=b"", repr=False)
    sig: bytes = field(default=b"", repr=False)
    """The author's signature over `signed()`."""

    def _plain(self) -> dict[str, Any]:
        return {
            "v": VERSION,
            "type": "entry",
            "group": self.group,
            "author": self.author,
            "number": self.number,
            "prev": canonical.pack(self.prev),
            "position": self.position,
            "head": canonical.pack(self.head),
            "generation": self.generation,
        }

    def aad(self) -> bytes:
        """The header in canonical form: additional data of the box."""
        return statement("entry box", canonical.encode(self._plain()))

    def signed(self) -> bytes:
        """What the signature covers: header and box."""
        value = {**self._plain(), "box": canonical.pack(self.box)}
        return statement("entry", canonical.encode(value))

    def to_bytes(self) -> bytes:
        """The raw entry. Raises InvalidInput if it is larger than a log takes."""
        value = {**self._plain(), "box": canonical.pack(self.box), "sig": canonical.pack(self.sig)}
        raw = canonical.encode(value)
        if len(raw) > MAX_ENTRY:
            raise InvalidInput(f"entry of {len(raw)} bytes where a log takes {MAX_ENTRY}: make it smaller")
        return raw

    def header(self) -> Header:
        """What the fold checks."""
        return Header(
            author=self.author,
            number=self.number,
            prev=self.prev,
            position=self.position,
            head=self.head,
            generation=self.generation,
        )


def parse_envelope(raw: bytes) -> Envelope:
    """The envelope in these bytes. Raises InvalidInput for whatever is not exactly one."""
    value = canonical.decode(raw, limit=MAX_ENTRY)
    if value.get("v") != VERSION or value.get("type") != "entry":
        raise InvalidInput("an envelope of another version or type")
    expected = {
        "v",
        "type",
        "group",
        "author",
        "number",
        "prev",
        "position",
        "head",
        "generation",
        "box",
        "sig",
    }
    if set(value) != expected:
        raise InvalidInput("not the fields of an envelope")
    envelope = Envelope(
        group=_text(value, "group"),
        author=_text(value, "author"),
        number=_count(value, "number"),
        prev=canonical.unpack(value["prev"]),
        position=_count(value, "position"),
        head=canonical.unpack(value["head"]),
        generation=_count(value, "generation"),
        box=canonical.unpack(value["box"]),
        sig=canonical.unpack(value["sig"], size=SIGNATURE_SIZE),
    )
    if len(envelope.prev) not in (0, _HASH) or len(envelope.head) not in (0, _HASH):
        raise InvalidInput("a hash in the envelope has the wrong length")
    return envelope


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value[name]
    if not isinstance(text, str) or len(text) > _MAX_AUTHOR:
        raise InvalidInput(f"{name} of an envelope is no short text")
    return text


def _count(value: Mapping[str, Any], name: str) -> int:
    number = value[name]
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise InvalidInput(f"{name} of an envelope is no count")
    return number


def payload_of(entry: Entry) -> bytes:
    """The inside of an entry: its kind and body in canonical form."""
    return canonical.encode({"kind": _KIND_OF[type(entry)], "body": to_plain(entry)})


def seal_entry(
    entry: Entry, *, state: GroupState, keys: DeviceKeys, group_key: bytes, entropy: Entropy
) -> bytes:
    """The author's next entry, after all that `state` has folded, under the group key of its generation.

    The first entry of a group is `seal_genesis`'s. Raises InvalidInput if the entry is too large.
    """
    last = state.authors.get(keys.id)
    envelope = Envelope(
        group=state.id,
        author=keys.id,
        number=last.number + 1 if last else 1,
        prev=last.hash if last else b"",
        position=state.position,
        head=state.head,
        generation=state.generation,
    )
    return _sealed(envelope, payload_of(entry), keys, group_key, entropy)


def seal_genesis(
    entry: GroupCreated, *, keys: DeviceKeys, group_key: bytes, entropy: Entropy
) -> tuple[str, bytes]:
    """A new group's id and its first entry, by its first device. The id is the entry's hash."""
    envelope = Envelope(group="", author=keys.id, number=1, prev=b"", position=0, head=b"", generation=1)
    raw = _sealed(envelope, payload_of(entry), keys, group_key, entropy)
    return group_id(raw), raw


def _sealed(
    envelope: Envelope, payload: bytes, keys: DeviceKeys, group_key: bytes, entropy: Entropy
) -> bytes:
    boxed = replace(envelope, box=seal_group(pad(payload), group_key, envelope.aad(), entropy))
    return replace(boxed, sig=keys.sign(boxed.signed())).to_bytes()


# --- opening ---------------------------------------------------------------------------------------------------------


class GroupOpener:
    """What one device can verify and unseal; satisfies `core.log.Opener`.

    Group keys come from `extra` (a welcome, or this device made them) or, sealed to this device, out of the state. A key
    that does not fit the check in the log counts as absent: whoever handed out different keys makes the others stop
    believing in the log, not read different ones.
    """

    def __init__(self, keys: DeviceKeys, extra: Mapping[int, bytes] | None = None) -> None:
        self._keys = keys
        self._extra = dict(extra or {})
        self._known: dict[tuple[int, bytes], bytes] = {}

    @property
    def device(self) -> str:
        """Id of the reader's device."""
        return self._keys.id

    def add(self, extra: Mapping[int, bytes]) -> None:
        """More group keys, by generation."""
        self._extra.update(extra)

    def group_key(self, state: GroupState, generation: int) -> bytes | None:
        """The group key of that generation, None if this device does not have it."""
        check = state.key_checks.get(str(generation))
        if check is None:
            return None
        known = self._known.get((generation, check))
        if known is None:
            offered = self._offered(generation, state.group_keys.get(str(generation), {}))
            known = next((k for k in offered if key_check(k) == check), None)
            if known is not None:
                self._known[generation, check] = known
        return known

    def _offered(self, generation: int, boxes: Mapping[str, bytes]) -> list[bytes]:
        found = [self._extra[generation]] if generation in self._extra else []
        if self.device in boxes:
            try:
                found.append(self._keys.unseal(boxes[self.device]))
            except Corrupt:
                return found
        return [key for key in found if len(key) == KEY_SIZE]

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """As `keys.verify`."""
        return verify(public, message, signature)

    def device_of(self, new: NewDevice, member_key: bytes) -> str:
        """As `core.log.Opener`."""
        said = device_statement(new.member, new.sign_key, new.box_key)
        if len(new.sign_key) != KEY_SIZE or not key_module.is_box_key(new.box_key):
            return ""
        return key_module.device_id(new.sign_key) if self.verify(member_key, said, new.certificate) else ""

    def member_of(self, new: NewMember, by_key: bytes) -> str:
        """As `core.log.Opener`."""
        said = member_statement(new.key, new.role.value)
        if len(new.key) != KEY_SIZE:
            return ""
        return key_module.member_id(new.key) if self.verify(by_key, said, new.certificate) else ""

    def shared(
        self, generation: int, check: bytes, sealed: Mapping[str, bytes], box_keys: Mapping[str, bytes]
    ) -> bool:
        """As `core.log.Opener`. Whoever got a wrong key knows it by its own; whoever got the right one checks the others'.

        A newcomer was welcomed with the keys of all rotations that stand: one that fits none of them is no rotation.
        """
        key = next((k for k in self._offered(generation, sealed) if key_check(k) == check), None)
        return key is not None and all(
            box == key_module.seal_shared(box_keys[device], key) for device, box in sealed.items()
        )

    def open(self, raw: bytes, state: GroupState, /) -> Opening:
        """As `core.log.Opener`."""
        try:
            envelope = parse_envelope(raw)
        except InvalidInput as error:
            return self._open_other(raw, state, f"not an entry: {error}")
        if not state.generation:
            return self._open_first(envelope, raw, state)
        if envelope.group != state.id:
            return Invalid("an entry of another group")
        author = state.devices.get(envelope.author)
        if author is None:
            return Invalid("an entry of a device that is not in the group")
        if author.removed:
            return Invalid(f"an entry of device {author.id}, which was removed")
        if not self.verify(author.sign_key, envelope.signed(), envelope.sig):
            return Invalid(f"the signature is not that of device {author.id}")
        group_key = self.group_key(state, envelope.generation)
        if group_key is None:
            return Unsealable(envelope.header())
        return _unseal(envelope, group_key)

    def peek(self, raw: bytes, state: GroupState) -> tuple[str, str, Mapping[str, Any]]:
        """Author, kind and body of an entry as they stand there, for showing only: nothing of it is verified.

        Kind "" and an empty body for what this device cannot unseal; author "" for what is no entry.
        """
        try:
            envelope = parse_envelope(raw)
        except InvalidInput:
            return "", "", {}
        group_key = self.group_key(state, envelope.generation)
        opened = _unseal(envelope, group_key) if group_key is not None else None
        return (
            (envelope.author, opened.kind, opened.body)
            if isinstance(opened, Opened)
            else (envelope.author, "", {})
        )

    def _open_first(self, envelope: Envelope, raw: bytes, state: GroupState) -> Opening:
        """The first entry: proved by its hash, which is the group's id, and by the device that it brings itself."""
        if envelope.group:
            return Invalid("comes before the group's first entry")
        if state.id and group_id(raw) != state.id:
            return Invalid("the first entry of another group")
        group_key = self._extra.get(1)
        if group_key is None or len(group_key) != KEY_SIZE:
            return (
                Unsealable(envelope.header()) if state.id else Invalid("a first entry that does not unseal")
            )
        opened = _unseal(envelope, group_key)
        if not isinstance(opened, Opened) or _stated_check(opened) != key_check(group_key):
            # The hash is right, so the entry is; it is the key that is wrong.
            return (
                Unsealable(envelope.header()) if state.id else Invalid("a first entry that does not unseal")
            )
        sign_key = _stated_sign_key(opened)
        mine = key_module.device_id(sign_key) == envelope.author
        if not mine or not self.verify(sign_key, envelope.signed(), envelope.sig):
            return Invalid("the first entry is not signed by the first device")
        return opened

    def _open_other(self, raw: bytes, state: GroupState, reason: str) -> Opening:
        """What joining puts into the log beside entries."""
        # Late, as joining builds upon sealing.
        from fractal.crypto.join import envelope_type, open_request

        kind = envelope_type(raw, state.id) if state.generation else ""
        if kind == "welcome":
            return Ignored()
        if kind != "join":
            return Invalid(reason)
        try:
            return Knocked(*open_request(raw, state.id, state.invitations))
        except (InvalidInput, Denied) as error:
            return Invalid(str(error))


def _unseal(envelope: Envelope, group_key: bytes) -> Opening:
    try:
        padded = open_group(envelope.box, group_key, envelope.aad())
    except Corrupt:
        return Invalid("signed, but does not unseal")
    try:
        payload = canonical.decode(unpad(padded), limit=MAX_ENTRY)
    except InvalidInput:
        return Opened(envelope.header(), "", {})
    kind, body = payload.get("kind"), payload.get("body")
    if not isinstance(kind, str) or not isinstance(body, dict):
        return Opened(envelope.header(), "", {})
    return Opened(envelope.header(), kind, body)


def _stated_check(opened: Opened) -> bytes:
    try:
        return canonical.unpack(opened.body.get("key_check"))
    except InvalidInput:
        return b""


def _stated_sign_key(opened: Opened) -> bytes:
    device = opened.body.get("device")
    try:
        return canonical.unpack(device.get("sign_key") if isinstance(device, dict) else None)
    except InvalidInput:
        return b""
