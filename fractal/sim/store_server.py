"""The store: the memory store, whose listings may lag by a declared bound and may hide what they showed before."""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import TYPE_CHECKING

from fractal.api.names import check_prefix
from fractal.api.store import ObjectInfo, Store
from fractal.builtin.memory_store import MemoryStore, MemoryStoreConfig
from fractal.sim.weather import STORE

if TYPE_CHECKING:
    from fractal.sim.machine import Machine


BEHIND = chr(sys.maxunicode)
"""Sorts behind whatever may follow a prefix in a key."""
_info = lru_cache(maxsize=20_000)(ObjectInfo)
"""The same object each time: listings show the same names again and again."""


class SimStore(Store):
    """A `Store` at the other end of the network."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._network = machine.world.network
        self._store = MemoryStore(MemoryStoreConfig(objects=self._network.objects))

    @property
    def staleness(self) -> float:
        """As this seed's store declares."""
        return self._network.store_lag

    @property
    def fencing(self) -> bool:
        """As the memory store's."""
        return True

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Create at the server, all or nothing."""
        whole = data if isinstance(data, bytes) else b"".join([chunk async for chunk in data])
        network = self._network

        def effect() -> None:
            network.at_once(self._store.put_new(key, whole))
            insort(network.keys, key)
            network.created[key] = network.now()
            network.truth.created(key, self._machine)

        network.truth.left(whole)
        network.truth.left(key.encode())
        self._machine.moment(f"put {key}")
        await network.call(self._machine, STORE, effect, writes=True)
        self._machine.moment(f"put {key}")

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The whole range in one answer."""

        async def read() -> list[bytes]:
            return [c async for c in self._store.get(key, offset=offset, length=length)]

        at_once = self._network.at_once
        for chunk in await self._network.call(self._machine, STORE, lambda: at_once(read())):
            yield chunk

    async def head(self, key: str) -> ObjectInfo:
        """Size."""
        at_once = self._network.at_once
        return await self._network.call(self._machine, STORE, lambda: at_once(self._store.head(key)))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """One answer: what was there at most the declared lag ago, when the server gave it."""
        network, name = self._network, self._machine.name

        check_prefix(prefix)
        objects = network.objects.by_key

        def effect() -> list[ObjectInfo]:
            keys = network.keys
            below = keys[bisect_left(keys, prefix) : bisect_left(keys, prefix + BEHIND)]
            found = [_info(key, len(objects[key])) for key in below]
            lag = network.store_lag + network.excess_lag
            if lag:
                until = network.now() - network.random.uniform(0.0, lag)
                found = [i for i in found if network.created.get(i.key, 0.0) <= until]
            hidden = network.weather.hides.get(name, 0)
            if hidden > 0:
                known = network.listed.setdefault(name, set())
                old = sorted(
                    (i.key for i in found if i.key in known), key=lambda k: network.created.get(k, 0.0)
                )
                gone = set(old[-hidden:])
                return [i for i in found if i.key not in gone]
            return found

        answer = await network.call(self._machine, STORE, effect)
        if network.remember_listed:
            # Shown is what arrived: of an answer that was lost the device knows nothing, and could not notice what is hidden later.
            network.listed.setdefault(name, set()).update(info.key for info in answer)
        for info in answer:
            yield info

    async def delete(self, key: str) -> None:
        """Delete at the server."""
        network = self._network

        def effect() -> None:
            network.truth.deleted(key, self._machine)
            if key in network.objects.by_key:
                del network.keys[bisect_left(network.keys, key)]
            network.at_once(self._store.delete(key))

        await network.call(self._machine, STORE, effect, writes=True)
