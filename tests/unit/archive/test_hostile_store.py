"""A store may do what it likes with the bytes: everything is noticed, nothing is half-restored."""

from __future__ import annotations

import io
import itertools
from collections.abc import AsyncIterator, Callable
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fractal.api.errors import BackendError, Corrupt, FractalError
from fractal.api.plain import to_plain
from fractal.api.store import ObjectInfo
from fractal.archive import spool, standing
from fractal.archive.epochs import Rollback
from fractal.archive.layout import segment_key
from fractal.archive.reading import MAX_GAPS
from fractal.archive.records import object_header
from fractal.archive.sealed import seal_statement
from fractal.core.model import Point
from fractal.crypto.keys import DeviceKeys, unseal_with
from fractal.crypto.stream import MAGIC, ObjectReader, ObjectSeal, Raw, RawHash
from fractal.testing.archive_world import APP, GROUP, Files, World

FILES: Files = {"a": b"text " * 1000, "noise": Random(3).randbytes(9 << 20)}


async def stored(world: World) -> tuple[Point, Point, dict[str, bytes]]:
    attic = world.device("Attic")
    one = await attic.save(1, "t-1", FILES, None)
    two = await attic.save(1, "t-2", {**FILES, "b": b"new"}, one)
    return one, two, {k: v for k, v in world.objects.items() if "/object/" in k}


def refs(world: World) -> list[str]:
    return sorted(k for k in world.objects if "/object/" in k)


async def refused(world: World, point: Point) -> None:
    kitchen = world.device("Kitchen")
    with pytest.raises(FractalError):
        await kitchen.fetch(point)
    assert kitchen.volumes.held.get("v", {}) == {}
    assert kitchen.volumes.received == 0, "not a byte may act before the whole object was checked"


