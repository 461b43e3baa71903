"""What the simulator's store may hide from a device: what that device was shown, as the rules cover no more."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fractal.api.errors import BackendError
from fractal.builtin.memory_store import MemoryObjects
from fractal.sim.store_server import SimStore


async def shown(store: SimStore) -> list[str]:
    return [info.key async for info in store.list("g/")]


async def test_what_a_lost_answer_held_is_not_hidden_later() -> None:
    """Nobody could notice that it is missing: the owner that had not seen a later epoch thought its own the highest."""
    objects = MemoryObjects()
    objects.by_key["g/epoch/2"] = b"x"
    lost = [True, False, False]

    async def call(machine: object, service: str, effect: Callable[[], Any]) -> object:
        answer = effect()
        if lost.pop(0):
            raise BackendError("timed out", retryable=True)
        return answer

    weather = SimpleNamespace(hides={})
    network = SimpleNamespace(
        objects=objects,
        keys=["g/epoch/2"],
        weather=weather,
        store_lag=0,
        excess_lag=0,
        created={},
        listed={},
        remember_listed=True,
        call=call,
    )
    store = SimStore(cast("Any", SimpleNamespace(name="d1", world=SimpleNamespace(network=network))))
    with pytest.raises(BackendError):
        await shown(store)
    weather.hides["d1"] = 1
    assert await shown(store) == ["g/epoch/2"], "it never saw it"
    weather.hides.clear()
    lost.append(False)
    assert await shown(store) == ["g/epoch/2"]
    weather.hides["d1"] = 1
    assert await shown(store) == [], "it was shown it"
