"""Who this device is to which homeserver: one file, readable by its owner alone, written whole or not at all.

A log has an account of its own, made by invitation, or else goes by the member's login. Tokens and passwords are nowhere
else: not in notes, logs or arguments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fractal.api.errors import BackendError

FILE = "accounts.json"
LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A login of an account."""

    url: str
    user: str
    """Full Matrix id; before it is known, the name alone."""
    device: str = ""
    """Matrix's id of this login; empty: not logged in yet."""
    token: str = field(default="", repr=False)
    """Access token."""
    password: str = field(default="", repr=False)
    """Of an account that this device made; the member's is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All that the file says."""

    logins: Mapping[str, Account] = field(default_factory=dict)
    """Of this device's member, by homeserver's URL."""
    rooms: Mapping[str, Account] = field(default_factory=dict)
    """Accounts of this device alone, by log room."""
    registration: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Registration tokens, by homeserver's URL."""
    home: str = ""
    """URL of the homeserver where new logs are made: that of the last login."""


class Accounts:
    """The file. Read anew whenever it changed, as `homeserver login` writes it beside a running agent."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._stamp: tuple[int, ...] | None = None
        self._known = Known()

    def known(self) -> Known:
        """What the file says now. Raises BackendError if it is damaged."""
        stamp = self._look()
        if stamp != self._stamp:
            self._known = self._read() if stamp else Known()
            self._stamp = stamp
        return self._known

    def write(self, known: Known) -> None:
        """Durably, with mode 0600 and the folder's owner."""
        scratch = self.path.with_suffix(f".{os.getpid()}")
        try:
            folder = self.path.parent.stat()
            handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o600)
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
                json.dump(asdict(known), file)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
            _sync(self.path.parent)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise BackendError(f"{self.path} cannot be written: {error.strerror}") from error

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BackendError(f"{self.path} cannot be read: {error.strerror}") from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> Known:
        try:
            with self.path.open(encoding="utf-8") as file:
                value = json.loads(file.read(LIMIT))
            return Known(
                logins={url: Account(**one) for url, one in value["logins"].items()},
                rooms={room: Account(**one) for room, one in value["rooms"].items()},
                registration=dict(value["registration"]),
                home=str(value["home"]),
            )
        except OSError as error:
            raise BackendError(f"{self.path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackendError(
                f"{self.path} is damaged: move it away and log in again with `homeserver login`"
            ) from error


def with_login(known: Known, account: Account, registration: str = "") -> Known:
    """`known` with the member's login to a homeserver."""
    tokens = dict(known.registration)
    if registration:
        tokens[account.url] = registration
    return Known(
        logins={**known.logins, account.url: account},
        rooms=known.rooms,
        registration=tokens,
        home=account.url,
    )


def without_login(known: Known, url: str) -> Known:
    """`known` without the login to that homeserver, and without its registration token."""
    logins = {key: one for key, one in known.logins.items() if key != url}
    return Known(
        logins=logins,
        rooms=known.rooms,
        registration={key: one for key, one in known.registration.items() if key != url},
        home=known.home if known.home != url else next(iter(logins), ""),
    )


def with_room(known: Known, room: str, account: Account | None, registration: str = "") -> Known:
    """`known` with another account for a log, or none."""
    rooms: dict[str, Account] = {key: one for key, one in known.rooms.items() if key != room}
    tokens = dict(known.registration)
    if account is not None:
        rooms[room] = account
        if registration:
            tokens.setdefault(account.url, registration)
    return Known(logins=known.logins, rooms=rooms, registration=tokens, home=known.home)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain_dict(value: object) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}