async def test_every_byte_class_of_a_stored_segment_flipped_or_cut(world: World) -> None:
    one, _, objects = await stored(world)
    record = (await world.device("Attic").archive.timeline()).record(one)
    key = f"{GROUP}/{APP}/object/{record.body.object.id}/0"
    data = objects[key]
    for place in [0, 7, 9, 20, 200, 300, 330, 5000, len(data) // 2, len(data) - 5000, len(data) - 1]:
        world.objects[key] = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        await refused(world, one)
        world.objects[key] = data[:place]
        await refused(world, one)
    world.objects[key] = data + b"\0"
    await refused(world, one)
    del world.objects[key]
    await refused(world, one)
    world.objects[key] = data
    assert await world.device("Kitchen").fetch(one) == FILES


async def test_segments_swapped_between_objects_and_replayed(world: World) -> None:
    one, two, objects = await stored(world)
    first, second = refs(world)
    world.objects[first], world.objects[second] = objects[second], objects[first]
    await refused(world, one)
    await refused(world, two)


async def test_records_swapped_replayed_foreign_or_damaged_are_no_records(world: World) -> None:
    one, two, _ = await stored(world)
    keys = [f"{GROUP}/{APP}/record/1/{n}" for n in (1, 2)]
    good = [world.objects[k] for k in keys]
    other = World(world.folder / "other")
    await other.device("Attic").save(1, "t", {"x": b"y"}, None)
    for bad in (
        good[1],
        good[0][:-1],
        good[0] + b"\0",
        b"",
        b"garbage",
        b"FHSdoc\x01" + bytes(400),
        bytes(2 << 20),
    ):
        world.objects[keys[0]] = bad
        await refused(world, one)
        await refused(world, two)
    world.objects[keys[0]] = good[0]
    kitchen = world.device("Kitchen")
    assert await kitchen.fetch(two) == {**FILES, "b": b"new"}


async def test_a_record_of_a_stranger_is_skipped_and_its_number_too(world: World) -> None:
    attic, shed = world.device("Attic"), world.device("Shed")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    world.strangers.add("Shed")
    await shed.save(1, "evil", {"a": b"evil"}, None)
    two = await attic.save(1, "t-2", {"a": b"2"}, one)
    assert two == Point(epoch=1, number=3)
    timeline = await world.device("Kitchen").archive.timeline()
    assert timeline.points == (one, two)
    assert "no device of the group" in timeline.burnt[Point(epoch=1, number=2)]
    assert timeline.gaps == ()


async def test_only_the_owner_of_an_epoch_writes_its_records(world: World) -> None:
    attic, shed, kitchen = world.device("Attic"), world.device("Shed"), world.device("Kitchen")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    await shed.save(1, "evil", {"a": b"evil"}, None)
    kitchen.archive._records._owner_of = lambda epoch: attic.keys.id if epoch == 1 else None
    timeline = await kitchen.archive.timeline()
    assert timeline.points == (one,)
    assert "does not own epoch 1" in next(iter(timeline.burnt.values()))


async def test_hiding_or_replacing_the_newest_record_is_a_rollback_also_after_a_restart(world: World) -> None:
    _, two, _ = await stored(world)
    attic = world.device("Attic")
    key = f"{GROUP}/{APP}/record/1/2"
    world.store.hidden.add(key)
    for _ in range(2):
        with pytest.raises(Rollback, match=r"record 1\.2 of app .* is gone"):
            await attic.archive.timeline()
        attic.restart()
    assert (await attic.archive.timeline(strict=False)).points == (Point(epoch=1, number=1),)
    world.store.hidden.clear()
    # The same device signs another record of that name, as if the first had never been acknowledged.
    twin = World(world.folder / "twin")
    twin.device("Attic").entropy.bytes(7)
    await stored(twin)
    world.objects[key] = twin.objects[key]
    attic.restart()
    with pytest.raises(Rollback, match="replaced"):
        await attic.archive.timeline()
    del world.objects[key]
    attic.restart()
    with pytest.raises(Rollback, match="gone"):
        await attic.archive.timeline()
    assert two.number == 2


async def test_a_parent_that_was_exchanged_for_another_of_the_same_name_is_noticed(world: World) -> None:
    one, two, _ = await stored(world)
    twin = World(world.folder / "twin")
    twin.device("Attic").entropy.bytes(7)
    await twin.device("Attic").save(1, "t-1", {"a": b"other"}, None)
    world.objects.update(twin.objects)
    kitchen = world.device("Kitchen")
    assert await kitchen.fetch(one) == {"a": b"other"}
    with pytest.raises(Corrupt, match="is not the one that it was taken against"):
        await kitchen.fetch(two)


async def test_a_member_cannot_sign_for_another_device(world: World) -> None:
    attic, shed = world.device("Attic"), world.device("Shed")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    forged = DeviceKeys(shed.keys.sign_seed, shed.keys.box_secret)
    forged.__dict__["id"] = attic.keys.id
    key = f"{GROUP}/{APP}/record/1/2"
    body = to_plain((await attic.archive.timeline()).record(one).body)
    world.objects[key] = seal_statement(
        "archive-record", key, body, keys=forged, group_key=world.group_key, entropy=shed.entropy
    )
    timeline = await world.device("Kitchen").archive.timeline()
    assert timeline.points == (one,)
    assert "the signature is not that of" in timeline.burnt[Point(epoch=1, number=2)]


async def test_a_record_with_a_giant_number_costs_no_time(world: World) -> None:
    """Whoever may write into the store may leave 10^14 numbers out: they are not counted one by one."""
    attic, den = world.device("Attic"), world.device("Den")
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    body = to_plain((await attic.archive.timeline()).record(one).body)
    for number in (5, 10**14):
        key = f"{GROUP}/{APP}/record/7/{number}"
        world.objects[key] = seal_statement(
            "archive-record", key, body, keys=den.keys, group_key=world.group_key, entropy=den.entropy
        )
    timeline = await world.device("Kitchen").archive.timeline()
    assert len(timeline.points) == 3
    assert timeline.gaps[:4] == tuple(Point(epoch=7, number=n) for n in (1, 2, 3, 4))
    assert len(timeline.gaps) == MAX_GAPS


async def test_a_store_that_lists_records_without_end_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal.archive.reading.MAX_LISTED", 10)
    for number in range(11):
        world.objects[f"{GROUP}/{APP}/record/x/{number}"] = b""
    with pytest.raises(BackendError, match="more than 10"):
        await world.device("Attic").archive.timeline()


async def test_numbers_used_up_by_garbage_block_nobody(world: World) -> None:
    attic = world.device("Attic")
    await attic.save(1, "t-1", {"a": b"1"}, None)
    world.objects[f"{GROUP}/{APP}/record/1/{10**15 - 1}"] = b"garbage"
    world.objects[f"{GROUP}/{APP}/record/1/2"] = b"garbage"
    attic.restart()
    assert await attic.save(1, "t-2", {"a": b"2"}, None) == Point(epoch=1, number=3)


# --- the sealed stream itself, below the hashes of the record -----------------------------------------------------------

KEY = bytes(range(32))
HEADER = {"group": GROUP, "object": "cc"}


def sealed(raws: list[bytes], key: bytes = KEY, header: dict[str, str] = HEADER) -> list[bytes]:
    """Header, frames and trailer of an object, separately."""
    seal, hashes = ObjectSeal.of(key, header), RawHash()
    parts = [MAGIC]
    for index, raw in enumerate(raws):
        frame, digest = seal.frame(index, [raw])
        parts.append(b"".join(frame))
        hashes.add(digest)
    whole = Raw(sum(map(len, raws)), hashes.digest())
    return [*parts, b"".join(seal.trailer(len(raws), whole, sum(map(len, parts))))]


def reading(data: bytes) -> Callable[[int], bytes]:
    """`read` of a file with those bytes."""
    return io.BytesIO(data).read


def opened(data: bytes) -> bytes:
    reader = ObjectReader(KEY, HEADER, reading(data))
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    assert reader.raw is not None
    return b"".join(frames)


RAWS = [b"one" * 100, b"two" * 50, b"three"]


def test_a_sealed_stream_opens_and_its_size_is_rounded_up() -> None:
    data = b"".join(sealed(RAWS))
    assert opened(data) == b"".join(RAWS)
    assert len(data) == 4096
    assert b"one" not in data


def test_frames_cut_off_swapped_repeated_or_foreign_do_not_open() -> None:
    head, one, two, three, trailer = sealed(RAWS)
    other = sealed(RAWS, key=bytes(32))
    renamed = sealed(RAWS, header={**HEADER, "object": "dd"})
    shorter = sealed(RAWS[:2])
    for parts in (
        [head, two, one, three, trailer],
        [head, one, two, trailer],
        [head, one, two, three],
        [head, one, two],
        [head, one, one, two, three, trailer],
        [head, one, two, three, trailer, trailer],
        [head, one, two, three, trailer, b"\0"],
        [head, one, other[2], three, trailer],
        [head, one, renamed[2], three, trailer],
        [b"FHSobj\x02\x01", one, two, three, trailer],
        [head, one, two, shorter[-1]],
        [head, one, two, three, shorter[-1]],
        [head, trailer],
        [head],
        [],
    ):
        if b"".join(parts) == b"".join(shorter):
            continue
        with pytest.raises(Corrupt):
            opened(b"".join(parts))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 4095), flip=st.integers(1, 255))
