"""A mirror on a real server, behind a cable: filled, cut off in the middle, level again, and what restores when the app's own disk lost all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import pytest
from fractal_sftp.store import SftpStore
from fractal_sftp.testing import Cable, SshServer, temporaries

from fractal.api.errors import BackendError
from fractal.api.store import Store
from fractal.archive.archive import Place
from fractal.builtin.directory import DirectoryStore, open_directory
from fractal.builtin.directory_config import DirectoryConfig
from fractal.core.model import Point
from fractal.testing.archive_world import Device, Files, World
from fractal.testing.context import real_context
from fractal.testing.store import keys

Opener = Callable[..., AbstractAsyncContextManager[SftpStore]]

BULK = Random(5).randbytes(70 << 20)
"""More than a segment."""


def files(number: int) -> Files:
    return {"a": b"%d" % number, "noise": Random(number).randbytes(200_000), "bulk": BULK}


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[DirectoryStore]:
    """The app's own store: a folder on this device's disk."""
    config = DirectoryConfig(path=tmp_path / "shelf")
    async with real_context(tmp_path / "agent") as context, open_directory(context, config) as store:
        yield store


@pytest.fixture
async def friend(own_server: SshServer, tmp_path: Path, opener: Opener) -> AsyncIterator[SftpStore]:
    """The mirror: a friend's machine."""
    async with opener(own_server, tmp_path / "disk" / "store") as store:
        yield store


@pytest.fixture
def world(tmp_path: Path, shelf: DirectoryStore, friend: SftpStore, monkeypatch: pytest.MonkeyPatch) -> World:
    async def opened() -> Store:
        return friend

    made = World(tmp_path / "world")
    made.store = shelf  # type: ignore[assignment]  # what the tests here use of it, every store has
    monkeypatch.setattr(made, "places", lambda: [Place(id="friend", name="Friend", open=opened)])
    return made


async def fill(attic: Device, friend: SftpStore) -> int:
    """Have everything in the mirror; how many records were copied."""
    mirror = attic.archive.mirror(attic.world.places()[0], friend)
    lacking = await mirror.look()
    for record in lacking:
        await mirror.copy(record)
    return len(lacking)


async def test_a_mirror_by_sftp_survives_a_pulled_cable_and_the_loss_of_the_first_store(
    world: World, shelf: DirectoryStore, friend: SftpStore, own_cable: Cable, tmp_path: Path
) -> None:
    attic, points = world.device("Attic"), list[Point]()
    for number in range(4):
        points.append(await attic.save(1, f"t-{number}", files(number), points[-1] if points else None))
    filling = asyncio.create_task(fill(attic, friend))
    while not any("/object/" in key for key in await keys(friend)):
        assert not filling.done()
        await asyncio.sleep(0.01)
    own_cable.pull()
    with pytest.raises(BackendError, match=r"store Friend|sftp"):
        await filling
    # The app's own store takes snapshots as if nothing were.
    points.append(await attic.save(1, "t-4", files(4), points[-1]))
    own_cable.put_back()
    there = set(await keys(friend))
    assert 0 < await fill(attic, friend) <= 5 and there <= set(await keys(friend))
    assert await fill(attic, friend) == 0
    assert await keys(friend) == await keys(shelf)
    assert temporaries(tmp_path / "disk" / "store") == []
    # Every segment is gone from the first, and everything restores on a device that has nothing.
    for key in await keys(shelf):
        if "/object/" in key:
            await shelf.delete(key)
    fresh = world.device("Fresh")
    for number, point in enumerate(points):
        assert await fresh.fetch(point) == files(number)

    async def proof() -> bool:
        return True

    mended = await attic.archive.mend(await attic.archive.faults(deep=True), proof)
    assert len(mended) == 6 and all(m.source == "Friend" for m in mended)
    assert (await attic.archive.verify(deep=True)).problems == ()
