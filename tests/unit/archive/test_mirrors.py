"""A second store holds all that a restore needs, gives what the first one lost, and gets what it lacks; it arbitrates nothing."""

from __future__ import annotations

from random import Random

import pytest

from fractal.api.errors import BackendError, Corrupt, NotFound
from fractal.archive.epochs import Rollback
from fractal.archive.layout import epoch_key, record_key, segment_key
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
from fractal.testing.archive_world import APP, GROUP, Device, Files, Unruly, World

HOUR = 3600.0


def files(number: int) -> Files:
    return {"a": b"%d" % number, "noise": Random(number).randbytes(3000)}


async def always() -> bool:
    return True


async def never() -> bool:
    return False


async def saved(attic: Device, count: int, first: int = 0) -> list[Point]:
    """So many snapshots, one a minute."""
    points: list[Point] = []
    last = max(attic.names, default=None)
    for number in range(first, first + count):
        attic.world.clock.now += 60.0
        last = await attic.save(1, f"t-{number}", files(number), last)
        points.append(last)
    return points


def segments(store: Unruly) -> list[str]:
    return sorted(key for key in store.objects if "/object/" in key)


def records(store: Unruly) -> list[str]:
    return sorted(key for key in store.objects if "/record/" in key)


async def every(world: World, points: list[Point], name: str = "Fresh") -> None:
    """A device that has nothing restores every moment, and each is what was saved."""
    fresh = world.device(name)
    for number, point in enumerate(points):
        assert await fresh.fetch(point) == files(number), f"{point} of device {name}"


# --- filling -----------------------------------------------------------------------------------------------------------


async def test_a_mirror_is_filled_with_the_same_bytes_and_no_epoch(world: World, attic: Device) -> None:
    await attic.epochs.create(APP, 1, Timers())
    points = await saved(attic, 4)
    cellar = world.mirrors["Cellar"]
    assert await attic.fill("Cellar") == 4
    assert cellar.objects == {k: v for k, v in world.objects.items() if "/epoch/" not in k}
    assert len(cellar.objects) == 8
    assert await attic.fill("Cellar") == 0, "and then it is level"
    more = await saved(attic, 1, first=4)
    assert await attic.fill("Cellar") == 1
    await every(world, points + more)


async def test_what_stands_in_a_mirror_is_whole_at_any_moment(world: World, attic: Device) -> None:
    await saved(attic, 3)
    cellar = world.mirrors["Cellar"]
    await attic.fill("Cellar")
    kinds = ["record" if "/record/" in key else "segment" for key in cellar.puts]
    assert kinds == ["segment", "record"] * 3


async def test_a_copy_that_was_broken_off_goes_on_where_it_was(world: World, attic: Device) -> None:
    points = await saved(attic, 3)
    cellar = world.mirrors["Cellar"]
    cellar.fail = lambda call, key: "down" if call == "put" and key.endswith("record/1/2") else ""
    with pytest.raises(BackendError, match="down"):
        await attic.fill("Cellar")
    assert (len(segments(cellar)), len(records(cellar))) == (2, 1)
    cellar.fail = lambda call, key: ""
    cellar.puts.clear()
    attic.restart()
    assert await attic.fill("Cellar") == 2
    assert len(cellar.puts) == 3, "one segment was there already"
    world.objects.clear()
    world.objects.update(cellar.objects)
    await every(world, points)


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_put_whose_answer_was_lost_is_neither_lost_nor_doubled(
    world: World, attic: Device, how: str
) -> None:
    points = await saved(attic, 2)
    cellar, failed = world.mirrors["Cellar"], set[str]()

    def once(call: str, key: str) -> str:
        if call != "put" or key in failed:
            return ""
        failed.add(key)
        return how

    cellar.fail = once
    await attic.fill("Cellar")
    assert len(failed) == 4 and cellar.objects == world.objects
    await every(world, points)


