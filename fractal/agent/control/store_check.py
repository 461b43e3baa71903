"""Tries what every promise of a store stands on, with small objects of its own that it deletes again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fractal.agent.control.progress import Progress
from fractal.api.context import Entropy
from fractal.api.errors import BackendError, Conflict, NotFound, NotSupported
from fractal.api.store import Store

STEP_TIMEOUT = 60.0
RIVALS = 4
"""How many put the same key at once."""

Step = Callable[[], Awaitable[str]]


async def try_store(store: Store, entropy: Entropy, progress: Progress) -> list[dict[str, Any]]:
    """Each step and whether the store did what it must. The first failure ends it, except for the cleaning up."""
    attempt = _Attempt(store, f"probe/{entropy.bytes(12).hex()}", entropy.bytes(4096))
    steps: list[tuple[str, Step]] = [
        ("absent before it is created", attempt.absent),
        ("create", attempt.create),
        ("read whole and in part", attempt.read),
        ("list", attempt.listed),
        ("refuse to overwrite", attempt.refuse),
    ]
    if store.fencing:  # what does not promise it need not show it
        steps.append(("one winner of a race", attempt.race))
    results = []
    for name, step in steps:
        progress.say(f"{name} ...")
        results.append(await _one(name, step))
        if not results[-1]["ok"]:
            break
    results.append(await _one("delete", attempt.delete))
    return results


def failed(steps: Sequence[dict[str, Any]]) -> list[str]:
    """What went wrong, in words."""
    return [f"{step['step']}: {step['detail']}" for step in steps if not step["ok"]]


async def _one(name: str, step: Step) -> dict[str, Any]:
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            detail = await step()
    except TimeoutError:
        detail = f"no answer within {STEP_TIMEOUT:.0f} s"
    except BackendError as error:
        detail = str(error) or type(error).__name__
    return {"step": name, "ok": not detail, "detail": detail}


class _Attempt:
    """The steps on one fresh key. Each returns what is wrong, or nothing."""

    def __init__(self, store: Store, key: str, data: bytes) -> None:
        self._store = store
        self._key = key
        self._data = data

    async def absent(self) -> str:
        try:
            await self._store.head(self._key)
        except NotFound:
            return ""
        return "an object with a random name exists already"

    async def create(self) -> str:
        await self._store.put_new(self._key, self._data)
        return ""

    async def read(self) -> str:
        whole = b"".join([chunk async for chunk in self._store.get(self._key)])
        part = b"".join([chunk async for chunk in self._store.get(self._key, offset=1000, length=100)])
        if whole != self._data:
            return f"got {len(whole)} bytes that are not the {len(self._data)} written"
        return "" if part == self._data[1000:1100] else "a range of the object is not what was written there"

    async def listed(self) -> str:
        found = [info async for info in self._store.list(self._key)]
        if [(i.key, i.size) for i in found] == [(self._key, len(self._data))]:
            return ""
        return f"the listing shows {[i.key for i in found][:3]} instead of the one object"

    async def refuse(self) -> str:
        try:
            await self._store.put_new(self._key, b"second")
        except Conflict:
            return await self.read()
        return "it created an object that existed: it cannot fence"

    async def race(self) -> str:
        key = f"{self._key}.race"
        outcomes = await asyncio.gather(
            *(self._store.put_new(key, bytes([n])) for n in range(RIVALS)), return_exceptions=True
        )
        others = [o for o in outcomes if o is not None and not isinstance(o, Conflict)]
        if others:
            return f"{type(others[0]).__name__}: {others[0]}"
        winners = [n for n, outcome in enumerate(outcomes) if outcome is None]
        held = b"".join([chunk async for chunk in self._store.get(key)])
        return "" if [bytes([n]) for n in winners] == [held] else f"{len(winners)} of {RIVALS} creators won"

    async def delete(self) -> str:
        try:
            for key in (self._key, f"{self._key}.race"):
                await self._store.delete(key)
        except NotSupported:
            # An append-only store keeps our few bytes: that is what it is for.
            return ""
        return "" if not [i async for i in self._store.list(self._key)] else "the object is still listed"
