"""Joining a group by a long code (docs/explanation/decisions/0003-joining-by-long-code.md).

A code carries a 128-bit secret, the group's id (the hash of its first entry) and what the coordination backend
joins the log by: its address, perhaps with a way to an account. From the secret come an
Ed25519 key, which proves knowledge of the code, and the lobby key, which seals what a stranger and the group say to each
other through the log before the stranger can read it. The group keeps the public key and the lobby key in its sealed log
(`Invited`), never the secret: whoever reads the log may read requests, but cannot make one.

Two envelopes travel in the log beside entries. Both count a position for everybody:

- `join`: the stranger's keys and name, signed by the device's key, sealed to the lobby key, signed by the code's key. What
  the fold does with it is `core.fold_join`;
- `welcome`: the group's keys (and its member's, if the device is for a present one), sealed to the new device's box key,
  sealed again to the lobby key, signed by the approving device. The fold ignores it.

The log server knows no secret, so it can only repeat, withhold or damage; `parse_code` ties the newcomer to one first entry.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

from fractal.api import canonical
from fractal.api.context import Entropy
from fractal.api.coordination import MAX_ENTRY
from fractal.api.errors import Corrupt, Denied, InvalidInput
from fractal.api.plain import from_plain, to_plain
from fractal.core.model import Invitation, JoinRequest
from fractal.crypto.keys import (
    KEY_SIZE,
    DeviceKeys,
    MemberKeys,
    device_id,
    device_statement,
    member_id,
    seal_to,
    statement,
    verify,
)
from fractal.crypto.seal import open_group, pad, seal_group, unpad

VERSION = 1
SECRET_SIZE = 16
"""128 bits: nobody guesses it, so it needs no PAKE and no rate limit."""
GROUP_SIZE = 16
CHECK_SIZE = 5
MAX_CODE = 4096
_PREFIX = "HS1-"
_CHUNK = 6


# --- the code --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """What an invitation's code says. Whoever has it may ask to join, once."""

    secret: bytes = field(repr=False)
    group: str
    """The group's id."""
    address: str = field(repr=False)
    """What the coordinator joins the log by: its address, and where a device needs an account also a way to one."""
    new_member: bool
    """For a person who is not in the group yet; else for one more device of somebody who is."""

    @cached_property
    def invitation(self) -> str:
        """Id of the invitation."""
        return self._derive(b"fhs-invite-id", 10).hex()

    @cached_property
    def lobby_key(self) -> bytes:
        """Symmetric key of requests and welcomes."""
        return self._derive(b"fhs-invite-lobby", KEY_SIZE)

    @cached_property
    def signer(self) -> MemberKeys:
        """The Ed25519 pair that proves knowledge of the code."""
        return MemberKeys(self._derive(b"fhs-invite-sign", KEY_SIZE))

    def _derive(self, purpose: bytes, size: int) -> bytes:
        group = bytes.fromhex(self.group)
        return blake2b(group, digest_size=size, key=self.secret, person=purpose).digest()


def new_code(group: str, address: str, entropy: Entropy, *, new_member: bool) -> Code:
    """A fresh invitation's code."""
    return Code(entropy.bytes(SECRET_SIZE), group, address, new_member)


def make_code(code: Code) -> str:
    """The text to hand to the person who joins. Raises InvalidInput for a group id or address that cannot be carried."""
    try:
        group = bytes.fromhex(code.group)
    except ValueError as error:
        raise InvalidInput(f"group id {code.group[:60]!r} is not hex") from error
    if len(group) != GROUP_SIZE or len(code.secret) != SECRET_SIZE:
        raise InvalidInput("a code carries a secret and a group id of 16 bytes each")
    body = bytes([code.new_member]) + code.secret + group
    text = base64.b32encode(body + _check(body, code.address)).decode("ascii").rstrip("=")
    chunks = "-".join(text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK))
    made = f"{_PREFIX}{chunks}.{canonical.pack(code.address.encode('utf-8'))}"
    if len(made) > MAX_CODE:
        raise InvalidInput("the log's address is too long for a code")
    return made


