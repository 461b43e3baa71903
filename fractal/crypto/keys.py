"""Keys of devices, members and apps: Ed25519 signs, X25519 receives.

Every signature covers a statement that begins with what it is for, so that bytes signed for one purpose mean nothing for
another. Secret keys never show in a repr, and every failure to open or verify is one answer without a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b

from nacl import bindings
from nacl.exceptions import CryptoError

from fractal.api.context import Entropy
from fractal.api.errors import Corrupt, InvalidInput

KEY_SIZE = 32
SIGNATURE_SIZE = 64
SEAL_OVERHEAD = 48
"""Bytes that `seal_to` adds: the ephemeral public key and the authentication tag."""

_VERSION = b"\x01"


def device_id(sign_public: bytes) -> str:
    """Id of the device with that signing key: 20 lower-case hex digits."""
    return blake2b(sign_public, digest_size=10, person=b"fhs-device").hexdigest()


def member_id(public: bytes) -> str:
    """Id of the member with that key: 20 lower-case hex digits."""
    return blake2b(public, digest_size=10, person=b"fhs-member").hexdigest()


def statement(purpose: str, *parts: bytes) -> bytes:
    """What is signed: the purpose, then every part with its length before it, so that no two lists of parts are alike."""
    lengths = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return b"fractal-homeserver/1 " + purpose.encode("ascii") + b"\0" + lengths


def device_statement(member: str, sign_key: bytes, box_key: bytes) -> bytes:
    """What a member signs to call a device its own."""
    return statement("device", member.encode("utf-8"), sign_key, box_key)


def member_statement(key: bytes, role: str) -> bytes:
    """What an admin signs to admit a member; `role` is the value of `model.Role`."""
    return statement("member", key, role.encode("utf-8"))


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `public` over `message`. False for anything malformed; never raises."""
    if len(public) != KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public)
    except (CryptoError, ValueError):
        return False
    return True


def seal_to(box_public: bytes, plain: bytes, entropy: Entropy) -> bytes:
    """`plain` for the holder of `box_public` only: a libsodium sealed box whose ephemeral key comes from `entropy`.

    Raises InvalidInput for a public key that is none.
    """
    return _seal(box_public, plain, entropy.bytes(KEY_SIZE))


def seal_shared(box_public: bytes, shared: bytes) -> bytes:
    """A key that several devices get, for one of them: always the same bytes for the same key and receiver.

    So whoever got the key can check what the others were given. The ephemeral key comes from the shared key itself: who can
    make it up again knows already what is inside. Raises InvalidInput for a public key that is none.
    """
    ephemeral = blake2b(box_public, digest_size=KEY_SIZE, key=shared, person=b"fhs-shared-seal").digest()
    return _seal(box_public, shared, ephemeral)


def is_box_key(public: bytes) -> bool:
    """Whether something can be sealed to these bytes: one of the few useless points would break every key rotation."""
    if len(public) != KEY_SIZE:
        return False
    try:
        bindings.crypto_scalarmult(bytes(KEY_SIZE), public)
    except (CryptoError, ValueError):
        return False
    return True


def _seal(box_public: bytes, plain: bytes, ephemeral_secret: bytes) -> bytes:
    ephemeral_public = bindings.crypto_scalarmult_base(ephemeral_secret)
    try:
        nonce = _seal_nonce(ephemeral_public, box_public)
        box = bindings.crypto_box(plain, nonce, box_public, ephemeral_secret)
    except (CryptoError, ValueError) as error:
        raise InvalidInput("cannot seal: the receiver's public key is not an X25519 key") from error
    return ephemeral_public + box


def unseal_with(secret: bytes, sealed: bytes) -> bytes:
    """What `seal_to` sealed to the public key of `secret`. Raises Corrupt."""
    if len(secret) != KEY_SIZE or len(sealed) < SEAL_OVERHEAD:
        raise Corrupt("sealed value is too short to be one")
    try:
        return bindings.crypto_box_seal_open(sealed, box_public_of(secret), secret)
    except (CryptoError, ValueError) as error:
        raise Corrupt(
            "sealed value does not open with this key: it is damaged or for somebody else"
        ) from error


@lru_cache(maxsize=64)
def box_public_of(secret: bytes) -> bytes:
    """The X25519 public key of a secret one."""
    return bindings.crypto_scalarmult_base(secret)


