"""The key that requests are signed with: from a file that only the agent may read, or from its environment. Blocking."""

from __future__ import annotations

import configparser
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fractal.api.errors import Misconfigured

MAX_SIZE = 64 << 10
ID, SECRET, TOKEN = "aws_access_key_id", "aws_secret_access_key", "aws_session_token"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Never shown: neither half is in its repr."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def load_credentials(path: Path | None, environment: Mapping[str, str]) -> Credentials:
    """What is in the file, or in the environment if none is named. Raises Misconfigured, OSError."""
    if path is not None:
        return _parse(path, _read(path))
    found = {name: environment.get(name.upper(), "") for name in (ID, SECRET, TOKEN)}
    if not (found[ID] and found[SECRET]):
        raise Misconfigured(
            "credentials",
            "there are none: name a file by `credentials` in this device's configuration, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the agent",
        )
    return Credentials(found[ID], found[SECRET], found[TOKEN] or None)


def _parse(path: Path, text: str) -> Credentials:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error:
        # Its own message would show the line, which may be the secret.
        raise Misconfigured("credentials", f"{path} is not of the form of ~/.aws/credentials") from None
    section = parser["default"] if parser.has_section("default") else parser.defaults()
    if not (section.get(ID) and section.get(SECRET)):
        raise Misconfigured("credentials", f"{path} lacks {ID} or {SECRET} in its section [default]")
    return Credentials(section[ID], section[SECRET], section.get(TOKEN) or None)


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Misconfigured("credentials", f"{path} does not exist") from None
    try:
        found = os.fstat(descriptor)
        own = found.st_uid in {0, os.geteuid()} and not found.st_mode & 0o077
        if not (stat.S_ISREG(found.st_mode) and own):
            raise Misconfigured(
                "credentials",
                f"{path} must be a file that only its owner, the agent's user, may read: chmod 600 {path}",
            )
        return os.read(descriptor, MAX_SIZE).decode(errors="replace")
    finally:
        os.close(descriptor)
