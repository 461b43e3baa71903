"""An app's keys, as far as a device holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fractal.api.errors import Corrupt, Denied
from fractal.archive.records import ObjectRef
from fractal.crypto.keys import unseal_with


@dataclass(frozen=True, slots=True, kw_only=True)
class AppKeyring:
    """Whoever has the public key can write backups; only who has a generation's secret can read that generation's."""

    generation: int
    """The newest."""
    public: bytes
    secrets: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    """Generation -> X25519 secret; those that this device was trusted with."""

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