async def test_a_mirror_that_is_added_to_a_thinned_archive_fills_while_snapshots_go_on(
    world: World, attic: Device
) -> None:
    points = await thinned(attic)
    mirror = attic.mirror("Cellar")
    lacking = await mirror.look()
    number = 100
    for record in lacking:
        await mirror.copy(record)
        if record.number % 5 == 0:
            points += await saved(attic, 1, first=number)
            number += 1
    assert await attic.fill("Cellar") > 0, "what was committed meanwhile"
    assert await attic.fill("Cellar") == 0
    timeline = await attic.archive.timeline()
    world.objects.clear()
    world.objects.update(world.mirrors["Cellar"].objects)
    fresh = world.device("Fresh")
    for point in timeline.points:
        assert (await fresh.fetch(point))["a"], point


async def test_damage_is_not_copied(world: World, attic: Device) -> None:
    await saved(attic, 2)
    bad = segments(world.store)[0]
    world.objects[bad] = bytes(len(world.objects[bad]))
    mirror = attic.mirror("Cellar")
    outcomes = []
    for record in await mirror.look():
        try:
            await mirror.copy(record)
        except Corrupt as error:
            outcomes.append(str(error))
    assert len(outcomes) == 1 and bad in outcomes[0] and "store Shelf" in outcomes[0]
    assert bad not in world.mirrors["Cellar"].objects
    assert len(records(world.mirrors["Cellar"])) == 1, "the other one is there"


async def test_a_second_name_for_the_same_place_is_no_mirror(world: World, attic: Device) -> None:
    await attic.epochs.create(APP, 1, Timers())
    await saved(attic, 1)
    world.mirrors["Cellar"] = world.store
    with pytest.raises(Corrupt, match="no second copy"):
        await attic.mirror("Cellar").look()


async def test_nothing_follows_an_arbiter_that_was_rolled_back(world: World, attic: Device) -> None:
    """Without what it hides nobody knows what is to be there."""
    await saved(attic, 3)
    await attic.fill("Cellar")
    del world.mirrors["Cellar"].objects[records(world.store)[-1]]
    del world.objects[records(world.store)[-1]]
    with pytest.raises(Rollback):
        await attic.mirror("Cellar").look()


async def test_another_record_under_a_name_is_left_alone_and_told(world: World, attic: Device) -> None:
    await saved(attic, 2)
    await attic.fill("Cellar")
    other = World(world.folder / "other")
    twin = other.device("Attic")
    await twin.save(1, "t-0", {"a": b"another life"}, None)
    key = record_key(GROUP, APP, Point(epoch=1, number=1))
    world.mirrors["Cellar"].objects[key] = other.objects[key]
    mirror = attic.mirror("Cellar")
    (lacking,) = await mirror.look()
    with pytest.raises(Corrupt, match="another record than in the app's own store"):
        await mirror.copy(lacking)
    assert world.mirrors["Cellar"].objects[key] == other.objects[key]


async def test_garbage_under_a_name_in_a_mirror_is_replaced(world: World, attic: Device) -> None:
    await saved(attic, 2)
    await attic.fill("Cellar")
    cellar = world.mirrors["Cellar"]
    cellar.objects[records(cellar)[0]] = b"garbage"
    cellar.objects[segments(cellar)[0]] = b"cut"
    await attic.fill("Cellar")
    assert cellar.objects == world.objects


# --- falling back ------------------------------------------------------------------------------------------------------


async def test_every_moment_restores_when_the_store_lost_all_segments(world: World, attic: Device) -> None:
    points = await saved(attic, 5)
    await attic.fill("Cellar")
    for key in segments(world.store):
        del world.objects[key]
    await every(world, points)
    shallow = await attic.archive.verify(deep=False)
    assert len(shallow.problems) == 5 and shallow.broken == ()
    assert all("missing" in p.what and "store Cellar has it" in p.what for p in shallow.problems)
    deep = await attic.archive.verify(deep=True)
    assert len(deep.problems) == 5 and deep.broken == ()
    assert all("in store Shelf" in p.what and "store Cellar has it" in p.what for p in deep.problems)


async def test_a_damaged_segment_is_taken_from_a_mirror(world: World, attic: Device) -> None:
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    for key in segments(world.store):
        world.objects[key] = world.objects[key][:-1] + b"\0"
    await every(world, points)


