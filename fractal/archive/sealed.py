"""Small signed objects of the store: epochs, bases, records. Sealed to the group, bound to their name.

    object = "FHSdoc" version(1)  u32 generation of the group key  box
    box    = canonical JSON {"body": {...}, "by": device id, "sig": base64}

The name in the store is part of what is signed and of what authenticates the box, so that an object means nothing under
another name. Whatever is wrong with an object, everybody who has the same log comes to the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass

from fractal.api.canonical import Value, decode, encode, pack, unpack
from fractal.api.context import Clock, Entropy
from fractal.api.errors import Ambiguous, BackendError, Conflict, Corrupt, FractalError, InvalidInput
from fractal.api.store import Store
from fractal.crypto.keys import DeviceKeys, statement, verify
from fractal.crypto.seal import open_group, seal_group

GroupKey = Callable[[int | None], tuple[int, bytes]]
"""The group key of a generation, or the newest for None. Raises FractalError or LookupError if it is not known here."""
SignKeyOf = Callable[[str], bytes | None]
"""The signing key of a device that is or was in the group; None for any other."""

LIMIT = 1 << 20
"""Bytes; no object of this kind is larger."""
FETCHES = 8
"""Small objects fetched at once."""
TRIES = 4
"""How often an ambiguous create is repeated before the caller is told."""

_MAGIC = b"FHSdoc\x01"


@dataclass(frozen=True, slots=True)
class Statement:
    """A body that the device `by` signed."""

    by: str
    body: Value


def seal_statement(
    kind: str, key: str, body: Value, *, keys: DeviceKeys, group_key: GroupKey, entropy: Entropy
) -> bytes:
    """The object to store under `key`."""
    generation, secret = group_key(None)
    signature = keys.sign(_signed(kind, key, body))
    head = _MAGIC + generation.to_bytes(4, "big")
    plain = encode({"body": body, "by": keys.id, "sig": pack(signature)})
    return head + seal_group(plain, secret, head + key.encode(), entropy)


def open_statement(
    kind: str, key: str, data: bytes, *, sign_key_of: SignKeyOf, group_key: GroupKey
) -> Statement:
    """What a stored object says. Raises Corrupt with the reason for whatever is not a valid statement."""
    size = len(_MAGIC) + 4
    if len(data) < size or len(data) > LIMIT or not data.startswith(_MAGIC):
        raise Corrupt(f"{key}: not an object of this system")
    generation = int.from_bytes(data[len(_MAGIC) : size], "big")
    try:
        _, secret = group_key(generation)
    except (FractalError, LookupError) as error:
        raise Corrupt(f"{key}: sealed with group key {generation}, which is not known here") from error
    try:
        value = decode(open_group(data[size:], secret, data[:size] + key.encode()))
    except FractalError as error:
        raise Corrupt(f"{key}: damaged, or from elsewhere") from error
    try:
        return _checked(kind, key, value, sign_key_of)
    except InvalidInput as error:
        raise Corrupt(f"{key}: {error}") from error


def _checked(kind: str, key: str, value: Value, sign_key_of: SignKeyOf) -> Statement:
    if (
        set(value) != {"body", "by", "sig"}
        or not isinstance(value["body"], dict)
        or not isinstance(value["by"], str)
    ):
        raise InvalidInput("malformed")
    public = sign_key_of(value["by"])
    if public is None:
        raise Corrupt(f"{key}: signed by {value['by'][:40]!r}, which is no device of the group")
    if not verify(public, _signed(kind, key, value["body"]), unpack(value["sig"], size=64)):
        raise Corrupt(f"{key}: the signature is not that of device {value['by']}")
    return Statement(value["by"], value["body"])


def _signed(kind: str, key: str, body: Value) -> bytes:
    return statement(kind, key.encode(), encode(body))


async def read_small(store: Store, key: str, limit: int = LIMIT) -> bytes:
    """A small object, whole. Raises NotFound, Corrupt if it is larger than `limit` bytes, BackendError."""
    parts: list[bytes] = []
    size = 0
    async for chunk in store.get(key):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise Corrupt(f"{key}: larger than {limit} bytes")
    return b"".join(parts)


async def at_once(work: Callable[[], Coroutine[None, None, None]], count: int) -> None:
    """Run it `count` times beside itself, at most `FETCHES` times. Raises the first error."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(FETCHES, count)):
                tasks.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


async def listed(store: Store, prefix: str, limit: int) -> AsyncIterator[str]:
    """The names in the store that begin so. Raises BackendError beyond `limit` of them: a store may make names up for ever."""
    count = 0
    async for info in store.list(prefix):
        count += 1
        if count > limit:
            raise BackendError(f"the store lists more than {limit} objects below {prefix}: check the store")
        yield info.key


async def create(
    store: Store, key: str, data: Callable[[], bytes | AsyncIterator[bytes]], clock: Clock
) -> bool:
    """Create an object, repeating an ambiguous attempt a few times; whether it is certain that this call did it.

    False: the name existed, which after a repeated attempt may be our own doing: the caller reads it back and compares.
    Raises Ambiguous if it stays unknown, BackendError.
    """
    for attempt in range(TRIES):
        try:
            await store.put_new(key, data())
        except Conflict:
            return False
        except Ambiguous:
            if attempt == TRIES - 1:
                raise
            await clock.sleep(0.2 * 2**attempt)
        else:
            return True
    raise AssertionError("unreachable")
