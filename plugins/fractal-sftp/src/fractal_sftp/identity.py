"""The key pair by which this device logs in. Blocking; the private half never leaves the device."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fractal.api.errors import Misconfigured

MAX_SIZE = 64 << 10


def load_identity(config_path: Path | None, folder: Path, seed: bytes, device: str) -> asyncssh.SSHKey:
    """The configured key, or this device's own, made of `seed` (32 bytes) at first. Raises Misconfigured, OSError."""
    path = config_path
    if path is None:
        path = folder / "id_ed25519"
        if not path.exists():
            _make(path, seed, device)
    return _read(path)


def public_line(key: asyncssh.SSHKey) -> str:
    """The line for `authorized_keys`."""
    return key.export_public_key("openssh").decode().strip()


def _make(path: Path, seed: bytes, device: str) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    key = asyncssh.import_private_key(
        private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    key.set_comment(f"homeserver-{device}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{seed[:4].hex()}")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.export_private_key("openssh"))
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: a key that another opening of the store has just made stays, as somebody may have seen it.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _read(path: Path) -> asyncssh.SSHKey:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Misconfigured(
            "identity", f"{path} does not exist: make it with ssh-keygen, or leave identity out"
        ) from None
    try:
        found = os.fstat(descriptor)
        own = found.st_uid in {0, os.geteuid()} and not found.st_mode & 0o077
        if not (stat.S_ISREG(found.st_mode) and own):
            raise Misconfigured(
                "identity",
                f"{path} must be a file that only its owner, the agent's user, may read: chmod 600 {path}",
            )
        data = os.read(descriptor, MAX_SIZE)
    finally:
        os.close(descriptor)
    try:
        return asyncssh.import_private_key(data)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
        raise Misconfigured(
            "identity", f"{path} is no private key without a passphrase in OpenSSH's or PEM form: {error}"
        ) from error