@pytest.mark.parametrize("wrong", ["other bytes", "another segment", "longer", "shorter", "nothing"])
async def test_what_a_mirror_makes_up_is_refused_and_both_are_named(
    world: World, attic: Device, wrong: str
) -> None:
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    cellar = world.mirrors["Cellar"]
    one, two = segments(cellar)
    del world.objects[one], world.objects[two]
    found = cellar.objects[one]
    cellar.objects[one] = {
        "other bytes": bytes(len(found)),
        "another segment": cellar.objects[two],
        "longer": found + b"\0",
        "shorter": found[:-1],
        "nothing": b"",
    }[wrong]
    fresh = world.device("Fresh")
    with pytest.raises(Corrupt, match=f"{one} is missing in store Shelf; {one}.* in store Cellar"):
        for point in points:
            await fresh.fetch(point)


async def test_a_store_that_is_down_while_a_restore_goes_on(world: World, attic: Device) -> None:
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    world.store.fail = lambda call, key: "down" if call == "get" and "/object/" in key else ""
    await every(world, points)
    world.mirrors["Cellar"].fail = lambda call, key: "down"
    with pytest.raises(BackendError, match="the store is down; it cannot be opened"):
        await world.device("Other").fetch(points[0])


async def test_the_second_mirror_is_asked_when_the_first_lacks_it(world: World, attic: Device) -> None:
    world.add_mirror("Barn")
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    await attic.fill("Barn")
    for store in (world.store, world.mirrors["Cellar"]):
        for key in segments(store):
            del store.objects[key]
    await every(world, points)
    assert await attic.fill("Cellar") == 2, "and it is filled out of the other"
    assert segments(world.mirrors["Cellar"]) == segments(world.mirrors["Barn"])


async def test_records_that_the_store_lost_are_found_by_their_hash(world: World, attic: Device) -> None:
    points = await saved(attic, 6)
    await attic.fill("Cellar")
    # One within, whose hash the next one names, and the last two, of which the last was noted.
    for number in (2, 5, 6):
        del world.objects[record_key(GROUP, APP, Point(epoch=1, number=number))]
    timeline = await attic.archive.timeline()
    assert timeline.points == tuple(points) and timeline.gaps == ()
    report = await attic.archive.verify(deep=True)
    assert [p.key.rpartition("/")[2] for p in report.problems] == ["2", "5", "6"]
    assert all("store Cellar has it" in p.what for p in report.problems) and report.broken == ()
    # Who never saw the last two does not come to know of them by what a mirror lists.
    fresh = world.device("Fresh")
    assert (await fresh.archive.timeline()).points == tuple(points[:4])


async def test_a_mirror_adds_no_record_to_a_timeline(world: World, attic: Device) -> None:
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    other = World(world.folder / "other")
    twin = other.device("Attic")
    last = None
    for number in range(4):
        last = await twin.save(1, f"t-{number}", {"a": b"another life"}, last)
    world.mirrors["Cellar"].objects.update(other.objects)
    del world.objects[record_key(GROUP, APP, points[0])]
    fresh = world.device("Fresh")
    assert (await fresh.archive.timeline()).points == (points[1],)
    with pytest.raises(Corrupt, match=r"1\.1, on which it builds, is missing"):
        await fresh.fetch(points[1])


# --- deleting ----------------------------------------------------------------------------------------------------------


async def thinned(attic: Device) -> list[Point]:
    """Three hours of snapshots, thinned on the way."""
    points: list[Point] = []
    for hour in range(3):
        for part in range(6):
            points += await saved(attic, 1, first=hour * 6 + part)
            attic.world.clock.now += HOUR / 6 - 60
        for _ in range(4):
            await attic.thin()
    return points


