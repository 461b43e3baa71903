"""What was written comes back, by the shortest way, whatever was in between."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from fractal.api.errors import BackendError, Corrupt, Denied, NotFound, NotSupported
from fractal.api.store import ObjectInfo
from fractal.archive import spool
from fractal.archive.backup import Unreadable
from fractal.archive.epochs import Rollback
from fractal.core.model import Point
from fractal.testing.archive_world import World

P = Point


async def test_every_moment_comes_back_on_another_device(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    moments = [{"a": b"1"}, {"a": b"2", "b": b"x" * 100}, {"b": b"x" * 100}, {}, {"c": b""}]
    points, parent = [], None
    for number, files in enumerate(moments):
        parent = await attic.save(1, f"t-{number}", files, parent)
        points.append(parent)
    assert points == [P(epoch=1, number=n) for n in range(1, 6)]
    for point, files in reversed(list(zip(points, moments, strict=True))):
        assert await kitchen.fetch(point) == files


async def test_a_big_stream_is_cut_into_segments_and_frames(world: World) -> None:
    files = {"noise": Random(1).randbytes(70 << 20), "text": b"again and again " * (1 << 20)}
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    point = await attic.save(1, "t", files, None)
    record = (await attic.archive.timeline()).record(point)
    sizes = [s.size for s in record.body.object.segments]
    assert len(sizes) == 2 and sizes[0] == 64 << 20
    assert await kitchen.fetch(point) == files


async def test_only_what_is_missing_is_fetched(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    await kitchen.fetch(two)
    three = await attic.save(1, "t-3", {"a": b"3"}, two)
    world.store.gets.clear()
    assert await kitchen.fetch(three) == {"a": b"3"}
    assert sum("/object/" in key for key in world.store.gets) == 1
    world.store.gets.clear()
    assert await kitchen.fetch(one) == {"a": b"1"}
    assert not any("/object/" in key for key in world.store.gets)


async def test_what_follows_on_what_is_here_needs_no_listing(world: World) -> None:
    """The last step of a move, for which people wait: its way is told by two records. Any other way has to be looked for."""
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    await kitchen.fetch(one)
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    three = await attic.save(1, "t-3", {"a": b"3"}, two)
    world.store.fail = lambda call, _: "down" if call == "list" else ""
    with pytest.raises(BackendError):
        await kitchen.fetch(three)
    assert await kitchen.fetch(two) == {"a": b"2"}
    assert await kitchen.fetch(three) == {"a": b"3"}


async def test_a_record_that_could_not_be_read_once_is_there_when_it_can(world: World) -> None:
    """What a listing said is remembered: not what it said while a name had nothing behind it."""
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    await kitchen.fetch(one)
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    (key,) = (key for key in world.store.objects if key.endswith("/record/1/2"))
    world.store.hidden = {key}
    real = world.store.list

    async def shown(prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in real(prefix):
            yield info
        if prefix in key:
            yield ObjectInfo(key, len(world.store.objects[key]))

    world.store.list = shown  # type: ignore[method-assign]
    with pytest.raises(Rollback):
        await kitchen.archive.timeline()
    world.store.hidden, world.store.list = set(), real  # type: ignore[method-assign]
    assert await kitchen.fetch(two) == {"a": b"2"}
    assert (await kitchen.archive.timeline()).points == (one, two)


async def test_what_follows_on_another_moment_of_the_same_name_is_refused(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    await kitchen.fetch(one)
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    other = World(world.folder / "other")
    await other.device("Attic").save(1, "t-1", {"a": b"other"}, None)
    (key,) = (key for key in world.store.objects if key.endswith("/record/1/1"))
    world.store.objects[key] = other.store.objects[key]
    with pytest.raises((Corrupt, NotFound)):
        await world.device("Shed").fetch(two)
    shed = world.device("Barn")
    shed.volumes.held["v"] = {"p-1-1": {"a": b"1"}}
    with pytest.raises((Corrupt, NotFound)):
        await shed.fetch(two)
    assert "p-1-2" not in shed.volumes.held["v"]


async def test_the_spools_are_empty_afterwards(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await kitchen.fetch(await attic.save(1, "t-1", {"a": b"1"}, None))
    for device in (attic, kitchen):
        assert [p.name for p in device.spool.rglob("*") if p.is_file() and p.name != "done"] == []


async def test_a_device_without_the_secret_writes_and_cannot_read(world: World) -> None:
    attic, shed = world.device("Attic"), world.device("Shed")
    shed.reads = False
    shed.restart()
    one = await shed.save(1, "t-1", {"a": b"1"}, None)
    shed.volumes.held.clear()
    with pytest.raises(Denied, match="does not hold"):
        await shed.fetch(one)
    assert await attic.fetch(one) == {"a": b"1"}


async def test_a_record_lost_in_the_middle_names_the_nearest_good_moments(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    three = await attic.save(1, "t-3", {"a": b"3"}, two)
    full = await attic.save(1, "t-4", {"a": b"4"}, None)
    world.store.hidden.add(next(k for k in world.objects if k.endswith("/record/1/2")))
    with pytest.raises(Corrupt, match=r"1\.3 cannot be restored: 1\.2.*is missing.*1\.1, 1\.4"):
        await kitchen.fetch(three)
    assert await kitchen.fetch(one) == {"a": b"1"}
    assert await kitchen.fetch(full) == {"a": b"4"}
    with pytest.raises(NotFound):
        await kitchen.fetch(P(epoch=1, number=9))


async def test_a_lost_parent_heals_by_a_full_snapshot(world: World) -> None:
    attic = world.device("Attic")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    del world.objects[next(k for k in world.objects if k.endswith("/record/1/1"))]
    attic.restart()
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    assert two == P(epoch=1, number=2)
    assert await world.device("Kitchen").fetch(two) == {"a": b"2"}


async def test_a_device_with_another_file_system_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    monkeypatch.setattr(kitchen.volumes, "receives", frozenset({"memory/1", "other/1"}))
    assert await kitchen.fetch(two) == {"a": b"2"}
    monkeypatch.setattr(kitchen.volumes, "format", "other/1")
    three = await kitchen.save(2, "t-3", {"a": b"3"}, two)
    four = await kitchen.save(2, "t-4", {"a": b"4"}, three)
    chain = await kitchen.archive.chain_to(four)
    assert [(record.point, record.format, record.parent) for record in chain] == [
        (three, "other/1", None),
        (four, "other/1", three),
    ]
    with pytest.raises(NotSupported, match="other/1"):
        await attic.fetch(four)


async def test_an_interrupted_upload_goes_on_from_the_spool(world: World) -> None:
    attic = world.device("Attic")
    files = {"noise": Random(2).randbytes(66 << 20)}
    world.store.fail = lambda call, key: "down" if call == "put" and key.endswith("/1") else ""
    with pytest.raises(Exception, match="down"):
        await attic.save(1, "t", files, None)
    world.store.fail = lambda _call, _key: ""
    attic.restart()
    world.store.puts.clear()
    point = await attic.save(1, "t", files, None)
    assert attic.volumes.sent == 1
    assert [k.split("/")[-1] for k in world.store.puts] == ["1", "1"]
    assert await world.device("Kitchen").fetch(point) == files


async def test_a_damaged_spool_is_made_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "HOLD", 0)
    attic = world.device("Attic")
    world.store.fail = lambda call, _key: "down" if call == "put" else ""
    with pytest.raises(Exception, match="down"):
        await attic.save(1, "t", {"a": b"1"}, None)
    segment = next(p for p in attic.spool.rglob("0"))
    segment.write_bytes(segment.read_bytes()[:-1] + b"!")
    world.store.fail = lambda _call, _key: ""
    attic.restart()
    point = await attic.save(1, "t", {"a": b"1"}, None)
    assert attic.volumes.sent == 2
    assert await world.device("Kitchen").fetch(point) == {"a": b"1"}


async def test_what_a_restore_that_was_given_up_had_fetched_goes_with_the_next_one(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    two = await attic.save(1, "t-2", {"b": b"2"}, None)
    world.store.hidden.add(next(k for k in world.objects if "/object/" in k))
    records = (await kitchen.archive.timeline()).records
    await kitchen.archive._fetcher.fetch(records[two].body.object)
    with pytest.raises(Corrupt, match="is missing in store Shelf"):
        await kitchen.fetch(one)
    assert not (kitchen.spool / "in" / records[two].body.object.id).exists()
    assert kitchen.volumes.held.get("v", {}) == {}


async def test_a_snapshot_that_was_given_up_leaves_no_spool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "HOLD", 0)
    attic = world.device("Attic")
    world.store.fail = lambda call, _key: "down" if call == "put" else ""
    with pytest.raises(BackendError, match="down"):
        await attic.save(1, "given-up", {"a": b"1"}, None)
    world.store.fail = lambda _call, _key: ""
    await attic.save(1, "next", {"a": b"2"}, None)
    assert [p.name for p in (attic.spool / "out").iterdir()] == ["1-next"]


async def test_a_full_disk_is_told_and_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attic = world.device("Attic")

    def full(_self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(BackendError, match="free some space") as caught:
            await attic.save(1, "t", {"a": b"1"}, None)
    assert caught.value.retryable
    assert world.objects == {}
    point = await attic.save(1, "t", {"a": b"1"}, None)
    assert await world.device("Kitchen").fetch(point) == {"a": b"1"}


async def test_a_snapshot_that_cannot_be_read_is_told_from_a_store_that_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stores a queue of them passes over the one, and waits for the other."""
    attic = world.device("Attic")
    send, ended = attic.volumes.send, []

    async def breaks(volume: str, name: str, parent: str | None = None) -> AsyncIterator[bytes]:
        try:
            async for chunk in send(volume, name, parent):
                yield chunk
                raise BackendError("input/output error")
        finally:
            ended.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(attic.volumes, "send", breaks)
        with pytest.raises(Unreadable, match="snapshot t cannot be read: input/output error"):
            await attic.save(1, "t", {"a": b"1"}, None)
    assert ended == ["t"], "the sender is not left running"
    world.store.fail = lambda call, _key: "down" if call == "put" else ""
    with pytest.raises(BackendError, match="down") as caught:
        await attic.save(1, "t", {"a": b"1"}, None)
    assert not isinstance(caught.value, Unreadable)


async def test_an_epoch_begins_with_its_first_record_also_where_the_store_lags(world: World) -> None:
    """A number that is left out is a gap for ever, and nothing is let go or collected beside one."""
    world.store._staleness = 5.0
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    parent: Point | None = None
    for number in range(3):
        parent = await attic.save(1, f"t-1-{number}", {"a": b"%d" % number}, parent)
        assert parent.number == number + 1
        world.clock.now += 1
        await kitchen.archive.timeline(strict=False)
    for device in (attic, kitchen):
        assert (await device.archive._records.end_of(2))[0] == 1