def app_keypair(entropy: Entropy) -> tuple[bytes, bytes]:
    """A new generation of an app's key: (public, secret). Backups are sealed to the public one by `seal_to`."""
    secret = entropy.bytes(KEY_SIZE)
    return box_public_of(secret), secret


@lru_cache(maxsize=64)
def _signing_pair(seed: bytes) -> tuple[bytes, bytes]:
    return bindings.crypto_sign_seed_keypair(seed)


def _sign(seed: bytes, message: bytes) -> bytes:
    signed = bindings.crypto_sign(message, _signing_pair(seed)[1])
    return signed[:SIGNATURE_SIZE]


def _seal_nonce(ephemeral_public: bytes, box_public: bytes) -> bytes:
    # As crypto_box_seal derives it, so that any libsodium opens the result.
    return blake2b(ephemeral_public + box_public, digest_size=24).digest()


@dataclass(frozen=True)
class DeviceKeys:
    """A device's two secret keys."""

    sign_seed: bytes = field(repr=False)
    """Ed25519 seed."""
    box_secret: bytes = field(repr=False)
    """X25519 secret key."""

    def __post_init__(self) -> None:
        if len(self.sign_seed) != KEY_SIZE or len(self.box_secret) != KEY_SIZE:
            raise InvalidInput("a device's keys are 32 bytes each")

    def __repr__(self) -> str:
        return f"DeviceKeys(id={self.id!r})"

    @classmethod
    def generate(cls, entropy: Entropy) -> DeviceKeys:
        """New keys."""
        return cls(entropy.bytes(KEY_SIZE), entropy.bytes(KEY_SIZE))

    @classmethod
    def from_bytes(cls, data: bytes) -> DeviceKeys:
        """The inverse of `to_bytes`. Raises InvalidInput."""
        if len(data) != 1 + 2 * KEY_SIZE or data[:1] != _VERSION:
            raise InvalidInput("stored device keys have the wrong form")
        return cls(data[1 : 1 + KEY_SIZE], data[1 + KEY_SIZE :])

    def to_bytes(self) -> bytes:
        """Secret bytes to keep in a file of mode 0600."""
        return _VERSION + self.sign_seed + self.box_secret

    @cached_property
    def sign_public(self) -> bytes:
        """Ed25519 public key."""
        return _signing_pair(self.sign_seed)[0]

    @cached_property
    def box_public(self) -> bytes:
        """X25519 public key."""
        return box_public_of(self.box_secret)

    @cached_property
    def id(self) -> str:
        """The device's id."""
        return device_id(self.sign_public)

    def sign(self, message: bytes) -> bytes:
        """Signature over `message`, which is a `statement`."""
        return _sign(self.sign_seed, message)

    def unseal(self, sealed: bytes) -> bytes:
        """What was sealed to this device. Raises Corrupt."""
        return unseal_with(self.box_secret, sealed)


@dataclass(frozen=True)
class MemberKeys:
    """A member's secret key; every device of the member holds it."""

    seed: bytes = field(repr=False)
    """Ed25519 seed."""

    def __post_init__(self) -> None:
        if len(self.seed) != KEY_SIZE:
            raise InvalidInput("a member's key is 32 bytes")

    def __repr__(self) -> str:
        return f"MemberKeys(id={self.id!r})"

    @classmethod
    def generate(cls, entropy: Entropy) -> MemberKeys:
        """A new key."""
        return cls(entropy.bytes(KEY_SIZE))

    @classmethod
    def from_bytes(cls, data: bytes) -> MemberKeys:
        """The inverse of `to_bytes`. Raises InvalidInput."""
        if len(data) != 1 + KEY_SIZE or data[:1] != _VERSION:
            raise InvalidInput("stored member key has the wrong form")
        return cls(data[1:])

    def to_bytes(self) -> bytes:
        """Secret bytes to keep in a file of mode 0600."""
        return _VERSION + self.seed

    @cached_property
    def public(self) -> bytes:
        """Ed25519 public key."""
        return _signing_pair(self.seed)[0]

    @cached_property
    def id(self) -> str:
        """The member's id."""
        return member_id(self.public)

    def sign(self, message: bytes) -> bytes:
        """Signature over `message`, which is a `statement`."""
        return _sign(self.seed, message)
