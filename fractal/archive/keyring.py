"""An app's keys, as far as a device holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fractal.api.errors import Corrupt, Denied
from fractal.archive.records import ObjectRef
from fractal.core.model import AppKey
from fractal.crypto.keys import KEY_SIZE, DeviceKeys, box_public_of, unseal_with


@dataclass(frozen=True, slots=True, kw_only=True)
class AppKeyring:
    """Whoever has the public key can write backups; only who has a generation's secret can read that generation's."""

    generation: int
    """The newest."""
    public: bytes
    secrets: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    """Generation -> X25519 secret; those that this device was trusted with."""

    @classmethod
    def of(cls, keys: Sequence[AppKey], device: DeviceKeys) -> AppKeyring:
        """What a device holds of an app's keys, oldest generation first.

        Whoever passed a key on may have passed rubbish on: a secret that is not the public key's counts as not held. If that is
        the newest one's, backups go on under the newest that can be opened here, as nobody might be able to read others.
        """
        held = {key.generation: secret for key in keys if (secret := _secret(key, device)) is not None}
        newest = keys[-1]
        if held and device.id in newest.sealed and newest.generation not in held:
            newest = next(key for key in reversed(keys) if key.generation in held)
        return cls(generation=newest.generation, public=newest.public, secrets=held)

    def object_key(self, ref: ObjectRef) -> bytes:
        """The key of a sealed object. Raises Denied if this device may not read it, Corrupt."""
        secret = self.secrets.get(ref.generation)
        if secret is None:
            raise Denied(
                f"object {ref.id} is sealed to key {ref.generation} of the app, which this device does not hold"
            )
        try:
            return unseal_with(secret, ref.sealed_key)
        except Corrupt as error:
            raise Corrupt(f"object {ref.id}: {error}") from error


def _secret(key: AppKey, device: DeviceKeys) -> bytes | None:
    try:
        secret = device.unseal(key.sealed[device.id])
    except (KeyError, Corrupt):
        return None
    return secret if len(secret) == KEY_SIZE and box_public_of(secret) == key.public else None