def test_any_byte_changed_does_not_open(place: int, flip: int) -> None:
    data = bytearray(b"".join(sealed(RAWS)))
    data[place] ^= flip
    with pytest.raises(Corrupt):
        opened(bytes(data))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), keep=st.integers(0, 4096))
def test_garbage_and_truncation_do_not_open(data: bytes, keep: int) -> None:
    whole = b"".join(sealed(RAWS))
    with pytest.raises(Corrupt):
        opened(whole[: min(keep, len(whole) - 1)] + data if keep < len(whole) else data)


@settings(max_examples=40, deadline=None)
@given(raws=st.lists(st.binary(min_size=1, max_size=3000), max_size=5))
def test_any_stream_comes_back(raws: list[bytes]) -> None:
    assert opened(b"".join(sealed(raws))) == b"".join(raws)


async def test_an_object_whose_frames_unfold_too_far_is_refused(world: World) -> None:
    import zstandard

    seal = ObjectSeal.of(KEY, HEADER)
    bomb = zstandard.ZstdCompressor().compress(bytes(9 << 20))
    with pytest.raises(Corrupt, match="unfold"):
        opened(MAGIC + b"".join(seal._seal(0, 0, bomb)))


async def test_the_spool_of_a_restore_is_checked_again(world: World) -> None:
    one, _, _ = await stored(world)
    kitchen = world.device("Kitchen")
    record = (await kitchen.archive.timeline()).record(one)
    await kitchen.archive._fetcher.fetch(record.body.object)
    path = kitchen.spool / "in" / record.body.object.id / "0"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert await kitchen.fetch(one) == FILES


