"""Configuration of the `sftp` store."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from fractal.api.errors import Misconfigured

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SftpConfig:
    """A folder on a machine that one can log in to by SSH."""

    host: str = field(metadata={"help": "Host name or address of the server."})
    user: str = field(metadata={"help": "Account on it."})
    path: str = field(
        metadata={"help": "Folder that holds the store, as the account sees it; made if its parent exists."}
    )
    port: int = field(default=22, metadata={"help": "Port of the server.", "minimum": 1})
    fingerprint: str = field(
        default="",
        metadata={
            "help": "Fingerprint of the server's host key, SHA256:...; adding the store without it shows the one offered."
        },
    )
    identity: Path | None = field(
        default=None,
        metadata={
            "help": "File with this device's private key, of mode 0600; by default one that is made here and stays here."
        },
    )
    timeout: float = field(
        default=20.0,
        metadata={"help": "Seconds without any answer after which the connection counts as lost."},
    )
    connect_timeout: float = field(
        default=10.0, metadata={"help": "Seconds that connecting and logging in may take."}
    )

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        for key, value in (("host", self.host), ("user", self.user), ("path", self.path)):
            if not value or value.startswith("-") or not value.isprintable():
                raise Misconfigured(key, f"{value!r} cannot be one")
        if self.port > 65535:
            raise Misconfigured("port", f"{self.port} is no port")
        if self.fingerprint and not _FINGERPRINT.fullmatch(self.fingerprint):
            raise Misconfigured(
                "fingerprint",
                f"{self.fingerprint!r} is not SHA256: and 43 characters, as ssh-keygen -l shows it",
            )
        for key, seconds in (("timeout", self.timeout), ("connect_timeout", self.connect_timeout)):
            if not (math.isfinite(seconds) and seconds > 0):
                raise Misconfigured(key, f"{seconds} is no number of seconds")

    @property
    def where(self) -> str:
        """The store in messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"store sftp {self.user}@{host}:{self.port}"
