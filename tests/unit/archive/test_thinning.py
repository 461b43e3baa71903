"""Levels on the real formats: merges, proofs, trims and collection; what stays restores bit for bit, the rest leaves."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from fractal.api.errors import Corrupt, NotFound, NotSupported
from fractal.archive import trims
from fractal.archive.epochs import Rollback
from fractal.archive.thinning import Thinned
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.core.retention import Keep
from fractal.testing.archive_world import APP, GROUP, Device, Files, World

HOUR = 3600.0
STEP = HOUR / 4


class Life:
    """An app that is written to all the time on one device, with everything that a moment held."""

    def __init__(self, world: World, device: str = "Attic", seed: int = 1) -> None:
        self.world = world
        self.device = world.device(device)
        self.random = Random(seed)
        self.files: Files = {"big": self.random.randbytes(60_000)}
        self.held: dict[Point, Files] = {}
        self.last: Point | None = None
        self.count = 0

    async def begin(self) -> Life:
        await self.device.epochs.create(APP, 1, Timers())
        await self.device.epochs.create_base(APP, 1, EMPTY)
        return self

    async def tick(self, step: float = STEP) -> Point:
        self.world.clock.now += step
        self.count += 1
        self.files = {**self.files, f"f{self.count % 7}": self.random.randbytes(6_000)}
        self.last = await self.device.save(
            self.device.epoch, f"t-{self.device.epoch}-{self.count}", self.files, self.last
        )
        self.held[self.last] = self.files
        return self.last

    async def hours(self, count: int, thin: bool = True) -> None:
        for _ in range(count):
            for _ in range(4):
                await self.tick()
            if thin:
                await self.keep_up()

    async def keep_up(self) -> list[Thinned]:
        """As an agent does after each hour."""
        done = [await self.device.thin()]
        while done[-1].merged is not None:
            done.append(await self.device.thin())
        await self.device.archive.collect(await self.device.rules(), self.device.owns)
        await self.device.forget_snapshots()
        return done


async def all_restore(life: Life, reader: Device) -> int:
    """Every moment that the archive lists restores to what it held, from nothing."""
    timeline = await reader.archive.timeline()
    for point in timeline.points:
        reader.volumes.held.clear()
        assert await reader.fetch(point) == life.held[point], point
    report = await reader.archive.verify(deep=True)
    assert (report.problems, report.broken) == ((), ())
    assert await reader.archive.orphans() == []
    return len(timeline.points)


async def test_an_hour_becomes_one_record_that_counts_when_it_was_read_back(world: World) -> None:
    life = await Life(world).begin()
    for _ in range(9):
        await life.tick()
    before = sorted(k for k in world.objects if "/level/" in k)
    assert before == []
    done = await life.device.thin()
    assert done.merged is not None and done.proved == (done.merged,) and done.trim == 1
    assert (done.merged.level, done.merged.parent) == (1, Point(epoch=1, number=1))
    key = f"{GROUP}/{APP}/record/1/level/{done.merged.number}/1"
    assert key in world.objects and f"{GROUP}/{APP}/trim/1" in world.objects
    reader = world.device("Kitchen")
    chain = await reader.archive.chain_to(done.merged.point)
    assert [r.level for r in chain] == [0, 1], "the shortest way"
    assert await all_restore(life, reader) == 9


async def test_old_ticks_leave_the_list_at_once_and_the_store_a_day_later(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(12)
    timeline = await world.device("Kitchen").archive.timeline()
    assert len(timeline.points) < 48
    gone = Point(epoch=1, number=6)
    assert timeline.let_go(gone)
    with pytest.raises(NotFound, match=r"snapshot 1\.6 was let go by the app's retention.*Nearest whole"):
        await world.device("Kitchen").fetch(gone)
    key = f"{GROUP}/{APP}/record/1/6"
    segment = f"{GROUP}/{APP}/object/{timeline.stored[gone, 0].body.object.id}/0"
    assert key in world.objects and segment in world.objects
    for _ in range(26):
        await life.hours(1)
    assert key not in world.objects and segment not in world.objects
    assert await all_restore(life, world.device("Kitchen")) > 12
    assert len([k for k in world.objects if "/trim/" in k]) <= 2
    timeline = await world.device("Shed").archive.timeline()
    assert timeline.gaps == () and timeline.burnt == {}


def far(name: str, parent: str | None) -> int:
    """A merge repeats 90 kB, a tick nothing."""
    return 90_000 if parent is not None and int(name.split("-")[-1]) - int(parent.split("-")[-1]) > 1 else 0


async def test_a_merge_that_outweighs_what_it_replaces_is_given_up_and_leaves_nothing(world: World) -> None:
    life = await Life(world).begin()
    life.device.volumes.waste = far
    for _ in range(9):
        await life.tick()
    objects = set(world.objects)
    done = await life.device.thin()
    assert done.refused is not None and done.merged is None
    assert done.refused.limit is not None
    assert set(world.objects) == objects, "not a byte of it was stored"
    done = await life.device.thin()
    assert done.refused is not None and done.refused.point > Point(epoch=1, number=4)
    assert (await life.device.thin()).refused is None, "each is tried once"
    assert await all_restore(life, world.device("Kitchen")) == 9
    assert not list(life.device.spool.glob("merge/*"))


async def test_a_merge_that_was_damaged_in_the_store_never_counts(world: World) -> None:
    life = await Life(world).begin()
    for _ in range(9):
        await life.tick()

    def damage(call: str, key: str) -> str:
        if call == "put" and "/level/" in key:
            newest = [k for k in world.objects if "/object/" in k][-1]
            world.objects[newest] = world.objects[newest][:-1] + b"?"
        return ""

    world.store.fail = damage
    with pytest.raises(Corrupt, match="not the bytes that its record names"):
        await life.device.thin()
    world.store.fail = lambda _call, _key: ""
    timeline = await world.device("Kitchen").archive.timeline()
    assert timeline.trim is None and len(timeline.points) == 9
    await life.hours(40)
    timeline = await world.device("Kitchen").archive.timeline()
    assert not any(slot[1] and slot[0].number == 4 for slot in timeline.stored), (
        "it left the store in the end"
    )
    await all_restore(life, world.device("Kitchen"))


async def test_nothing_goes_without_fresh_proof(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(40, thin=False)
    for _ in range(6):
        await life.device.thin()
    world.clock.now += HOUR
    trimmed = await life.device.thin()
    kitchen = world.device("Kitchen")
    kitchen.epoch = 2
    await kitchen.epochs.create(APP, 2, Timers())
    objects = set(world.objects)
    for _ in range(30):
        world.clock.now += HOUR
        await life.device.archive.leaving()
        assert await life.device.archive.collect(await life.device.rules(), life.device.owns) == []
        assert (await life.device.thin()).trim == 0
    assert {k for k in objects if "/object/" in k or "/record/" in k} <= set(world.objects)
    assert trimmed.over == 0


async def test_a_replaced_owners_trim_counts_only_if_the_main_line_has_its_moment(world: World) -> None:
    """The replaced owner does not know yet: what it lets go for its branch must not tear the line that goes on."""
    life = await Life(world).begin()
    await life.hours(3, thin=False)
    base = life.last
    assert base is not None
    attic, kitchen = life.device, world.device("Kitchen")
    await kitchen.fetch(base)
    await kitchen.epochs.create(APP, 2, Timers())
    await kitchen.epochs.create_base(APP, 2, base)
    kitchen.epoch = 2
    await life.hours(6, thin=False)
    attic.keep = Keep(ticks=1, hourly=0, daily=0, weekly=0)

    async def sure() -> bool:
        return True

    async def unaware() -> tuple[dict[int, Point], int]:
        return {1: EMPTY}, 1

    attic.archive._records._line = unaware
    rules = await attic.rules()
    written = 0
    for _ in range(12):
        world.clock.now += HOUR
        written += (await attic.archive.thin(rules, attic.here(), sure)).trim
    assert written
    assert (await attic.archive.timeline()).let_go(base)
    timeline = await kitchen.archive.timeline()
    assert timeline.trim is None
    assert timeline.whole(base) and not timeline.let_go(base)
    taken = Life(world, "Kitchen", seed=2)
    taken.last, taken.files = base, dict(life.held[base])
    new = await taken.tick()
    world.device("Shed").volumes.held.clear()
    assert await world.device("Shed").fetch(new) == taken.held[new]
    # And when the new owner decides, its word counts, whatever is numbered higher.
    taken.device.keep = Keep(ticks=2, hourly=2, daily=2, weekly=2)
    await taken.hours(30)
    timeline = await world.device("Shed").archive.timeline()
    assert timeline.trim is not None and timeline.trim.body.epoch == 2
    life.held.update(taken.held)
    await all_restore(life, world.device("Shed"))


async def test_a_new_owner_goes_on_from_the_snapshots_that_its_restore_brought(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(30)
    kitchen = world.device("Kitchen")
    assert life.last is not None
    chain = await kitchen.archive.chain_to(life.last)
    await kitchen.fetch(life.last)
    kitchen.names = {r.point: kitchen.name_of(r.point) for r in chain}
    await kitchen.epochs.create(APP, 2, Timers())
    await kitchen.epochs.create_base(APP, 2, life.last)
    kitchen.epoch = 2
    taken = Life(world, "Kitchen", seed=3)
    taken.last, taken.files, taken.held = life.last, dict(life.files), life.held
    done = []
    for _ in range(8):
        for _ in range(4):
            await taken.tick()
        done += await taken.keep_up()
    merged = [d.merged for d in done if d.merged is not None]
    assert len(merged) >= 6 and all(m.parent is not None for m in merged), "no full one was needed"
    await all_restore(taken, world.device("Shed"))


async def test_nothing_is_let_go_while_a_base_of_the_line_cannot_be_read(world: World) -> None:
    """Else all that lies before would look like the work of a replaced owner, of which only the last moment stays."""
    life = await Life(world).begin()
    await life.hours(6, thin=False)
    kitchen = world.device("Kitchen")
    assert life.last is not None
    await kitchen.fetch(life.last)
    await kitchen.epochs.create(APP, 2, Timers())
    await kitchen.epochs.create_base(APP, 2, life.last)
    kitchen.epoch = 2
    taken = Life(world, "Kitchen", seed=4)
    taken.last, taken.files, taken.held = life.last, dict(life.files), life.held
    await taken.tick()
    rules = await kitchen.rules()
    cut = replace(rules, bases={e: base for e, base in rules.bases.items() if e != 2})
    for _ in range(3):
        with pytest.raises(Corrupt, match="while the base of epoch 2 cannot be read"):
            await kitchen.archive.thin(cut, kitchen.here(), kitchen.owns)
    assert (await kitchen.archive.timeline()).trim is None
    await all_restore(taken, world.device("Shed"))


async def test_collection_beside_a_slow_restore_takes_nothing_that_it_needs(world: World) -> None:
    """The restore planned its way before the trim: what it still has to fetch stays for a day."""
    life = await Life(world).begin()
    await life.hours(4, thin=False)
    wanted = Point(epoch=1, number=7)
    kitchen = world.device("Kitchen")
    hours, busy = 0, False

    async def slow(key: str) -> None:
        """Three hours pass with every object that the restore reads."""
        nonlocal hours, busy
        if "/object/" in key and not busy:
            busy = True
            hours += 3
            await life.hours(3)
            busy = False

    world.store.slow = slow
    assert await kitchen.fetch(wanted) == life.held[wanted]
    assert 15 <= hours < 24
    timeline = await world.device("Shed").archive.timeline()
    assert timeline.let_go(wanted), "retention let it go meanwhile"


async def test_pins_stay_and_so_does_what_they_build_on(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(2, thin=False)
    pinned = Point(epoch=1, number=6)
    life.device.pins.add(pinned)
    await life.hours(40)
    reader = world.device("Kitchen")
    assert await reader.fetch(pinned) == life.held[pinned]
    assert not (await reader.archive.timeline()).let_go(pinned)


async def test_nothing_is_let_go_while_a_record_is_missing_or_hidden(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(8, thin=False)
    world.store.hidden.add(f"{GROUP}/{APP}/record/1/5")
    life.device.restart()
    objects = set(world.objects)
    for _ in range(9):
        with pytest.raises(Corrupt, match=r"nothing is let go while record 1\.5 cannot be read"):
            await life.device.thin()
    assert not [k for k in world.objects if "/trim/" in k]
    assert objects <= set(world.objects)
    world.store.hidden.clear()
    life.device.restart()
    await life.hours(2)
    await all_restore(life, world.device("Kitchen"))


async def test_nothing_is_deleted_while_an_object_that_stays_is_missing(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(20)
    timeline = await life.device.archive.timeline()
    needed = next(r for r in timeline.counting.values() if r.level)
    key = f"{GROUP}/{APP}/object/{needed.body.object.id}/0"
    data = world.objects.pop(key)
    for _ in range(26):
        world.clock.now += HOUR
        await life.device.archive.leaving()
    before = set(world.objects)
    with pytest.raises(Corrupt, match=f"nothing is removed while {key}"):
        await life.device.archive.collect(await life.device.rules(), life.device.owns)
    assert set(world.objects) == before
    world.objects[key] = data
    assert await life.device.archive.collect(await life.device.rules(), life.device.owns)
    await all_restore(life, world.device("Kitchen"))


async def test_a_hidden_trim_is_a_rollback_also_after_a_restart(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(8)
    for key in [k for k in world.objects if "/trim/" in k]:
        world.store.hidden.add(key)
    for _ in range(2):
        with pytest.raises(Rollback, match=r"trim .* is gone"):
            await life.device.archive.timeline()
        life.device.restart()


async def test_trims_that_are_swapped_replayed_foreign_or_damaged_count_for_nothing(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(8)
    reader = world.device("Kitchen")
    good = await reader.archive.timeline()
    assert good.trim is not None
    key = f"{GROUP}/{APP}/trim/{good.trim.number}"
    data = world.objects[key]
    for bad in (data[:-1], b"", b"FHSdoc\x01" + bytes(400), bytes(2 << 20)):
        world.objects[f"{GROUP}/{APP}/trim/{good.trim.number + 1}"] = bad
        timeline = await reader.restart().timeline()
        assert timeline.trim == good.trim
        assert len(timeline.unread) == 1
    # The right bytes under another name.
    world.objects[f"{GROUP}/{APP}/trim/{good.trim.number + 1}"] = data
    assert (await reader.restart().timeline()).trim == good.trim
    del world.objects[f"{GROUP}/{APP}/trim/{good.trim.number + 1}"]
    # Another device's word, and that of one that is no device any more.
    world.strangers.add("Attic")
    assert (await world.device("Shed").archive.timeline(strict=False)).trim is None


async def test_a_store_that_deletes_nothing_says_so(world: World) -> None:
    life = await Life(world).begin()
    await life.hours(8)

    world.store.deletes = False
    for _ in range(25):
        world.clock.now += HOUR
        await life.device.archive.leaving()
    with pytest.raises(NotSupported):
        await life.device.archive.collect(await life.device.rules(), life.device.owns)
    await all_restore(life, world.device("Kitchen"))


# --- pins that meet a trim --------------------------------------------------------------------------------------------


async def let_go_while_pinned(world: World) -> tuple[Life, Point]:
    """A life whose newest trim let a moment go that was pinned after the owner had looked for pins."""
    life = await Life(world).begin()
    await life.hours(11, thin=False)
    before = set((await life.device.archive.timeline()).points)
    life.device.keep = replace(life.device.keep, ticks=4, hourly=2)
    await life.keep_up()
    timeline = await life.device.archive.timeline()
    pin = next(p for p in sorted(before, reverse=True) if timeline.let_go(p) and p not in timeline.points)
    return life, pin


async def test_a_pin_wins_against_the_trim_that_was_written_before_it_was_seen(world: World) -> None:
    life, pin = await let_go_while_pinned(world)
    reader = world.device("Kitchen")
    with pytest.raises(NotFound, match="let go"):
        await reader.fetch(pin)
    life.device.pins.add(pin)
    outlook = await life.device.archive.outlook(await life.device.rules())
    assert pin in outlook.back and outlook.retained.kept[pin] == "pinned"
    done = await life.device.thin()
    assert done.trim, "at once, not with the next hour's trim"
    assert await reader.fetch(pin) == life.held[pin]
    assert not (await life.device.archive.outlook(await life.device.rules())).back
    await life.hours(30)
    assert await reader.fetch(pin) == life.held[pin]
    assert await all_restore(life, reader) >= 6
    timeline = await world.device("Shed").archive.timeline()
    assert timeline.gaps == ()
    life.device.pins.clear()
    await life.hours(28)
    assert (await reader.archive.timeline()).let_go(pin)
    assert await all_restore(life, reader)


async def test_a_pin_does_not_bring_back_what_is_on_its_way_out(world: World) -> None:
    """Segments of the moment, or of one that it builds on, are gone: to list it again would be a lie that stops everything."""
    life, pin = await let_go_while_pinned(world)
    record = (await life.device.archive.timeline()).stored[pin, 0]
    del world.objects[f"{GROUP}/{APP}/object/{record.body.object.id}/0"]
    life.device.pins.add(pin)
    assert not (await life.device.archive.outlook(await life.device.rules())).back
    await life.hours(2)
    with pytest.raises(NotFound, match="let go"):
        await world.device("Kitchen").fetch(pin)
    assert await all_restore(life, world.device("Kitchen"))


def test_points_are_taken_out_of_spans() -> None:
    before = {"1": ((1, 4), (7, 7), (9, 12)), "2": ((3, 3),)}
    points = [Point(epoch=e, number=n) for e, n in [(1, 1), (1, 3), (1, 7), (1, 8), (1, 12), (2, 3), (3, 1)]]
    assert trims.without(before, points) == {"1": ((2, 2), (4, 4), (9, 11))}
    assert trims.without(before, []) == before