async def test_what_a_trim_lets_go_leaves_both_after_its_day(world: World, attic: Device) -> None:
    points = await saved(attic, 6)
    await attic.fill("Cellar")
    before = set(world.mirrors["Cellar"].objects)
    attic.keep = Keep(ticks=1, hourly=1, daily=1, weekly=1)
    for _ in range(3):
        world.clock.now += 2 * HOUR
        points += await saved(attic, 6, first=len(points))
        for _ in range(4):
            await attic.thin()
    await attic.fill("Cellar")
    mirror, cellar = attic.mirror("Cellar"), world.mirrors["Cellar"]
    assert before <= set(cellar.objects), (
        "nothing is deleted because the arbiter lets it go, or has it no more"
    )
    assert await mirror.sweep(await attic.rules(), always) == [], "a day is not over"
    assert await mirror.sweep(await attic.rules(), never, grace=0.0) == [], "nothing goes without proof"
    gone, swept = 0, 0
    for _ in range(26):
        world.clock.now += HOUR
        gone += len(await attic.archive.collect(await attic.rules(), always))
        swept += len(await mirror.sweep(await attic.rules(), always))
    # What was let go before it was copied never came here.
    assert gone > swept > 0
    assert cellar.objects.keys() == {key for key in world.objects if "/epoch/" not in key}
    assert await attic.fill("Cellar") == 0
    kept = (await attic.archive.timeline()).points
    assert 0 < len(kept) < len(points)
    world.objects.clear()
    world.objects.update(cellar.objects)
    fresh = world.device("Fresh")
    for point in kept:
        assert await fresh.fetch(point) == files(points.index(point))


async def test_what_the_arbiter_lost_is_no_reason_to_delete_it_in_a_mirror(
    world: World, attic: Device
) -> None:
    await saved(attic, 3)
    await attic.fill("Cellar")
    cellar = dict(world.mirrors["Cellar"].objects)
    for key in [k for k in world.objects if "/object/" in k or k.endswith("record/1/1")]:
        del world.objects[key]
    mirror = attic.mirror("Cellar")
    for _ in range(30):
        world.clock.now += HOUR
        await mirror.look()
        assert await mirror.sweep(await attic.rules(), always) == []
    assert world.mirrors["Cellar"].objects == cellar


# --- healing -----------------------------------------------------------------------------------------------------------


async def test_the_store_gets_back_what_it_lost(world: World, attic: Device) -> None:
    points = await saved(attic, 6)
    await attic.fill("Cellar")
    before = dict(world.objects)
    lost, cut, rotten = segments(world.store)[:3]
    del world.objects[lost]
    world.objects[cut] = world.objects[cut][:100]
    world.objects[rotten] = bytes(len(world.objects[rotten]))
    del world.objects[record_key(GROUP, APP, points[1])], world.objects[record_key(GROUP, APP, points[-1])]
    world.objects[record_key(GROUP, APP, points[3])] = b"garbage"
    shallow = await attic.archive.faults(deep=False)
    # What was read before is not read again until somebody asks for every byte.
    assert {f.key for f in shallow} == {lost, cut} | {record_key(GROUP, APP, points[n]) for n in (1, 5)}
    done = await attic.archive.mend(await attic.archive.faults(deep=True), always)
    assert len(done) == 6 and all(m.source == "Cellar" and not m.problem for m in done)
    assert world.objects == before
    assert (await attic.archive.verify(deep=True)).problems == ()
    assert await attic.archive.faults(deep=True) == []


async def test_nothing_is_put_back_without_proof(world: World, attic: Device) -> None:
    await saved(attic, 2)
    await attic.fill("Cellar")
    world.objects[segments(world.store)[0]] = b"cut"
    before = dict(world.objects)
    done = await attic.archive.mend(await attic.archive.faults(deep=True), never)
    assert [bool(m.problem) for m in done] == [True] and world.objects == before


async def test_what_a_restore_missed_is_noticed_once(world: World, attic: Device) -> None:
    points = await saved(attic, 2)
    await attic.fill("Cellar")
    for point in points:
        await attic.volumes.delete("v", attic.names[point])
    before = dict(world.objects)
    rotten = segments(world.store)[0]
    world.objects[rotten] = bytes(len(world.objects[rotten]))
    await attic.fetch(points[-1])
    faults = attic.archive.noticed()
    assert [f.key for f in faults] == [rotten] and attic.archive.noticed() == []
    await attic.archive.mend(faults, always)
    assert world.objects == before


async def test_a_store_that_does_not_answer_loses_nothing_by_a_repair(world: World, attic: Device) -> None:
    """What it has may be whole: deleted on that ground it would be in one place less, if the next call fails as well."""
    await saved(attic, 1)
    await attic.fill("Cellar")
    before, (key,) = dict(world.objects), segments(world.store)
    rot = bytes(len(before[key]))
    world.objects[key] = rot
    faults = await attic.archive.faults(deep=True)
    world.objects[key] = before[key]  # put back by hand meanwhile
    world.store.fail = lambda call, what: "down" if call in ("get", "put") and what == key else ""
    done = await attic.archive.mend(faults, always)
    assert [m.key for m in done if "down" in m.problem] == [key] and world.objects == before
    await world.device("Fresh").fetch(Point(epoch=1, number=1))
    assert attic.archive.noticed() == []


