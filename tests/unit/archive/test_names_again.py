"""A merge that takes the name of one that went: neither age nor proof of that one is its own, also where listings lag."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fractal.api.errors import BackendError, Corrupt
from fractal.api.store import ObjectInfo
from fractal.archive.epochs import Rollback
from fractal.archive.layout import slot_key
from fractal.archive.orphans import GRACE
from fractal.archive.records import Record
from fractal.archive.standing import keys_of
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
from fractal.testing.archive_world import APP, GROUP, Device, Files, World

HOUR = 3600.0


async def no() -> bool:
    """As while the log is away: nothing is decided."""
    return False


async def lived(world: World) -> tuple[Device, dict[Point, Files]]:
    """An hour is over and not merged yet, and of its snapshots none has to stay."""
    attic, held = world.device("Attic"), dict[Point, Files]()
    attic.keep = Keep(ticks=1, hourly=1, daily=1, weekly=1)
    await attic.epochs.create(APP, 1, Timers())
    await attic.epochs.create_base(APP, 1, EMPTY)
    last: Point | None = None
    for number in range(9):
        world.clock.now += HOUR / 4
        files = {"same": b"x" * 9000, f"f{number % 3}": b"%d" % number * 2000}
        last = await attic.save(1, f"t-{number}", files, last)
        held[last] = files
    return attic, held


async def merged(device: Device) -> Record:
    """A merge that was read back, and that no trim names yet."""
    done = await device.archive.thin(await device.rules(), device.here(), no)
    assert done.merged is not None and done.proved == (done.merged,) and not done.trim
    return done.merged


async def half_gone(world: World, device: Device, merge: Record, how: str) -> None:
    """The store loses what the merge names; a day later its record goes too, or seems not to."""
    for key in keys_of(GROUP, APP, merge.body.object):
        del world.objects[key]
    for _ in range(int(GRACE / HOUR) + 2):
        world.clock.now += HOUR
        await device.archive.leaving()
    world.store.fail = lambda call, key: how if call == "delete" and "/level/" in key else ""
    with pytest.raises(BackendError):
        await device.archive.collect(await device.rules(), device.owns)
    world.store.fail = lambda _call, _key: ""


async def all_restore(world: World, held: dict[Point, Files]) -> set[Point]:
    shed = world.device("Shed")
    points = set((await shed.archive.timeline()).points)
    for point in points:
        shed.volumes.held.clear()
        assert await shed.fetch(point) == held[point], point
    return points


async def test_a_merge_of_the_same_name_begins_with_no_age(world: World) -> None:
    attic, _ = await lived(world)
    first = await merged(attic)
    await half_gone(world, attic, first, "after")
    attic.restart()
    second = await merged(attic)
    assert second.slot == first.slot and second.hash != first.hash
    ages = {found.record.slot: found.age for found in await attic.archive.leaving()}
    assert ages[second.slot] == 0.0


async def test_it_stays_while_a_listing_does_not_show_the_trim_that_names_it_yet(world: World) -> None:
    """Seed 5688: it was deleted as if it had been of no use for a day, and what it had merged was let go."""
    attic, held = await lived(world)
    world.store._staleness = 10.0
    await half_gone(world, attic, await merged(attic), "after")
    attic.restart()
    assert (await attic.thin()).trim == 1
    trim = f"{GROUP}/{APP}/trim/1"
    assert trim in world.objects
    world.store.hidden.add(trim)
    assert await attic.archive.collect(await attic.rules(), attic.owns) == []
    world.store.hidden.clear()
    points = await all_restore(world, held)
    assert max(held) in points and len(points) < len(held), "what is let go is let go"


async def test_ones_own_trim_counts_though_listings_lag(world: World) -> None:
    attic, held = await lived(world)
    world.store._staleness = 10.0
    assert (await attic.thin()).trim == 1
    world.store.hidden.add(f"{GROUP}/{APP}/trim/1")
    found = await attic.archive.timeline()
    assert found.trims == (1,) and len(found.points) < len(held)
    world.clock.now += 11.0
    with pytest.raises(Rollback, match="trim 1"):
        await attic.archive.timeline()


async def test_a_merge_that_is_half_gone_was_never_read_back(world: World) -> None:
    attic, held = await lived(world)
    merge = await merged(attic)
    await half_gone(world, attic, merge, "down")
    with pytest.raises(Corrupt, match="missing"):
        await attic.thin()
    timeline = await world.device("Shed").archive.timeline()
    assert timeline.stored[merge.slot] == merge and merge.slot not in timeline.counting
    assert await all_restore(world, held) == set(held)


async def test_a_record_that_went_is_not_there_though_listings_show_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attic, held = await lived(world)
    first = await merged(attic)
    world.store._staleness = 10.0
    ghost = slot_key(GROUP, APP, first.slot)
    listed = world.store.list

    async def late(prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in listed(prefix):
            yield info
        if ghost.startswith(prefix) and ghost not in world.objects:
            yield ObjectInfo(key=ghost, size=1)

    monkeypatch.setattr(world.store, "list", late)
    await half_gone(world, attic, first, "after")
    assert ghost not in world.objects
    second = await merged(attic)
    assert second.slot == first.slot and second.hash != first.hash
    assert (await attic.thin()).trim == 1
    assert max(held) in await all_restore(world, held)
