"""Records that somebody wrote into an epoch before it was created, or that belongs to another: they never count."""

from __future__ import annotations

import pytest

from fractal.archive.epochs import Rollback
from fractal.archive.reading import OWNERS_AGAIN
from fractal.core.chain import EMPTY, tip
from fractal.core.model import Point, Timers
from fractal.testing.archive_world import APP, GROUP, Device, World

TIMERS = Timers()
PLANTED = Point(epoch=2, number=1)


def careful(world: World, name: str) -> Device:
    """A device that has records count only by owners, as agents do."""
    device = world.device(name)
    device.checks_owners = True
    device.restart()
    device.owners.clear()
    return device


async def planted(world: World) -> tuple[Device, Device, Point]:
    """Attic owns epoch 1 and stored a snapshot; Shed, which owns nothing, wrote the first record of epoch 2. Kitchen looks."""
    attic, shed, kitchen = careful(world, "Attic"), world.device("Shed"), careful(world, "Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    one = await attic.save(1, "t-1", {"a": b"good"}, None)
    await shed.save(2, "evil", {"a": b"evil"}, None)
    timeline = await kitchen.archive.timeline()
    assert timeline.points == (one,)
    assert not timeline.burnt and not timeline.gaps, "nothing that stops retention"
    return attic, kitchen, one


async def test_a_record_written_before_its_epoch_counts_neither_before_nor_after(world: World) -> None:
    _, kitchen, one = await planted(world)
    await kitchen.epochs.create(APP, 2, TIMERS)
    await kitchen.list_owners()
    for restarts in (False, True):
        if restarts:
            kitchen.restart()
        timeline = await kitchen.archive.timeline()
        assert tip(timeline.points, {}, 2) == one
        assert "does not own epoch 2" in timeline.burnt[PLANTED]
    assert await kitchen.epochs.create_base(APP, 2, one) == one
    await kitchen.fetch(one)
    assert await kitchen.save(2, "t-2", {"a": b"mine"}, one) == Point(epoch=2, number=2)


async def test_a_record_planted_in_an_epoch_whose_owner_died_is_nobodys_base(world: World) -> None:
    _, kitchen, one = await planted(world)
    loft = careful(world, "Loft")
    await loft.archive.timeline()
    await kitchen.epochs.create(APP, 2, TIMERS)
    await kitchen.epochs.create_base(APP, 2, one)
    await loft.epochs.create(APP, 3, TIMERS)
    await loft.list_owners()
    timeline = await loft.archive.timeline()
    base = tip(timeline.points, {1: EMPTY, 2: one}, 3)
    assert base == one
    assert await loft.fetch(base) == {"a": b"good"}


async def test_who_has_not_listed_the_epochs_yet_does_so_before_it_believes_a_record(world: World) -> None:
    attic, shed, kitchen = careful(world, "Attic"), world.device("Shed"), careful(world, "Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await shed.save(1, "evil", {"a": b"evil"}, None)
    assert await kitchen.archive._records.read(Point(epoch=1, number=1)) is None
    assert kitchen.owners == {1: attic.keys.id}
    assert (await kitchen.restart().timeline()).points == ()
    await attic.list_owners()
    assert await attic.save(1, "t-1", {"a": b"good"}, None) == Point(epoch=1, number=2)


async def test_owners_are_looked_for_when_a_new_epoch_shows_and_seldom_for_old_ones(world: World) -> None:
    attic, kitchen, one = await planted(world)
    listings = 0
    list_owners = kitchen.list_owners

    async def counted() -> None:
        nonlocal listings
        listings += 1
        await list_owners()

    kitchen.archive._records._list_owners = counted
    for _ in range(3):
        await kitchen.archive.timeline()
    assert listings == 0, "epoch 2 had no owner a moment ago"
    await attic.epochs.create(APP, 2, TIMERS)
    await attic.epochs.create(APP, 3, TIMERS)
    await attic.list_owners()
    three = await attic.save(3, "t-2", {"a": b"more"}, one)
    assert (await kitchen.archive.timeline()).points == (one, three)
    assert listings == 1
    world.objects[f"{GROUP}/{APP}/record/7/1"] = b"garbage"
    await kitchen.archive.timeline()
    assert listings == 2
    world.clock.now += OWNERS_AGAIN
    await kitchen.archive.timeline()
    assert listings == 3


@pytest.mark.parametrize("created", [False, True])
async def test_what_an_earlier_version_noted_of_a_foreign_record_is_no_alarm(
    world: World, created: bool
) -> None:
    _, kitchen, one = await planted(world)
    # It took whatever a device of the group had signed, and noted that.
    kitchen.checks_owners = False
    assert (await kitchen.restart().timeline()).points == (one, PLANTED)
    kitchen.checks_owners = True
    kitchen.restart()
    if created:
        await kitchen.epochs.create(APP, 2, TIMERS)
        await kitchen.list_owners()
    assert (await kitchen.archive.timeline()).points == (one,)
    noted = {key.rpartition("/")[2] for key, _ in kitchen.notes.scan(f"archive/{GROUP}/{APP}/highest/")}
    assert noted == ({"1"} if created else {"1", "2"})


async def test_records_of_an_epoch_that_is_hidden_or_damaged_are_missed(world: World) -> None:
    attic, kitchen = careful(world, "Attic"), careful(world, "Kitchen")
    one = None
    for epoch in (1, 2, 3):
        await attic.epochs.create(APP, epoch, TIMERS)
        await attic.list_owners()
        one = await attic.save(epoch, f"t-{epoch}", {"a": b"%d" % epoch}, one)
    assert len((await kitchen.archive.timeline()).points) == 3
    key = f"{GROUP}/epoch/{APP}/2"
    good = world.objects[key]
    for damage in (None, good[:-1]):
        kitchen.owners.clear()
        kitchen.restart()
        kitchen.open_epochs()
        if damage is None:
            del world.objects[key]
        else:
            world.objects[key] = damage
        with pytest.raises(Rollback, match=r"record 2\.1 of app .* is gone"):
            await kitchen.archive.timeline()
        world.objects[key] = good