async def test_nothing_readable_reaches_the_store(world: World) -> None:
    canary = Random(4).randbytes(64).hex().encode()
    attic = world.device("Attic")
    point = await attic.save(1, "t-canary-name", {"canary-file": canary}, None)
    record = (await attic.archive.timeline()).record(point)
    everything = b"".join(world.objects.values()) + " ".join(world.objects).encode()
    for secret in (canary, b"canary", attic.keys.id.encode(), b"memory/1"):
        assert secret not in everything
    key = unseal_with(world.app_secret, record.body.object.sealed_key)
    segments = b"".join(world.objects[k] for k in refs(world))
    frame = ObjectReader(key, object_header(GROUP, APP, 1, record.body), reading(segments)).next_frame()
    assert frame is not None and canary in frame
    assert spool.load_plan(attic.spool / "out" / "1-t-canary-name") is None


async def test_what_a_store_makes_up_is_not_kept_in_mind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of segments goes on for ever: it is given up, and until then only what counts and a few others are held."""
    attic = world.device("Attic")
    await attic.save(1, "t-1", {"a": b"1"}, None)
    made_up = [segment_key(GROUP, APP, f"{number:032x}", 0) for number in range(60)]
    world.objects.update(dict.fromkeys(made_up, b"x"))
    monkeypatch.setattr(standing, "MOST_UNNAMED", 50)
    orphans = await attic.archive.orphans()
    assert len(orphans) == 50
    assert len(list(attic.notes.scan(""))) < 60
    timeline = await attic.archive.timeline()
    sizes = await standing.sizes_of(world.store, GROUP, APP, timeline.counting.values())
    assert len(sizes) == 1
    assert await attic.archive.faults(deep=True) == []
    assert (await attic.archive.verify(deep=True)).problems == ()
    world.clock.now += 3600.0
    monkeypatch.setattr(standing, "MOST_LISTED", 1000)
    plain = world.store.list

    async def endless(prefix: str) -> AsyncIterator[ObjectInfo]:
        if not prefix.endswith("/object/"):
            async for info in plain(prefix):
                yield info
            return
        for number in itertools.count():
            yield ObjectInfo(key=segment_key(GROUP, APP, f"{number:032x}", 0), size=1)

    monkeypatch.setattr(world.store, "list", endless)
    for call in (
        attic.archive.orphans(),
        attic.archive.faults(deep=False),
        attic.archive.verify(deep=False),
    ):
        with pytest.raises(BackendError, match="more than 1000 objects below"):
            await call


async def test_orphans_beyond_what_is_kept_in_mind_go_after_the_first_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attic = world.device("Attic")
    await attic.save(1, "t-1", {"a": b"1"}, None)
    before = set(world.objects)
    world.objects.update({segment_key(GROUP, APP, f"{number:032x}", 0): b"x" for number in range(7)})
    monkeypatch.setattr(standing, "MOST_UNNAMED", 3)
    taken = []
    for _ in range(4):
        await attic.archive.orphans()
        taken.append(len(await attic.archive.collect_orphans(attic.owns, grace=0.0)))
    assert taken == [3, 3, 1, 0]
    assert set(world.objects) == before
