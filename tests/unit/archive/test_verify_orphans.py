"""Verifying tells what is wrong and what it breaks; collecting takes only what nobody can miss."""

from __future__ import annotations

from random import Random

import pytest

from fractal.api.errors import BackendError, Corrupt
from fractal.core.model import Point
from fractal.testing.archive_world import APP, GROUP, World

P = Point


async def three(world: World) -> list[Point]:
    attic = world.device("Attic")
    points: list[Point] = []
    for n in range(3):
        files = {"a": b"%d" % n, "noise": Random(n).randbytes(5000)}
        points.append(await attic.save(1, f"t-{n}", files, points[-1] if points else None))
    return points


def segment(world: World, number: int) -> str:
    """Segments in the order in which they were stored."""
    return [k for k in world.objects if "/object/" in k][number]


async def always() -> bool:
    return True


async def never() -> bool:
    return False


async def test_a_whole_archive_has_no_problems(world: World) -> None:
    points = await three(world)
    shed = world.device("Shed")
    shallow = await shed.archive.verify(deep=False)
    assert (shallow.problems, shallow.broken, shallow.objects) == ((), (), 3)
    assert not any("/object/" in key for key in world.store.gets)
    deep = await shed.archive.verify(deep=True)
    assert deep.problems == ()
    assert deep.bytes == sum(len(d) for k, d in world.objects.items() if "/object/" in k)
    assert len(points) == 3


async def test_shallow_needs_no_key_of_the_app(world: World) -> None:
    await three(world)
    store_only = world.device("Shed")
    store_only.reads = False
    assert (await store_only.restart().verify(deep=False)).problems == ()
    assert "does not hold" in (await store_only.archive.verify(deep=True)).problems[0].what


async def test_a_missing_or_cut_segment_breaks_what_builds_on_it(world: World) -> None:
    one, two, last = await three(world)
    key = segment(world, 1)
    data = world.objects.pop(key)
    report = await world.device("Shed").archive.verify(deep=False)
    assert [(p.key, p.what) for p in report.problems] == [(key, "this segment is missing")]
    assert report.broken == (two, last)
    world.objects[key] = data[:-1]
    report = await world.device("Shed").archive.verify(deep=False)
    assert [p.key for p in report.problems] == [key]
    assert "bytes where" in report.problems[0].what
    assert one not in report.broken


async def test_deep_finds_a_flipped_bit_that_shallow_cannot(world: World) -> None:
    await three(world)
    key = segment(world, 2)
    data = world.objects[key]
    world.objects[key] = data[:100] + bytes([data[100] ^ 4]) + data[101:]
    shed = world.device("Shed")
    assert (await shed.archive.verify(deep=False)).problems == ()
    report = await shed.archive.verify(deep=True)
    assert [p.key for p in report.problems] == [f"{GROUP}/{APP}/record/1/3"]
    assert report.broken == (P(epoch=1, number=3),)
    assert list(shed.spool.rglob("0")) == []


async def test_a_record_taken_out_or_replaced_by_garbage_is_told(world: World) -> None:
    points = await three(world)
    key = f"{GROUP}/{APP}/record/1/2"
    data = world.objects.pop(key)
    report = await world.device("Shed").archive.verify(deep=False)
    assert report.broken == (points[2],)
    assert (key, "this record is missing") in [(p.key, p.what) for p in report.problems]
    world.objects[key] = data[:-3]
    report = await world.device("Shed").archive.verify(deep=False)
    assert key in [p.key for p in report.problems]


async def broken_off(world: World) -> None:
    """An upload of which only the first segment arrived, from a device that lost its spool."""
    attic = world.device("Attic")
    world.store.fail = lambda call, key: "down" if call == "put" and "/record/" in key else ""
    with pytest.raises(BackendError):
        await attic.save(1, "lost", {"a": b"lost"}, None)
    world.store.fail = lambda _call, _key: ""


async def test_an_orphan_goes_after_a_day_of_looking_with_proof(world: World) -> None:
    points = await three(world)
    await broken_off(world)
    kitchen = world.device("Kitchen")
    (orphan,) = await kitchen.archive.orphans()
    assert (orphan.age, len(orphan.keys)) == (0.0, 1)
    for _ in range(23):
        world.clock.now += 3600
        assert await kitchen.archive.collect_orphans(always) == []
    world.clock.now += 3600
    assert await kitchen.archive.collect_orphans(never) == []
    (gone,) = await kitchen.archive.collect_orphans(always)
    assert gone.id == orphan.id
    assert await kitchen.archive.orphans() == []
    assert kitchen.notes.scan(f"archive/{GROUP}/{APP}/orphan/") == []
    for point in points:
        await world.device("Shed").fetch(point)


async def test_a_leap_of_the_clock_or_a_restart_ages_nothing_by_much(world: World) -> None:
    await three(world)
    await broken_off(world)
    kitchen = world.device("Kitchen")
    await kitchen.archive.orphans()
    world.clock.now += 30 * 24 * 3600
    (orphan,) = await kitchen.archive.orphans()
    assert orphan.age == 3600
    kitchen.restart()
    world.clock.now += 30 * 24 * 3600
    (orphan,) = await kitchen.archive.orphans()
    assert orphan.age == 3600


async def test_nothing_is_collected_while_a_record_is_unreadable(world: World) -> None:
    await three(world)
    await broken_off(world)
    world.objects[f"{GROUP}/{APP}/record/1/2"] = b"garbage"
    with pytest.raises(Corrupt, match=r"record 1\.2 cannot be read"):
        await world.device("Kitchen").archive.collect_orphans(always, grace=0)
    assert segment(world, 3)


async def test_a_writer_that_took_long_puts_back_what_a_collector_took(world: World) -> None:
    """Segments vanish while a slow upload goes on; the record names only what stands."""
    attic = world.device("Attic")
    noise = Random(5).randbytes(66 << 20)
    taken: list[str] = []

    def slow(call: str, key: str) -> str:
        if call == "put" and key.endswith("/1") and "/object/" in key and not taken:
            world.clock.now += 2 * 3600
            taken.append(key[:-1] + "0")
            del world.objects[taken[0]]
        return ""

    world.store.fail = slow
    point = await attic.save(1, "t", {"noise": noise}, None)
    assert taken
    assert await world.device("Kitchen").fetch(point) == {"noise": noise}
