"""Keys: what opens what, what verifies, and that secrets do not show."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import PrivateKey, SealedBox

from fractal.api.errors import Corrupt, InvalidInput
from fractal.crypto import keys


class SeededEntropy:
    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


ENTROPY = SeededEntropy()
DEVICE = keys.DeviceKeys.generate(ENTROPY)
MEMBER = keys.MemberKeys.generate(ENTROPY)


def test_sealed_to_one_device_opens_there_and_nowhere_else() -> None:
    sealed = keys.seal_to(DEVICE.box_public, b"secret", ENTROPY)
    assert DEVICE.unseal(sealed) == b"secret"
    with pytest.raises(Corrupt):
        keys.DeviceKeys.generate(ENTROPY).unseal(sealed)


def test_libsodium_opens_what_we_seal_and_we_open_what_it_seals() -> None:
    private = PrivateKey(DEVICE.box_secret)
    assert SealedBox(private).decrypt(keys.seal_to(DEVICE.box_public, b"x", ENTROPY)) == b"x"
    assert DEVICE.unseal(SealedBox(private.public_key).encrypt(b"y")) == b"y"


def test_every_seal_is_different_and_follows_from_entropy() -> None:
    first = keys.seal_to(DEVICE.box_public, b"same", SeededEntropy(1))
    assert keys.seal_to(DEVICE.box_public, b"same", SeededEntropy(1)) == first
    assert keys.seal_to(DEVICE.box_public, b"same", SeededEntropy(2)) != first


@given(st.binary(max_size=200))
def test_garbage_never_opens(data: bytes) -> None:
    with pytest.raises(Corrupt):
        DEVICE.unseal(data)


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_garbage_never_verifies(public: bytes, message: bytes, signature: bytes) -> None:
    assert not keys.verify(public, message, signature)


def test_a_signature_covers_every_bit_and_one_key() -> None:
    message = keys.statement("test", b"one", b"two")
    signature = DEVICE.sign(message)
    assert keys.verify(DEVICE.sign_public, message, signature)
    assert not keys.verify(MEMBER.public, message, signature)
    assert not keys.verify(DEVICE.sign_public, message + b"\0", signature)
    assert not keys.verify(DEVICE.sign_public, message, bytes([signature[0] ^ 1]) + signature[1:])


def test_statements_of_different_purposes_or_splits_differ() -> None:
    assert keys.statement("a", b"xy") != keys.statement("b", b"xy")
    assert keys.statement("a", b"x", b"y") != keys.statement("a", b"xy")
    assert keys.statement("a", b"", b"xy") != keys.statement("a", b"xy", b"")


def test_ids_depend_on_the_kind() -> None:
    assert keys.device_id(MEMBER.public) != keys.member_id(MEMBER.public)
    assert len(DEVICE.id) == 20
    assert DEVICE.id == keys.device_id(DEVICE.sign_public)


def test_round_trip_and_damage() -> None:
    assert keys.DeviceKeys.from_bytes(DEVICE.to_bytes()) == DEVICE
    assert keys.MemberKeys.from_bytes(MEMBER.to_bytes()) == MEMBER
    for damaged in (b"", DEVICE.to_bytes()[:-1], b"\x02" + DEVICE.to_bytes()[1:], DEVICE.to_bytes() + b"x"):
        with pytest.raises(InvalidInput):
            keys.DeviceKeys.from_bytes(damaged)
    for damaged in (b"", MEMBER.to_bytes()[:-1], b"\x02" + MEMBER.to_bytes()[1:]):
        with pytest.raises(InvalidInput):
            keys.MemberKeys.from_bytes(damaged)


def test_secrets_do_not_show() -> None:
    for text in (repr(DEVICE), str(DEVICE), repr(MEMBER), f"{MEMBER}"):
        assert DEVICE.sign_seed.hex() not in text
        assert repr(DEVICE.sign_seed) not in text
        assert repr(MEMBER.seed) not in text


def test_app_keys_unseal() -> None:
    public, secret = keys.app_keypair(ENTROPY)
    assert keys.box_public_of(secret) == public
    assert keys.unseal_with(secret, keys.seal_to(public, b"object key", ENTROPY)) == b"object key"


def test_a_public_key_that_is_none_is_refused() -> None:
    for public in (b"", b"short", bytes(32)):
        with pytest.raises(InvalidInput):
            keys.seal_to(public, b"x", ENTROPY)
