"""What a device that owned an epoch once, and turned hostile, says may go: no honest owner removes it."""

from __future__ import annotations

from dataclasses import replace

from fractal.api.plain import to_plain
from fractal.archive import layout
from fractal.archive.archive import Rules
from fractal.archive.sealed import seal_statement
from fractal.archive.trims import KIND, TrimBody
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
from fractal.testing.archive_world import APP, GROUP, Device, Files, World

HOUR = 3600
TIMERS = Timers()
EVERYTHING = Keep(ticks=100, hourly=100, daily=100, weekly=100)
FEW = Keep(ticks=2, hourly=1, daily=1, weekly=1)


async def yes() -> bool:
    return True


def forged(world: World, by: Device, number: int, body: TrimBody) -> None:
    """A trim that `by` signed."""
    key = layout.trim_key(GROUP, APP, number)
    world.objects[key] = seal_statement(
        KIND, key, to_plain(body), keys=by.keys, group_key=world.group_key, entropy=by.entropy
    )


async def lived(world: World, device: Device, epoch: int, hours: int, last: Point | None) -> Point:
    """Two snapshots an hour."""
    for n in range(2 * hours):
        world.clock.now += HOUR / 2
        files = {"a": b"%d.%d" % (epoch, n), f"f{n}": device.entropy.bytes(3000)}
        last = await device.save(epoch, f"t-{epoch}-{n}", files, last)
        device.names[last] = f"t-{epoch}-{n}"
    assert last is not None
    return last


