"""Container images in the store: whole or not at all, resumed, opened by who may, and telling nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from fractal.agent.notes import MemoryNotes
from fractal.api.errors import Ambiguous, BackendError, Corrupt, Denied
from fractal.archive.archive import AppKeyring
from fractal.archive.images import Images
from fractal.builtin.memory_store import MemoryObjects, MemoryStore, MemoryStoreConfig
from fractal.core.model import ArchivedImage
from fractal.testing.archive_world import GROUP, InlineWorkers, SeededEntropy, World

DATA = b"layer " * 1000 + Random(3).randbytes(100_000)
DIGEST = "sha256:" + "ab" * 32
WIKI = ArchivedImage(
    name="example.org/wiki:1",
    digest=DIGEST,
    arch="x86_64",
    object="",
    segments=(),
    sealed_key=b"",
    generation=0,
)


class Engine:
    """Saves an image, and counts how often."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.saved = 0

    async def save(self) -> AsyncIterator[bytes]:
        self.saved += 1
        for start in range(0, len(self.data), 1 << 16):
            yield self.data[start : start + (1 << 16)]


def images(
    world: World,
    name: str = "attic",
    named: Collection[str] = (),
    notes: MemoryNotes | None = None,
    place: str = "shelf",
) -> Images:
    async def known() -> Collection[str]:
        return named

    return Images(
        group=GROUP,
        store=world.store,
        clock=world.clock,
        entropy=SeededEntropy(f"images of {name}"),
        workers=InlineWorkers(),
        notes=notes if notes is not None else MemoryNotes(),
        named=known,
        place=place,
        folder=world.folder / f"{name}-images",
    )


def keys(world: World, *, reads: bool = True) -> AppKeyring:
    return AppKeyring(generation=1, public=world.app_public, secrets={1: world.app_secret} if reads else {})


async def read(archive: Images, image: ArchivedImage, keyring: AppKeyring) -> bytes:
    return b"".join([chunk async for chunk in archive.read(image, keyring)])


@pytest.mark.parametrize("size", [0, len(DATA), 70 << 20])
async def test_what_was_saved_comes_back_elsewhere(world: World, size: int) -> None:
    data = DATA[:size] if size <= len(DATA) else Random(4).randbytes(size)
    stored = await images(world).write(WIKI, Engine(data).save, keys(world))
    assert (stored.name, stored.digest, stored.arch) == (WIKI.name, DIGEST, "x86_64")
    assert await read(images(world, "kitchen"), stored, keys(world)) == data
    assert not [p for p in world.folder.rglob("*") if p.is_file()]


async def test_names_and_contents_are_in_no_byte_of_the_store(world: World) -> None:
    await images(world).write(WIKI, Engine().save, keys(world))
    for key, data in world.objects.items():
        for secret in (b"wiki", DIGEST[7:].encode(), bytes.fromhex(DIGEST[7:]), b"layer layer"):
            assert secret not in key.encode() + data


async def test_a_broken_upload_goes_on_where_it_was(world: World) -> None:
    engine = Engine(Random(5).randbytes(150 << 20))
    world.store.fail = lambda call, key: "down" if call == "put" and key.endswith("/2") else ""
    with pytest.raises(BackendError):
        await images(world).write(WIKI, engine.save, keys(world))
    done = set(world.objects)
    assert len(done) == 2
    world.store.fail = lambda _call, _key: ""
    world.store.puts.clear()
    stored = await images(world).write(WIKI, engine.save, keys(world))
    assert engine.saved == 1 and not done & set(world.store.puts)
    assert await read(images(world), stored, keys(world)) == engine.data


async def test_an_upload_that_times_out_after_success_is_no_conflict(world: World) -> None:
    world.store.fail = lambda call, _key: "after" if call == "put" and len(world.store.puts) == 1 else ""
    stored = await images(world).write(WIKI, Engine().save, keys(world))
    assert await read(images(world), stored, keys(world)) == DATA


async def test_a_store_that_never_answers_is_given_up(world: World) -> None:
    world.store.fail = lambda call, _key: "before" if call == "put" else ""
    with pytest.raises(Ambiguous):
        await images(world).write(WIKI, Engine().save, keys(world))


