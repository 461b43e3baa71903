"""Checkpoints: sealed in a store, stated in the log, believed only if everything fits."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fractal.agent.checkpoints import MAGIC, MIN_ENTRIES, _aad, due, fetch_checkpoint, write_checkpoint
from fractal.agent.journal import Journal
from fractal.agent.notes import MemoryNotes
from fractal.api.errors import Conflict, Corrupt, Denied, NotFound
from fractal.api.store import ObjectInfo
from fractal.builtin.memory_log import MemoryCoordinator, MemoryHub
from fractal.core.entries import GroupChanged
from fractal.core.log import MAX_STATE, state_hash
from fractal.core.model import Role
from fractal.crypto.seal import seal_group
from fractal.testing.context import real_context
from fractal.testing.group import World

STORE = "5" * 16


class Shelf:
    """A store of one dictionary, whose contents a test may damage."""

    staleness = 0.0
    fencing = True
    weakness = ""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put_new(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        assert isinstance(data, bytes)
        if key in self.objects:
            raise Conflict(key)
        self.objects[key] = data

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        if key not in self.objects:
            raise NotFound(key)
        for at in range(0, len(self.objects[key]), 1000):
            yield self.objects[key][at : at + 1000]

    async def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self.objects[key]))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(self.objects):
            yield ObjectInfo(key, len(self.objects[key]))

    async def delete(self, key: str) -> None:
        del self.objects[key]


@pytest.fixture
def world() -> World:
    world = World.founded()
    world.join("kitchen", "bob", Role.ADMIN)
    world.join("den", "cat")
    world.install()
    return world


@pytest.fixture
async def journals(world: World, tmp_path: Path) -> AsyncIterator[dict[str, Journal]]:
    hub = MemoryHub()
    async with real_context(tmp_path) as context:
        address = await MemoryCoordinator(context, hub).create("0" * 32, "")
        for number, raw in enumerate(world.log):
            await MemoryCoordinator(context, hub).append(address, f"old-{number}", raw)
        yield {
            machine.name: Journal(
                group=world.state.id,
                address=address,
                coordinator=MemoryCoordinator(replace(context, device=machine.id), hub),
                keys=machine.keys,
                notes=MemoryNotes(),
                clock=context.clock,
                entropy=context.entropy,
                group_keys=world.group_keys,
            )
            for machine in world.live()
        }


async def test_who_joins_begins_with_it(world: World, journals: dict[str, Journal]) -> None:
    shelf, attic, den = Shelf(), journals["attic"], journals["den"]
    await attic.poll(0)
    await write_checkpoint(attic, shelf, STORE, world.entropy)
    await attic.append(GroupChanged(name="since"))
    stated = attic.state.checkpoint
    assert stated is not None
    data = await fetch_checkpoint(shelf, stated.key, group=world.state.id, group_key=world.group_keys)
    den.adopt(data, stated.state_hash)
    await den.poll(0)
    assert state_hash(den.state) == state_hash(attic.state)
    assert world.state.name.encode() not in b"".join(shelf.objects.values())


async def test_twice_is_once(world: World, journals: dict[str, Journal]) -> None:
    shelf = Shelf()
    for name in ("attic", "kitchen"):
        await journals[name].poll(0)
    await write_checkpoint(journals["attic"], shelf, STORE, world.entropy)
    with pytest.raises(Denied, match="not newer"):
        await write_checkpoint(journals["kitchen"], shelf, STORE, world.entropy)
    assert len(shelf.objects) == 1


async def test_a_member_states_none(world: World, journals: dict[str, Journal]) -> None:
    await journals["den"].poll(0)
    with pytest.raises(Denied):
        await write_checkpoint(journals["den"], Shelf(), STORE, world.entropy)


async def test_damage_is_noticed(world: World, journals: dict[str, Journal]) -> None:
    shelf, attic = Shelf(), journals["attic"]
    await attic.poll(0)
    await write_checkpoint(attic, shelf, STORE, world.entropy)
    ((key, good),) = shelf.objects.items()
    for damaged in (
        b"",
        b"x",
        good[:-1],
        good[:30],
        good[:-1] + bytes([good[-1] ^ 1]),
        MAGIC + good[len(MAGIC) + 1 :],
    ):
        shelf.objects[key] = damaged
        with pytest.raises((Corrupt, Denied)):
            await fetch_checkpoint(shelf, key, group=world.state.id, group_key=world.group_keys)
    shelf.objects[key] = good
    with pytest.raises(Corrupt):
        await fetch_checkpoint(shelf, key, group="f" * 32, group_key=world.group_keys)
    with pytest.raises(Denied):
        await fetch_checkpoint(shelf, key, group=world.state.id, group_key=lambda generation: None)


async def test_a_bomb_does_not_go_off(world: World) -> None:
    shelf, header = Shelf(), MAGIC + (1).to_bytes(4, "big")
    bomb = zlib.compress(bytes(MAX_STATE + 1))
    shelf.objects["k"] = header + seal_group(bomb, world.group_keys[1], _aad("g", header), world.entropy)
    with pytest.raises(Corrupt, match="larger"):
        await fetch_checkpoint(shelf, "k", group="g", group_key=world.group_keys)


def test_due_when_enough_was_written(world: World) -> None:
    assert not due(world.state)
    grown = replace(world.state, position=MIN_ENTRIES + 5)
    assert due(grown)
    assert not due(replace(grown, sealed_out=7))
    assert not due(replace(grown, left=True))