def parse_code(text: str) -> Code:
    """The inverse of `make_code`; white space (from wrapped lines) is ignored. Raises InvalidInput on any damage."""
    if len(text) > 2 * MAX_CODE:
        raise InvalidInput("this is too long to be an invitation code")
    text = "".join(text.split())
    if not text[: len(_PREFIX)].upper() == _PREFIX:
        raise InvalidInput(f"an invitation code begins with {_PREFIX}")
    chunks, _, tail = text[len(_PREFIX) :].partition(".")
    letters = chunks.replace("-", "").upper()
    try:
        data = base64.b32decode(letters + "=" * (-len(letters) % 8))
        address = canonical.unpack(tail).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(_DAMAGED) from error
    body, check = data[:-CHECK_SIZE], data[-CHECK_SIZE:]
    exact = base64.b32encode(data).decode("ascii").rstrip("=") == letters
    if len(body) != 1 + SECRET_SIZE + GROUP_SIZE or not exact or check != _check(body, address):
        raise InvalidInput(_DAMAGED)
    if body[0] > 1:
        raise InvalidInput("this invitation code is of a newer kind: update this agent")
    return Code(body[1 : 1 + SECRET_SIZE], body[1 + SECRET_SIZE :].hex(), address, bool(body[0]))


_DAMAGED = "the invitation code is damaged or incomplete: copy it whole, from HS1- to its last letter"


def _check(body: bytes, address: str) -> bytes:
    return blake2b(
        body + address.encode("utf-8"), digest_size=CHECK_SIZE, person=b"fhs-invite-check"
    ).digest()


# --- the request -----------------------------------------------------------------------------------------------------


def join_request(
    code: Code,
    keys: DeviceKeys,
    name: str,
    entropy: Entropy,
    *,
    member: MemberKeys | None = None,
    member_name: str = "",
) -> bytes:
    """The raw envelope by which a device asks to be let in: with `member` as a new member, else for a present one.

    Raises InvalidInput if it would be too large.
    """
    request = JoinRequest(
        invitation=code.invitation,
        name=name,
        sign_key=keys.sign_public,
        box_key=keys.box_public,
        member_name=member_name if member else "",
        member_key=member.public if member else b"",
        certificate=_certificate(member, keys) if member else b"",
    )
    plain = to_plain(request)
    signature = keys.sign(_request_statement(code.group, plain))
    inside = {"request": plain, "signature": canonical.pack(signature)}
    header = _header("join", code.group, code.invitation)
    return _sealed(header, inside, code.lobby_key, code.signer, entropy)


def open_request(raw: bytes, group: str, invitations: Mapping[str, Invitation]) -> tuple[str, JoinRequest]:
    """The asking device's id and its request, proved by the code's key and the device's. For the fold's opener.

    Raises InvalidInput for what is no sound request to this group, Denied without an open invitation for it.
    """
    envelope = _parse(raw, "join", group)
    invitation = invitations.get(envelope.header["invitation"])
    if invitation is None or invitation.used:
        raise Denied("join request without an open invitation")
    if not verify(invitation.verify_key, envelope.signed(), envelope.sig):
        raise InvalidInput("join request that is not signed with the code's key")
    inside = _inside(envelope, invitation.lobby_key)
    plain = inside.get("request")
    request = from_plain(JoinRequest, plain, drop_unknown=True)
    signature = canonical.unpack(inside.get("signature"))
    if not verify(request.sign_key, _request_statement(group, plain), signature):
        raise InvalidInput("join request that is not signed with the device's key")
    if request.invitation != invitation.id or len(request.box_key) != KEY_SIZE or not _certified(request):
        raise InvalidInput("join request whose keys or certificate are wrong")
    return device_id(request.sign_key), request


def _certificate(member: MemberKeys, keys: DeviceKeys) -> bytes:
    return member.sign(device_statement(member.id, keys.sign_public, keys.box_public))


def _certified(request: JoinRequest) -> bool:
    if not request.member_key:
        return not request.certificate and not request.member_name
    said = device_statement(member_id(request.member_key), request.sign_key, request.box_key)
    return verify(request.member_key, said, request.certificate)


def _request_statement(group: str, plain: object) -> bytes:
    if not isinstance(plain, dict):
        raise InvalidInput("a join envelope without a request")
    return statement("join request", group.encode("utf-8"), canonical.encode(plain))


# --- the welcome -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Welcome:
    """What an approving device gives to the one it let in."""

    author: str
    """Id of the approving device, as it says: check with `signed_by` once the log could be folded."""
    group_keys: Mapping[int, bytes] = field(repr=False)
    """Generation -> group key."""
    member_seed: bytes = field(repr=False)
    """Seed of the member's key, b"" for a new member (who brought its own)."""
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def signed_by(self, sign_key: bytes) -> bool:
        """Whether the device with that key wrote it."""
        return device_id(sign_key) == self.author and verify(sign_key, self.signed, self.signature)


