"""The device's key: X25519, made here, never leaving; and small files that are replaced whole."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from fractal.api.context import Entropy
from fractal.api.errors import BackendError


def own_key(path: Path, entropy: Entropy) -> str:
    """The public key (base64) of the private one at `path`, which is made at first use. Raises BackendError."""
    from nacl.public import PrivateKey

    if not path.exists():
        write_private(path, base64.b64encode(entropy.bytes(32)).decode("ascii") + "\n")
    text = path.read_text("ascii", "replace").strip()
    try:
        secret = base64.b64decode(text, validate=True)
        return base64.b64encode(bytes(PrivateKey(secret).public_key)).decode("ascii")
    except (ValueError, TypeError) as error:
        raise BackendError(
            f"transport wireguard: {path} holds no key: restore it, or remove it to get a new one"
        ) from error


def write_private(path: Path, text: str) -> None:
    """Replace a small file whole, readable by its owner only. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
