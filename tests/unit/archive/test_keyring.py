"""What a device holds of an app's keys, when those who passed them on were honest and when not."""

from __future__ import annotations

from dataclasses import replace

from fractal.archive.keyring import AppKeyring
from fractal.core.model import AppKey
from fractal.crypto.keys import DeviceKeys, app_keypair, seal_to, unseal_with
from fractal.testing.group import SeededEntropy

ENTROPY = SeededEntropy(5)
ATTIC, DEN = DeviceKeys.generate(ENTROPY), DeviceKeys.generate(ENTROPY)


def key(generation: int, *devices: DeviceKeys) -> AppKey:
    public, secret = app_keypair(ENTROPY)
    sealed = {d.id: seal_to(d.box_public, secret, ENTROPY) for d in devices}
    return AppKey(generation=generation, public=public, sealed=sealed)


def test_every_generation_that_was_sealed_to_the_device_is_held() -> None:
    keys = (key(1, ATTIC), key(2, DEN), key(3, ATTIC, DEN))
    ring = AppKeyring.of(keys, ATTIC)
    assert (ring.generation, ring.public, set(ring.secrets)) == (3, keys[2].public, {1, 3})
    assert unseal_with(ring.secrets[3], seal_to(keys[2].public, b"x", ENTROPY)) == b"x"


def test_a_device_that_only_writes_seals_to_the_newest() -> None:
    keys = (key(1, ATTIC), key(2, DEN))
    ring = AppKeyring.of(keys, ATTIC)
    assert (ring.generation, ring.public) == (2, keys[1].public)


def test_rubbish_in_place_of_a_key_neither_stops_nor_misleads() -> None:
    """A trusted device that passes rubbish on must not stop others, nor have them write what nobody can read."""
    good, other = key(1, ATTIC, DEN), key(2, ATTIC)
    another_secret = seal_to(ATTIC.box_public, bytes(32), ENTROPY)
    for rubbish in (b"", b"rubbish", another_secret, seal_to(ATTIC.box_public, b"short", ENTROPY)):
        bad = replace(other, sealed={ATTIC.id: rubbish})
        ring = AppKeyring.of((good, bad), ATTIC)
        assert (ring.generation, ring.public, set(ring.secrets)) == (1, good.public, {1})
        assert not AppKeyring.of((bad,), ATTIC).secrets