async def inherited(world: World, number: int = 1) -> tuple[Device, list[Point], Point]:
    """Attic stored three hours. Den, which took the app then, let all of that go. Kitchen has it now."""
    attic, den, kitchen = world.device("Attic"), world.device("Den"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    last = await lived(world, attic, 1, 3, None)
    stored = list((await attic.archive.timeline()).points)
    await den.epochs.create(APP, 2, TIMERS)
    await den.epochs.create_base(APP, 2, last)
    mine = await den.save(2, "mine", {"a": b"rubbish"}, None)
    body = TrimBody(epoch=2, upto=mine, gone={"1": ((1, len(stored)),)}, levels=(), wall_ms=1)
    forged(world, den, number, body)
    await kitchen.epochs.create(APP, 3, TIMERS)
    await kitchen.epochs.create_base(APP, 3, mine)
    kitchen.epoch, kitchen.keep = 3, EVERYTHING
    assert (await kitchen.archive.timeline()).points == (mine,)
    return kitchen, stored, mine


async def a_day(world: World, device: Device) -> int:
    """How much the device removes in it."""
    gone = 0
    for _ in range(27):
        world.clock.now += HOUR
        gone += len(await device.archive.collect(await device.rules(), device.owns))
    return gone


async def test_an_heir_removes_nothing_that_its_own_rules_keep_and_takes_it_back(world: World) -> None:
    kitchen, stored, mine = await inherited(world)
    assert await a_day(world, kitchen) == 0
    done = await kitchen.thin()
    assert (done.back, done.trim) == (len(stored), 2)
    loft = world.device("Loft")
    assert (await loft.archive.timeline()).points == (*stored, mine)
    assert (await loft.fetch(stored[-1]))["a"] == b"1.5"
    assert (await kitchen.thin()).back == 0
    assert await a_day(world, kitchen) == 0


async def test_what_was_decided_in_an_epoch_that_nobody_owned_lets_nothing_go(world: World) -> None:
    """A removed device created epoch 2 and let all of epoch 1 go. The log burnt it; who took 3 began with nothing."""
    attic, shed, kitchen = world.device("Attic"), world.device("Shed"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await attic.epochs.create_base(APP, 1, EMPTY)
    last = await lived(world, attic, 1, 2, None)
    stored = (await kitchen.archive.timeline()).points
    await shed.epochs.create(APP, 2, TIMERS)
    forged(
        world, shed, 1, TrimBody(epoch=2, upto=last, gone={"1": ((1, len(stored)),)}, levels=(), wall_ms=1)
    )
    await kitchen.epochs.create(APP, 3, TIMERS)
    assert (await kitchen.archive.timeline()).points == (), "or this test shows nothing"
    kitchen.unowned = {2}  # the listing is the same, the log has told more
    assert (await kitchen.archive.timeline()).points == stored
    kitchen.unowned = set()
    assert (await kitchen.archive.timeline()).points == ()


async def test_nor_does_it_in_a_mirror(world: World) -> None:
    world.add_mirror("Cellar")
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    await lived(world, attic, 1, 2, None)
    await attic.fill("Cellar")
    before = {k for k in world.mirrors["Cellar"].objects if "/record/" in k or "/object/" in k}
    timeline = await attic.archive.timeline()
    stored = timeline.points
    # Den had the app in between: the trim counts by its epoch.
    den = world.device("Den")
    await den.epochs.create(APP, 2, TIMERS)
    await den.epochs.create_base(APP, 2, stored[-1])
    mine = await den.save(2, "mine", {"a": b"rubbish"}, None)
    forged(world, den, 1, TrimBody(epoch=2, upto=mine, gone={"1": ((1, len(stored)),)}, wall_ms=1))
    await attic.epochs.create(APP, 3, TIMERS)
    await attic.epochs.create_base(APP, 3, mine)
    attic.epoch, attic.keep = 3, EVERYTHING
    await attic.fill("Cellar")
    assert layout.trim_key(GROUP, APP, 1) in world.mirrors["Cellar"].objects
    mirror = attic.mirror("Cellar")
    for _ in range(27):
        world.clock.now += HOUR
        assert await mirror.sweep(await attic.rules(), yes) == []
    assert before <= world.mirrors["Cellar"].objects.keys()


async def test_merges_that_stand_in_for_what_is_gone_stay_though_a_trim_drops_them(world: World) -> None:
    attic, den, kitchen = world.device("Attic"), world.device("Den"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    attic.keep = Keep(ticks=2, hourly=4, daily=1, weekly=1)
    last: Point | None = None
    for hour in range(30):
        for n in range(2):
            world.clock.now += HOUR / 2
            name = f"t-{hour}-{n}"
            last = await attic.save(
                1, name, {"a": b"%d.%d" % (hour, n), "b": attic.entropy.bytes(2000)}, last
            )
            attic.names[last] = name
        await attic.keep_small()
    assert last is not None
    before = await attic.archive.timeline()
    merged = {slot for slot in before.counting if slot[1]}
    assert merged and any((p, 0) not in before.stored for p, _ in merged), "its own record is gone"
    assert before.trim is not None
    await den.epochs.create(APP, 2, TIMERS)
    await den.epochs.create_base(APP, 2, last)
    mine = await den.save(2, "mine", {"a": b"rubbish"}, None)
    body = replace(before.trim.body, epoch=2, upto=mine, levels=(), gone={"1": ((1, last.number),)})
    forged(world, den, before.trim.number + 1, body)
    await kitchen.epochs.create(APP, 3, TIMERS)
    await kitchen.epochs.create_base(APP, 3, mine)
    kitchen.epoch, kitchen.keep = 3, EVERYTHING
    for _ in range(27):
        world.clock.now += HOUR
        await kitchen.archive.collect(await kitchen.rules(), kitchen.owns)
    assert merged <= (await kitchen.archive.timeline()).stored.keys()
    assert (await kitchen.thin()).trim
    after = await world.device("Loft").archive.timeline()
    assert set(before.points) <= set(after.points)
    for point in before.points:
        assert await world.device("Loft").fetch(point)


async def test_the_last_number_used_up_by_somebody_ends_no_retention(world: World) -> None:
    kitchen, stored, mine = await inherited(world, number=layout.MAX_NUMBER - 1)
    assert (await kitchen.thin()).back == len(stored)
    assert set((await world.device("Loft").archive.timeline()).points) == {*stored, mine}
    await kitchen.fetch(mine)
    await lived(world, kitchen, 3, 4, mine)
    kitchen.keep = FEW
    world.clock.now += HOUR
    done = await kitchen.thin()
    assert done.let_go
    trim = (await world.device("Loft").archive.timeline()).trim
    assert trim is not None and (trim.body.epoch, trim.number) == (3, done.trim)
    kitchen.restart()
    assert await a_day(world, kitchen)


async def test_a_policy_that_keeps_more_takes_back_what_still_stands(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    await lived(world, attic, 1, 3, None)
    before = (await attic.archive.timeline()).points
    attic.keep = FEW
    assert (await attic.thin()).let_go
    assert len((await attic.archive.timeline()).points) < len(before)
    attic.keep = EVERYTHING
    assert (await attic.thin()).back
    assert (await attic.archive.timeline()).points == before
    # What is on its way out is of no use to anybody: it goes, whatever the rules say by then.
    attic.keep = FEW
    world.clock.now += HOUR
    assert (await attic.thin()).let_go
    attic.keep = EVERYTHING
    timeline, rules = await attic.archive.timeline(), await attic.rules()
    wanted = sorted(rules.kept(timeline) - timeline.counting.keys())
    cut = wanted[0]
    del world.objects[layout.segment_key(GROUP, APP, timeline.stored[cut].body.object.id, 0)]
    removed = {r.slot for r in await attic.archive._sweeper.collect(rules, yes, grace=0.0)}
    assert removed & set(wanted) == {cut}
    await attic.thin()
    assert cut[0] not in (await attic.archive.timeline()).points


async def test_an_honest_life_takes_nothing_back(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    attic.keep = Keep(ticks=3, hourly=3, daily=2, weekly=1)
    last: Point | None = None
    let_go = 0
    for n in range(60):
        files: Files = {"a": b"%d" % n, f"f{n % 5}": attic.entropy.bytes(2000)}
        world.clock.now += HOUR / (1 + n % 3)
        last = await attic.save(1, f"t-{n}", files, last)
        attic.names[last] = f"t-{n}"
        done = [await attic.thin()]
        while done[-1].merged is not None:
            done.append(await attic.thin())
        assert not any(d.back for d in done)
        let_go += sum(d.let_go for d in done)
        timeline = await attic.archive.timeline()
        standing = timeline.stored.keys() - timeline.counting.keys()
        rules: Rules = await attic.rules()
        assert not standing & rules.kept(timeline)
        await attic.forget_snapshots()
    assert let_go > 20