async def test_who_does_not_hold_the_apps_key_reads_nothing(world: World) -> None:
    stored = await images(world).write(WIKI, Engine().save, keys(world, reads=False))
    with pytest.raises(Denied, match="does not hold"):
        await read(images(world, "kitchen"), stored, keys(world, reads=False))


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "swap"])
async def test_a_damaged_image_is_refused_before_any_byte_of_it_acts(world: World, damage: str) -> None:
    archive = images(world)
    stored = await archive.write(WIKI, Engine().save, keys(world))
    other = await archive.write(replace(WIKI, digest="sha256:" + "cd" * 32), Engine(b"x").save, keys(world))
    key = next(k for k in world.objects if stored.object in k)
    data = world.objects[key]
    if damage == "missing":
        del world.objects[key]
    else:
        world.objects[key] = {
            "flip": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
            "truncate": data[:-1],
            "swap": world.objects[next(k for k in world.objects if other.object in k)],
        }[damage]
    with pytest.raises(Corrupt, match=stored.object):
        await anext(archive.read(stored, keys(world)))


async def test_an_image_is_bound_to_its_digest(world: World) -> None:
    """Whoever writes the log's entry cannot pass one image's object for another's."""
    archive = images(world)
    stored = await archive.write(WIKI, Engine().save, keys(world))
    with pytest.raises(Corrupt):
        await read(archive, replace(stored, digest="sha256:" + "cd" * 32), keys(world))


async def test_what_no_app_names_goes_after_a_day_of_looking(world: World) -> None:
    named: list[str] = []
    archive = images(world, named=named)
    stored = await archive.write(WIKI, Engine().save, keys(world))
    lost = await archive.write(replace(WIKI, digest="sha256:" + "cd" * 32), Engine(b"x").save, keys(world))
    named.append(stored.object)

    async def proof() -> bool:
        return True

    for _ in range(24):
        assert not await archive.collect_orphans(proof)
        world.clock.now += 3600
    assert [o.id for o in await archive.collect_orphans(proof)] == [lost.object]
    assert {key.split("/")[3] for key in world.objects} == {stored.object}


async def test_a_look_into_another_store_forgets_nothing_of_this_one(world: World) -> None:
    notes = MemoryNotes()
    shelf, cellar = images(world, notes=notes), images(world, notes=notes, place="cellar")
    lost = await shelf.write(WIKI, Engine(b"x").save, keys(world))
    cellar._collector.store = MemoryStore(MemoryStoreConfig(objects=MemoryObjects()))

    async def proof() -> bool:
        return True

    for _ in range(24):
        assert not await shelf.collect_orphans(proof) and not await cellar.collect_orphans(proof)
        world.clock.now += 3600
    assert [o.id for o in await shelf.collect_orphans(proof)] == [lost.object]


async def test_it_is_seen_whether_the_store_still_has_it(world: World, tmp_path: Path) -> None:
    archive = images(world)
    stored = await archive.write(WIKI, Engine().save, keys(world))
    assert await archive.stands(stored)
    world.objects.clear()
    assert not await archive.stands(stored)


async def test_a_mirror_has_an_image_too_and_gives_what_the_store_lost(world: World) -> None:
    data = Random(7).randbytes(70 << 20)
    cellar = world.add_mirror("Cellar")
    (place,) = world.places()
    archive = images(world)
    stored = await archive.write(WIKI, Engine(data).save, keys(world))
    cellar.fail = lambda call, key: "down" if call == "put" and key.endswith("/1") else ""
    with pytest.raises(BackendError):
        await archive.copy(stored, place)
    cellar.fail = lambda _call, _key: ""
    cellar.puts.clear()
    assert await archive.copy(stored, place) and not await archive.copy(stored, place)
    assert cellar.objects == world.objects and len(cellar.puts) == 1, "it went on where it was"
    lost = max(world.objects)
    del world.objects[lost]
    kitchen = images(world, "kitchen")
    with pytest.raises(Corrupt, match=f"{lost} is missing"):
        await read(kitchen, stored, keys(world))
    chunks = [chunk async for chunk in kitchen.read(stored, keys(world), world.places)]
    assert b"".join(chunks) == data
    assert not [p for p in world.folder.rglob("*") if p.is_file()]