def welcome(
    invitation: Invitation,
    request: JoinRequest,
    keys: DeviceKeys,
    group: str,
    group_keys: Mapping[int, bytes],
    entropy: Entropy,
    *,
    member: MemberKeys | None = None,
) -> bytes:
    """The raw envelope for a device whose approval was read back from the log; `member` if it joins a present one.

    Raises InvalidInput if it would be too large.
    """
    secrets = {
        "keys": {str(generation): canonical.pack(key) for generation, key in group_keys.items()},
        "member": canonical.pack(member.seed if member else b""),
    }
    sealed = seal_to(request.box_key, canonical.encode(secrets), entropy)
    inside = {"device": device_id(request.sign_key), "sealed": canonical.pack(sealed)}
    header = {**_header("welcome", group, invitation.id), "author": keys.id}
    return _sealed(header, inside, invitation.lobby_key, keys, entropy)


def open_welcome(raw: bytes, code: Code, keys: DeviceKeys) -> Welcome:
    """The welcome to this device under that code. Raises InvalidInput for everything else that a log may hold."""
    envelope = _parse(raw, "welcome", code.group)
    inside = _inside(envelope, code.lobby_key)
    if envelope.header["invitation"] != code.invitation or inside.get("device") != keys.id:
        raise InvalidInput("a welcome for another device")
    try:
        secrets = canonical.decode(keys.unseal(canonical.unpack(inside.get("sealed"))))
    except Corrupt as error:
        raise InvalidInput("a welcome that is not sealed to this device") from error
    group_keys, member = secrets.get("keys"), canonical.unpack(secrets.get("member"))
    if not isinstance(group_keys, dict) or len(member) not in (0, KEY_SIZE):
        raise InvalidInput("a welcome without keys")
    return Welcome(
        author=envelope.header["author"],
        group_keys={_generation(g): canonical.unpack(key, size=KEY_SIZE) for g, key in group_keys.items()},
        member_seed=member,
        signed=envelope.signed(),
        signature=envelope.sig,
    )


def _generation(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInput("a welcome with a key of no generation")
    return int(text)


# --- envelopes -------------------------------------------------------------------------------------------------------

_FIELDS = {
    "join": {"v", "type", "group", "invitation"},
    "welcome": {"v", "type", "group", "invitation", "author"},
}


@dataclass(frozen=True)
class _Envelope:
    header: Mapping[str, Any]
    box: bytes
    sig: bytes = b""

    def signed(self) -> bytes:
        return statement(f"{self.header['type']} envelope", canonical.encode(dict(self.header)), self.box)


def envelope_type(raw: bytes, group: str) -> str:
    """`join` or `welcome` if these bytes have the form of one for that group, else "". For the fold's opener."""
    for kind in _FIELDS:
        try:
            _parse(raw, kind, group)
        except InvalidInput:
            continue
        return kind
    return ""


def _header(kind: str, group: str, invitation: str) -> dict[str, Any]:
    return {"v": VERSION, "type": kind, "group": group, "invitation": invitation}


def _sealed(
    header: Mapping[str, Any],
    inside: dict[str, Any],
    lobby_key: bytes,
    signer: DeviceKeys | MemberKeys,
    entropy: Entropy,
) -> bytes:
    box = seal_group(pad(canonical.encode(inside)), lobby_key, _aad(header), entropy)
    signature = signer.sign(_Envelope(header, box).signed())
    raw = canonical.encode({**header, "box": canonical.pack(box), "sig": canonical.pack(signature)})
    if len(raw) > MAX_ENTRY:
        raise InvalidInput(f"a {header['type']} of {len(raw)} bytes where a log takes {MAX_ENTRY}")
    return raw


def _parse(raw: bytes, kind: str, group: str) -> _Envelope:
    value = canonical.decode(raw, limit=MAX_ENTRY)
    box, sig = canonical.unpack(value.pop("box", None)), canonical.unpack(value.pop("sig", None), size=64)
    texts = all(isinstance(item, str) for name, item in value.items() if name != "v")
    if set(value) != _FIELDS[kind] or not texts or (value["v"], value["type"]) != (VERSION, kind):
        raise InvalidInput(f"not a {kind} envelope")
    if value["group"] != group:
        raise InvalidInput(f"a {kind} envelope of another group")
    return _Envelope(value, box, sig)


def _inside(envelope: _Envelope, lobby_key: bytes) -> dict[str, Any]:
    try:
        padded = open_group(envelope.box, lobby_key, _aad(envelope.header))
    except Corrupt as error:
        raise InvalidInput(f"a {envelope.header['type']} that does not open with the lobby key") from error
    return canonical.decode(unpad(padded))


def _aad(header: Mapping[str, Any]) -> bytes:
    return statement("lobby box", canonical.encode(dict(header)))
