"""Addresses of logs, and what an invitation adds to one.

A log's address is `matrix:<URL of the homeserver>#<room id>`. An invitation may append `?user=<name>&token=<registration
token>`: the account that the invited device makes for itself. That part is a secret and never kept as an address.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

from fractal.api.errors import InvalidInput

LONGEST = 2000
_ROOM = re.compile(r"![A-Za-z0-9._~:\-\[\]]{1,250}")
"""Also ids of room version 12, which have no server part."""
_HOST = re.compile(r"[a-z0-9.:-]{1,255}")
_USER = re.compile(r"@[^\s:\0/?#]{1,200}:[A-Za-z0-9.\-:\[\]]{1,200}")
_LOCALPART = re.compile(r"[a-z0-9._=/-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,64}")
"""As the specification of registration tokens has it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a log is, and with which new account a device may come in."""

    url: str
    """Base of the client-server API, without a slash in the end."""
    room: str
    user: str = ""
    """Name of the account to make; empty: none was prepared."""
    token: str = field(default="", repr=False)
    """Registration token."""

    @property
    def plain(self) -> str:
        """The address alone, for keeping and showing."""
        return f"matrix:{self.url}#{self.room}"

    @property
    def admission(self) -> str:
        """With the account; a secret."""
        if not self.user:
            return self.plain
        return f"{self.plain}?{urlencode({'user': self.user, 'token': self.token})}"


def parse_address(text: str, *, cleartext: bool = False) -> Address:
    """The address in `text`, with or without an account. Raises InvalidInput."""
    scheme, _, rest = text.partition(":")
    base, _, tail = rest.partition("#")
    room, asked, query = tail.partition("?")
    if len(text) > LONGEST or scheme != "matrix" or not _ROOM.fullmatch(room):
        raise InvalidInput(f"{text.partition('?')[0][:60]!r} is not the address of a log in a Matrix room")
    url = parse_url(base, cleartext=cleartext)
    if not asked:
        return Address(url, room)
    fields = parse_qs(query, keep_blank_values=True)
    user, token = ("".join(fields.get(name, [])) for name in ("user", "token"))
    if not _LOCALPART.fullmatch(user) or not (token == "" or _TOKEN.fullmatch(token)):
        raise InvalidInput("the invitation names no account that could be made")
    return Address(url, room, user, token)


def parse_url(text: str, *, cleartext: bool = False) -> str:
    """A homeserver's URL as we keep it. Raises InvalidInput; without TLS only on loopback, or if `cleartext`."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidInput(f"{text[:60]!r} is not the URL of a homeserver: {error}") from error
    plain = parts.path.strip("/") == "" and not (
        parts.query or parts.fragment or parts.username or parts.password
    )
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or not plain:
        raise InvalidInput(f"{text[:60]!r} is not the URL of a homeserver, like https://matrix.example.org")
    if parts.scheme == "http" and not (cleartext or _loopback(host)):
        raise InvalidInput(
            f"{text[:60]!r} is without TLS, so that access tokens could be read on the way: use https, or set"
            " coordination.matrix.cleartext where nobody else is on the way"
        )
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}" + (f":{port}" if port is not None else "")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_user(text: str) -> bool:
    """Whether `text` has the form of a Matrix id."""
    return len(text) <= 255 and _USER.fullmatch(text) is not None


def check_user(text: str) -> str:
    """`text` if it is a Matrix id. Raises InvalidInput."""
    if not is_user(text):
        raise InvalidInput(f"{text[:60]!r} is not a Matrix id, like @anna:example.org")
    return text


def check_token(text: str) -> str:
    """`text` if it is a registration token. Raises InvalidInput without showing it."""
    if not _TOKEN.fullmatch(text):
        raise InvalidInput(
            "a registration token has 1 to 64 letters, digits, dots, dashes, underscores or tildes"
        )
    return text