async def test_a_record_that_swelled_is_taken_from_a_mirror_though_it_follows_what_is_here(
    world: World, attic: Device
) -> None:
    one, two, _ = await saved(attic, 3)
    await attic.fill("Cellar")
    kitchen = world.device("Kitchen")
    await kitchen.fetch(one)
    world.objects[record_key(GROUP, APP, two)] = bytes(2 << 20)
    barn = world.device("Barn")
    barn.volumes.held["v"] = dict(kitchen.volumes.held["v"])
    assert await barn.fetch(two) == files(1)


async def test_what_is_missing_in_a_store_that_deletes_nothing_is_put_back(
    world: World, attic: Device
) -> None:
    (point,) = await saved(attic, 1)
    await attic.fill("Cellar")
    before = dict(world.objects)
    world.store.deletes = False
    del world.objects[segments(world.store)[0]]
    await attic.volumes.delete("v", attic.names[point])
    await attic.fetch(point)
    done = await attic.archive.mend(attic.archive.noticed(), always)
    assert [m.source for m in done] == ["Cellar"] and world.objects == before


async def test_names_that_a_mirror_makes_up_are_not_kept_in_mind(world: World, attic: Device) -> None:
    await saved(attic, 2)
    await attic.fill("Cellar")
    cellar = world.mirrors["Cellar"]
    for number in range(50):
        cellar.objects[segment_key(GROUP, APP, f"{number:032x}", 0)] = b"x"
    mirror = attic.mirror("Cellar")
    assert await mirror.look() == []
    assert sorted(mirror._sizes) == segments(world.store)


async def test_a_mirror_gets_back_what_rotted_in_it(world: World, attic: Device) -> None:
    await saved(attic, 3)
    await attic.fill("Cellar")
    cellar = world.mirrors["Cellar"]
    rotten = segments(cellar)[1]
    cellar.objects[rotten] = bytes(len(cellar.objects[rotten]))
    mirror = attic.mirror("Cellar")
    assert await attic.fill("Cellar") == 0, "sizes tell nothing of it"
    faults = await mirror.faults()
    assert [f.key for f in faults] == [rotten]
    assert [m.source for m in await mirror.mend(faults, always)] == ["Shelf"]
    assert cellar.objects == world.objects


async def test_an_epoch_that_was_deleted_is_not_put_back(world: World, attic: Device) -> None:
    """Deleting one opened a lock that was taken: that is for people to look at."""
    await attic.epochs.create(APP, 1, Timers())
    await saved(attic, 2)
    await attic.fill("Cellar")
    key = epoch_key(GROUP, APP, 1)
    del world.objects[key]
    assert await attic.archive.faults(deep=True) == []
    await attic.archive.mend(await attic.archive.faults(deep=True), always)
    await attic.fill("Cellar")
    assert key not in world.objects and key not in world.mirrors["Cellar"].objects


async def test_a_name_that_was_taken_meanwhile_is_left_alone(world: World, attic: Device) -> None:
    points = await saved(attic, 3)
    await attic.fill("Cellar")
    key = record_key(GROUP, APP, points[1])
    del world.objects[key]
    faults = await attic.archive.faults(deep=False)
    world.objects[key] = b"somebody else's"
    (mended,) = await attic.archive.mend(faults, always)
    assert "took this record's name" in mended.problem and world.objects[key] == b"somebody else's"


async def test_no_mirror_no_rescue(world: World) -> None:
    """What is here without mirrors stays as it was: a missing segment is named, and that is all."""
    attic = world.device("Attic")
    points = await saved(attic, 2)
    bad = segments(world.store)[0]
    del world.objects[bad]
    with pytest.raises(Corrupt, match=f"{bad} is missing in store Shelf$"):
        for point in points:
            await world.device("Fresh").fetch(point)
    with pytest.raises(NotFound):
        await world.device("Fresh").archive.chain_to(Point(epoch=9, number=1))
