"""A mirror that hangs, or lacks what is looked for, costs little, and nobody else anything."""

from __future__ import annotations

import asyncio

import pytest

from fractal.api.errors import BackendError
from fractal.archive import reading, rescue
from fractal.archive.layout import record_key
from fractal.core.model import Point
from fractal.testing.archive_world import APP, GROUP, Device, World
from tests.unit.archive.test_mirrors import always, saved


async def stuck(_: str) -> None:
    await asyncio.Event().wait()


async def test_a_mirror_that_hangs_is_asked_once_in_a_while_and_the_next_one_at_once(
    world: World, attic: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "ANSWER", 0.05)
    points = await saved(attic, 4)
    await attic.fill("Cellar")
    cellar, loft = world.mirrors["Cellar"], world.add_mirror("Loft")
    cellar.slow = stuck
    for point in points:
        key = record_key(GROUP, APP, point)
        loft.objects[key] = world.objects.pop(key)
    fresh = world.device("Fresh")
    fresh.notes.write(dict(attic.notes.scan("")))
    cellar.gets.clear()
    assert (await fresh.archive.timeline()).points == tuple(points), "from the second one"
    assert len(cellar.gets) == 1
    loft.objects.clear()
    fresh.restart()
    cellar.gets.clear()
    for _ in range(3):
        assert (await fresh.archive.timeline(strict=False)).points == ()
    assert len(cellar.gets) == 1
    cellar.slow = None
    world.clock.now += rescue.AGAIN
    assert (await fresh.archive.timeline()).points == tuple(points)


async def test_a_mirror_that_lacks_a_record_is_not_asked_for_it_at_every_look(
    world: World, attic: Device
) -> None:
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    cellar, key = world.mirrors["Cellar"], record_key(GROUP, APP, points[0])
    kept = cellar.objects.pop(key)
    del world.objects[key]
    fresh = world.device("Fresh")
    for _ in range(3):
        assert (await fresh.archive.timeline()).points == (points[1],)
    assert cellar.gets.count(key) == 1
    cellar.objects[key] = kept
    assert (await fresh.archive.verify(deep=True)).problems, "whoever looks at every byte asks anew"
    assert (await fresh.archive.timeline()).points == tuple(points)


async def test_an_error_at_once_costs_nothing_and_is_no_reason_to_wait(world: World, attic: Device) -> None:
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    cellar = world.mirrors["Cellar"]
    del world.objects[record_key(GROUP, APP, points[0])]
    cellar.fail = lambda call, _: "down" if call == "open" else ""
    fresh = world.device("Fresh")
    assert (await fresh.archive.timeline()).points == (points[1],)
    cellar.fail = lambda *_: ""
    assert (await fresh.archive.timeline()).points == tuple(points)


async def test_a_mirror_that_hangs_keeps_no_record_from_being_put_back(
    world: World, attic: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LIMIT", 0.5)
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    cellar, loft = world.mirrors["Cellar"], world.add_mirror("Loft")
    loft.objects.update(cellar.objects)
    before = dict(world.objects)
    del world.objects[record_key(GROUP, APP, points[0])]
    faults = await attic.archive.faults(deep=False)
    cellar.slow = stuck
    (done,) = await asyncio.wait_for(attic.archive.mend(faults, always), 5.0)
    assert not done.problem and world.objects == before


async def test_an_error_that_took_its_time_is_as_none(world: World, attic: Device) -> None:
    """A device that is off: three seconds until its address is given up, for each record, at every look."""
    points = await saved(attic, 4)
    await attic.fill("Cellar")
    cellar = world.mirrors["Cellar"]

    async def unreachable(_: str) -> None:
        world.clock.now += 3.0
        raise BackendError("no route to host", retryable=True)

    cellar.slow = unreachable
    for point in points[:3]:
        del world.objects[record_key(GROUP, APP, point)]
    fresh = world.device("Fresh")
    cellar.gets.clear()
    for _ in range(3):
        assert (await fresh.archive.timeline()).points == (points[3],)
    assert len(cellar.gets) == 1
    cellar.slow = None
    world.clock.now += rescue.AGAIN
    assert (await fresh.archive.timeline()).points == tuple(points)


async def test_what_is_remembered_of_mirrors_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "MOST_VAIN", 5)
    world.add_mirror("Cellar")
    (place,) = world.places()
    in_vain = rescue.InVain(world.clock)
    slots = [(Point(epoch=1, number=number), 0) for number in range(1, 9)]
    for slot in slots:
        in_vain.lacks(place, slot, b"x")
    assert [in_vain.covers(place, slot, b"x") for slot in slots] == [False] * 3 + [True] * 5
    assert not in_vain.covers(place, slots[-1], b"y"), "another record under that name may be there"
    world.clock.now += rescue.AGAIN
    assert not any(in_vain.covers(place, slot, b"x") for slot in slots)
    in_vain.silent(place)
    assert len(in_vain._until) == 1
    assert all(in_vain.covers(place, slot, b"x") for slot in slots)
