"""A store on this device's own disk takes the spool's files and lends its own, and neither is ever written through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from fractal.api.errors import Corrupt
from fractal.archive import spool
from fractal.builtin.directory import DirectoryStore, open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.testing.archive_world import Device, World
from fractal.testing.context import real_context

NOISE = Random(8).randbytes(150 << 20)


@pytest.fixture
async def shelf(world: World, tmp_path: Path) -> AsyncIterator[DirectoryStore]:
    config = DirectoryConfig(path=tmp_path / "shelf")
    async with real_context(tmp_path / "agent") as context, open_directory(context, config) as store:
        world.store = store  # type: ignore[assignment]
        yield store


def segments(shelf: DirectoryStore) -> list[Path]:
    found = shelf._path.rglob("*")
    return sorted(p for p in found if p.is_file() and "object" in p.parts[-3:] + p.parts[-4:-3])


def device(world: World, name: str) -> Device:
    made = world.device(name)
    made.restart()
    return made


async def test_a_large_object_is_written_once_and_comes_back(
    world: World, shelf: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    attic, kitchen = device(world, "Attic"), device(world, "Kitchen")
    written: list[str] = []

    async def refused(key: str, data: object) -> None:
        written.append(key)
        raise AssertionError(key)

    put_new = shelf.put_new
    monkeypatch.setattr(
        shelf, "put_new", lambda key, data: refused(key, data) if "/object/" in key else put_new(key, data)
    )
    files = {"noise": NOISE}
    point = await attic.save(1, "t", files, None)
    assert written == [] and len(segments(shelf)) == 3
    assert not [p for p in attic.spool.rglob("*") if p.is_file() and p.name != "done"]
    before = [p.stat().st_ino for p in segments(shelf)]
    assert await kitchen.fetch(point) == files
    assert [p.stat().st_ino for p in segments(shelf)] == before
    assert [p.stat().st_nlink for p in segments(shelf)] == [1, 1, 1]


async def test_what_is_fetched_anew_is_not_written_into_the_stores_own_file(
    world: World, shelf: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that was broken off left a name of the store's file in the spool; the next one copies."""
    attic, kitchen = device(world, "Attic"), device(world, "Kitchen")
    point = await attic.save(1, "t", {"noise": NOISE}, None)
    record = (await kitchen.archive.timeline()).record(point)
    await kitchen.archive._fetcher.fetch(record.body.object)
    (first, *_) = segments(shelf)
    content = first.read_bytes()
    assert first.stat().st_nlink == 2

    async def never(key: str, path: Path) -> bool:
        return False

    monkeypatch.setattr(shelf, "lend", never)
    monkeypatch.setattr(spool, "holds", lambda folder, index, segment: False)
    await kitchen.archive._fetcher.fetch(record.body.object)
    assert first.stat().st_nlink == 1 and first.read_bytes() == content


async def test_a_damaged_file_that_was_lent_is_refused(world: World, shelf: DirectoryStore) -> None:
    attic, kitchen = device(world, "Attic"), device(world, "Kitchen")
    point = await attic.save(1, "t", {"noise": NOISE}, None)
    victim = segments(shelf)[1]
    data = bytearray(victim.read_bytes())
    data[12345] ^= 1
    victim.write_bytes(data)
    with pytest.raises(Corrupt, match="not the bytes that its record names"):
        await kitchen.fetch(point)
    victim.unlink()
    with pytest.raises(Corrupt, match="is missing in store Shelf"):
        await kitchen.fetch(point)


async def test_across_file_systems_it_is_copied(
    world: World, shelf: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def elsewhere(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    attic, kitchen = device(world, "Attic"), device(world, "Kitchen")
    link, calls = os.link, list[object]()

    def between(source: object, target: object, **more: object) -> None:
        inside = (
            str(source).isalnum()
            and more.get("src_dir_fd") is not None
            and more.get("dst_dir_fd") is not None
        )
        calls.append(source)
        return link(source, target, **more) if inside else elsewhere()  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", between)
    files = {"noise": NOISE}
    point = await attic.save(1, "t", files, None)
    assert await kitchen.fetch(point) == files and calls
