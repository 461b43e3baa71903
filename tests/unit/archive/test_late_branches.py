"""A replaced owner that comes back after hours: what it built on may be gone, and what it stores must restore all the same."""

from __future__ import annotations

import pytest

from fractal.archive import spool
from fractal.archive.records import Record
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
from fractal.testing.archive_world import APP, Device, Files, World

TIMERS = Timers()
MINE: Files = {"a": b"3", "precious": b"x"}


async def away(world: World) -> tuple[Device, Device, Point]:
    """Attic stored two snapshots and went away. Kitchen took the app, and its retention let Attic's go, which still stand."""
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    world.clock.now += 60
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    await attic.archive.timeline()
    return attic, kitchen, two


async def taken(world: World, kitchen: Device, base: Point) -> None:
    await kitchen.epochs.create(APP, 2, TIMERS)
    await kitchen.epochs.create_base(APP, 2, base)
    await kitchen.fetch(base)
    kitchen.epoch, kitchen.keep = 2, Keep(ticks=1, hourly=0, daily=0, weekly=0)
    last: Point | None = None
    for n in range(3):
        world.clock.now += 3600
        last = await kitchen.save(2, f"k-{n}", {"a": b"k%d" % n}, last)
    assert (await kitchen.thin()).let_go
    assert (await kitchen.archive.timeline()).let_go(base)


async def store(attic: Device, parent: Point, *, replaced: bool) -> Record:
    attic.volumes.roots["v"] = MINE
    if "t-3" not in attic.volumes.held["v"]:
        await attic.volumes.snapshot("v", "t-3")
    return await attic.archive.write(
        1,
        snapshotter=attic.snapshotter,
        volume="v",
        name="t-3",
        wall_ms=attic.world.clock.wall_ms(),
        parent=parent,
        name_of=attic.name_of,
        replaced=replaced,
    )


async def stays(world: World, kitchen: Device, record: Record) -> None:
    """It restores, also after everything that its successor ever removes."""
    assert await world.device("Loft").fetch(record.point) == MINE
    for _ in range(28):
        world.clock.now += 3600
        await kitchen.thin()
        await kitchen.archive.collect(await kitchen.rules(), kitchen.owns)
    assert await world.device("Shed").fetch(record.point) == MINE


@pytest.mark.parametrize("restarts", [False, True], ids=["was suspended", "was switched off"])
async def test_what_is_known_to_be_a_branch_builds_on_nothing_that_was_let_go(
    world: World, restarts: bool
) -> None:
    attic, kitchen, two = await away(world)
    await taken(world, kitchen, two)
    if restarts:
        attic.restart()
    record = await store(attic, two, replaced=True)
    assert record.parent is None
    await stays(world, kitchen, record)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("hold", [0, spool.HOLD], ids=["spooled", "held"])
async def test_what_was_stored_in_vain_before_that_was_known_is_stored_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, hold: int, restarts: bool
) -> None:
    monkeypatch.setattr(spool, "HOLD", hold)
    attic, kitchen, two = await away(world)
    await taken(world, kitchen, two)
    vain = await store(attic, two, replaced=False)
    assert vain.parent == two and not (await kitchen.archive.timeline()).whole(vain.point)
    if restarts:
        attic.restart()
    record = await store(attic, two, replaced=True)
    assert (record.parent, record.number) == (None, vain.number + 1)
    assert await store(attic, two, replaced=True) == record, "once"
    await stays(world, kitchen, record)


async def test_an_upload_that_was_broken_off_does_not_go_on_against_what_was_let_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "HOLD", 0)
    attic, kitchen, two = await away(world)
    world.store.fail = lambda call, name: "down" if call == "put" and "/record/" in name else ""
    with pytest.raises(Exception, match="down"):
        await store(attic, two, replaced=False)
    world.store.fail = lambda _call, _name: ""
    await taken(world, kitchen, two)
    attic.restart()
    record = await store(attic, two, replaced=True)
    assert record.parent is None
    await stays(world, kitchen, record)


async def test_a_branch_whose_parent_counts_is_sent_against_it_and_once(world: World) -> None:
    attic, kitchen, two = await away(world)
    await kitchen.epochs.create(APP, 2, TIMERS)
    await kitchen.epochs.create_base(APP, 2, two)
    first = await store(attic, two, replaced=False)
    assert first.parent == two
    puts = len(world.store.puts)
    assert await store(attic, two, replaced=True) == first
    assert len(world.store.puts) == puts
    assert await world.device("Loft").fetch(first.point) == MINE


async def test_what_is_let_go_while_the_branch_is_written_is_noticed_after(world: World) -> None:
    attic, kitchen, two = await away(world)
    await kitchen.epochs.create(APP, 2, TIMERS)
    write, calls = attic.archive._backup.write, 0

    async def meanwhile(*arguments: object) -> Record:
        nonlocal calls
        calls += 1
        if calls == 1:
            await taken(world, kitchen, two)
        return await write(*arguments)  # type: ignore[arg-type]  # handed through

    attic.archive._backup.write = meanwhile  # type: ignore[method-assign,assignment]  # to act in between
    record = await store(attic, two, replaced=True)
    assert (calls, record.parent) == (2, None)
    await stays(world, kitchen, record)
