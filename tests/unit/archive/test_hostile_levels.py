"""Merges in the hands of a hostile store, or of a device that is not the owner: none counts that was not made and proved for its place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.api.errors import Corrupt, FractalError
from fractal.api.plain import to_plain
from fractal.archive import layout
from fractal.archive.records import KIND, Record, make_record
from fractal.archive.sealed import seal_statement
from fractal.core.model import Point
from fractal.testing.archive_world import APP, GROUP, Device, Files, World
from tests.unit.archive.test_thinning_interrupted import lived, thin_all

P = Point


async def thinned(world: World) -> tuple[World, dict[Point, Files], Record]:
    """A thinned archive, and one of its merges that are in use."""
    made, held = await lived(world.folder / "made")
    await thin_all(made)
    timeline = await made.device("Shed").archive.timeline()
    return made, held, next(r for slot, r in sorted(timeline.counting.items()) if slot[1])


def level_key(record: Record) -> str:
    return layout.slot_key(GROUP, APP, record.slot)


async def test_a_merge_under_another_name_or_damaged_is_none(world: World) -> None:
    made, held, merge = await thinned(world)
    key = level_key(merge)
    data = made.objects[key]
    for bad in (data[:-1], data + b"\0", b"", b"garbage", bytes(2 << 20)):
        made.objects[key] = bad
        reader = made.device("Shed")
        report = await reader.restart().verify(deep=False)
        assert key in [p.key for p in report.problems], "the object is named"
        timeline = await reader.archive.timeline()
        assert merge.slot not in timeline.counting
        made.device("Attic").restart()
        with pytest.raises(Corrupt, match=r"nothing is let go while .*/level/.* cannot be read"):
            await thin_all(made)
    made.objects[key] = data
    # The right bytes for another moment, and for another level of the same one.
    for slot in ((P(epoch=1, number=3), 1), (merge.point, merge.level % 3 + 1)):
        other = layout.slot_key(GROUP, APP, slot)
        made.objects[other] = data
        timeline = await made.device("Shed").restart().timeline()
        assert slot not in timeline.stored and other in timeline.unread
        del made.objects[other]
    assert held


async def test_bytes_of_a_merge_flipped_cut_or_swapped_restore_nothing(world: World) -> None:
    made, held, merge = await thinned(world)
    objects = {k: v for k, v in made.objects.items() if "/object/" in k}
    key = layout.segment_key(GROUP, APP, merge.body.object.id, 0)
    other = next(k for k in objects if k != key)
    data = objects[key]
    for bad in (data[:100] + bytes([data[100] ^ 1]) + data[101:], data[:-1], data + b"\0", objects[other]):
        made.objects[key] = bad
        kitchen = made.device("Kitchen")
        kitchen.volumes.held.clear()
        with pytest.raises(FractalError, match=merge.body.object.id):
            await kitchen.fetch(merge.point)
        assert merge.point not in {p for p in held if kitchen.name_of(p) in kitchen.volumes.held.get("v", {})}
        report = await kitchen.archive.verify(deep=True)
        assert merge.point in report.broken and report.problems
    made.objects[key] = data
    made.device("Kitchen").volumes.held.clear()
    assert await made.device("Kitchen").fetch(merge.point) == held[merge.point]


def forge(made: World, by: Device, record: Record, **changes: object) -> str:
    """Put a merge that `by` signs in the place of one; its key."""
    body = replace(record.body, **changes)  # type: ignore[arg-type]  # a test's own fields
    key = level_key(record)
    made.objects[key] = seal_statement(
        KIND, key, to_plain(body), keys=by.keys, group_key=made.group_key, entropy=by.entropy
    )
    return key


async def test_another_merge_of_that_name_is_not_the_one_that_was_proved(world: World) -> None:
    """A device of the group with access to the store replaces a merge after a trim named it: by hash it is another one."""
    made, _, merge = await thinned(world)
    attic, den = made.device("Attic"), made.device("Den")
    for by, changes in ((attic, {"wall_ms": 1}), (den, {}), (attic, {"moment_hash": bytes(32)})):
        key = forge(made, by, merge, **changes)
        timeline = await made.device("Shed").restart().timeline()
        assert merge.slot in timeline.stored and merge.slot not in timeline.counting
        report = await made.device("Shed").archive.verify(deep=False)
        assert (key, "this merge is missing, or is another one") in [(p.key, p.what) for p in report.problems]


async def test_only_the_owner_of_an_epoch_writes_its_merges_and_trims(world: World) -> None:
    made, _, merge = await thinned(world)
    attic, den, shed = made.device("Attic"), made.device("Den"), made.device("Shed")
    key = forge(made, den, merge)
    timeline = await shed.archive.timeline()
    trim = timeline.trim
    assert trim is not None
    place = layout.trim_key(GROUP, APP, trim.number + 1)
    everything = replace(trim.body, gone={"1": ((1, 10**6),)}, levels=())
    made.objects[place] = seal_statement(
        "archive-trim",
        place,
        to_plain(everything),
        keys=den.keys,
        group_key=made.group_key,
        entropy=den.entropy,
    )
    shed.restart()
    shed.archive._records._owner_of = lambda epoch: attic.keys.id if epoch == 1 else None
    timeline = await shed.archive.timeline(strict=False)
    assert timeline.trim == trim
    assert "does not own epoch 1" in timeline.unread[place]
    assert "does not own epoch 1" in timeline.unread[key]
    # Nor the owner of an epoch that nobody knows.
    made.objects[place] = seal_statement(
        "archive-trim",
        place,
        to_plain(replace(everything, epoch=9)),
        keys=attic.keys,
        group_key=made.group_key,
        entropy=attic.entropy,
    )
    assert (await shed.archive.timeline(strict=False)).trim == trim


@pytest.mark.parametrize(
    "gone",
    [
        {"1": ((3, 2),)},
        {"1": ((2, 3), (3, 4))},
        {"7": ((1, 2),)},
        {"x": ((1, 2),)},
        {"1": ((0, 2),)},
        {"-1": ((1, 1),)},
    ],
)
async def test_trims_that_say_nonsense_are_none(
    world: World, gone: dict[str, tuple[tuple[int, int], ...]]
) -> None:
    made, _, _ = await thinned(world)
    attic = made.device("Attic")
    trim = (await attic.archive.timeline()).trim
    assert trim is not None
    key = layout.trim_key(GROUP, APP, trim.number + 1)
    made.objects[key] = seal_statement(
        "archive-trim",
        key,
        to_plain(replace(trim.body, gone=gone)),
        keys=attic.keys,
        group_key=made.group_key,
        entropy=attic.entropy,
    )
    timeline = await made.device("Shed").archive.timeline()
    assert timeline.trim == trim and key in timeline.unread


async def test_a_store_that_lags_hides_no_decision_from_who_wrote_it(world: World) -> None:
    made, held, _ = await thinned(world)
    made.store._staleness = 60.0
    attic = made.device("Attic")
    timeline = await attic.archive.timeline()
    newest = [k for k in made.objects if "/trim/" in k]
    made.store.hidden.update(newest)
    made.clock.now += 5
    assert (await attic.archive.timeline()).trim == timeline.trim
    assert held


async def test_a_record_that_names_anothers_object_takes_nothing_with_it(world: World) -> None:
    """What is let go is deleted with its object, unless something that stays has the same one: then it was forged."""
    made, held = await lived(world.folder / "made")
    attic = made.device("Attic")
    timeline = await attic.archive.timeline()
    newest = timeline.record(max(held))
    victim = timeline.record(P(epoch=1, number=2))
    key = layout.record_key(GROUP, APP, victim.point)
    # Its parent's record is what it was: only the object that it claims is another's.
    body = replace(victim.body, object=newest.body.object)
    made.objects[key] = seal_statement(
        KIND, key, to_plain(body), keys=attic.keys, group_key=made.group_key, entropy=attic.entropy
    )
    forged = make_record(victim.point, attic.keys.id, body, key)
    assert forged.hash != victim.hash
    attic.notes.write({k: None for k, _ in attic.notes.scan("")})
    attic.restart()
    with pytest.raises(Corrupt):
        await thin_all(made)
    segment = layout.segment_key(GROUP, APP, newest.body.object.id, 0)
    assert segment in made.objects
