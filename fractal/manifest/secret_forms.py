"""How generated secrets look: `FORM:LENGTH`. And the variables for which Coolify makes values by their names alone. Pure.

Names in files from there: SERVICE_PASSWORD_X (alphanumeric), SERVICE_USER_X, SERVICE_BASE64_X, SERVICE_REALBASE64_X, SERVICE_HEX_X, each
with a length in between if need be: SERVICE_PASSWORD_64_X. https://coolify.io/docs/knowledge-base/docker/compose#coolify-s-magic-environment-variables
"""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable

DEFAULT = "base64url:32"
EXAMPLES = "hex:64, alphanumeric:32, base64:32, base64url:32, name:16"
_FORM = re.compile(r"(hex|alphanumeric|base64|base64url|name):([1-9][0-9]{0,2})")
_MAGIC = re.compile(
    r"SERVICE_(PASSWORDWITHSYMBOLS|PASSWORD|USER|BASE64|REALBASE64|HEX)_(?:([0-9]{2,3})_)?[A-Z0-9_]{1,40}"
)
_MADE = {
    "PASSWORDWITHSYMBOLS": ("alphanumeric", 32),
    "PASSWORD": ("alphanumeric", 32),
    "USER": ("name", 16),
    "BASE64": ("alphanumeric", 32),
    "REALBASE64": ("base64", 32),
    "HEX": ("hex", 32),
}
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
_NAME = "abcdefghijklmnopqrstuvwxyz"


def known(form: str) -> bool:
    """Whether a secret can be made so. The length is in characters for `hex`, `alphanumeric` and `name`, else in bytes."""
    match = _FORM.fullmatch(form)
    return match is not None and int(match[2]) <= 256


def by_name(variable: str) -> str:
    """The form of the value that a variable stands for by its name; "" if it is no such variable."""
    match = _MAGIC.fullmatch(variable)
    if match is None:
        return ""
    form, length = _MADE[match[1]]
    found = f"{form}:{int(match[2]) if match[2] else length}"
    return found if known(found) else ""


def is_name(variable: str) -> bool:
    """Whether what is made for it is a user's name, which is no secret."""
    return variable.startswith("SERVICE_USER_")


def make(form: str, random: Callable[[int], bytes]) -> str:
    """A secret; `random` gives that many random bytes. Raises ValueError for an unknown form."""
    match = _FORM.fullmatch(form)
    if match is None:
        raise ValueError(f"{form[:40]!r} is no form of secrets")
    kind, length = match[1], int(match[2])
    if kind == "hex":
        return random((length + 1) // 2).hex()[:length]
    if kind == "base64":
        return b64encode(random(length)).decode()
    if kind == "base64url":
        return urlsafe_b64encode(random(length)).decode().rstrip("=")
    return _of(_LETTERS if kind == "alphanumeric" else _NAME, length, random)


def _of(letters: str, length: int, random: Callable[[int], bytes]) -> str:
    """Each letter equally likely: bytes that would favour the first ones are drawn again."""
    fair = 256 - 256 % len(letters)
    found = ""
    while len(found) < length:
        found += "".join(letters[b % len(letters)] for b in random(length) if b < fair)
    return found[:length]
