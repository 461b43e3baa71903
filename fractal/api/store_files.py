"""How stores that keep each object as a file lay them out, so that one folder can be served in several ways. Pure.

    <path>/store          says that this folder is a store, and of which version
    <path>/objects/...    key `a/1` is the file `a/1=`, key `a/1/base` is `a/1/base=`: neither blocks the other
    <path>/tmp/...        being written; never listed

A key part longer than 200 characters becomes `first 200+/+rest`. `=` and `+` occur in no key, so names never collide.
An object appears by a hard link to its finished temporary file, which is atomic and fails if the name exists.
"""

from __future__ import annotations

from collections.abc import Sequence

from fractal.api.errors import InvalidInput
from fractal.api.names import KEY_LENGTH, check_key

MARK = "store"
MARK_TEXT = b"fractal directory store 1\n"
OBJECTS = "objects"
TEMPORARY = "tmp"
KNOWN = frozenset({MARK, OBJECTS, TEMPORARY, "lost+found"})
"""Names that may lie in a store's folder."""

_PIECE = 200


def object_names(parts: Sequence[str]) -> tuple[list[str], str]:
    """The folders below `objects` and the file that hold the object with these key parts."""
    names: list[str] = []
    for part in parts:
        # The rest keeps its `+` in front: alone it could be `..`.
        names += [part[:_PIECE] + "+", "+" + part[_PIECE:]] if len(part) > _PIECE else [part]
    return names[:-1], names[-1] + "="


def object_key(folders: Sequence[str], file: str) -> str | None:
    """The key whose object is kept there; None for a file that somebody else put there."""
    if not file.endswith("="):
        return None
    key = _joined([*folders, file.removesuffix("=")])
    try:
        parts = check_key(key)
    except InvalidInput:
        return None
    return key if object_names(parts) == ([*folders], file) else None


def first_folders(prefix: str) -> list[str] | None:
    """The deepest folders that hold every key which begins with `prefix`; None if no key can."""
    parts = prefix.split("/")[:-1]
    if parts:
        try:
            check_key("/".join(parts))
        except InvalidInput:
            return None
    return object_names([*parts, ""])[0]


def may_hold(folders: Sequence[str], prefix: str) -> bool:
    """Whether a key that begins with `prefix` can be kept below these folders."""
    start = _joined(folders)
    start = start.removesuffix("+") if start.endswith("+") else start + "/"
    return len(start) <= KEY_LENGTH and (start.startswith(prefix) or prefix.startswith(start))


def _joined(names: Sequence[str]) -> str:
    return "/".join(names).replace("+/+", "")
