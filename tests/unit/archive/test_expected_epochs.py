"""What later listings of epochs have to show, what strangers may leave in a store, and what that costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fractal.api.errors import BackendError
from fractal.api.store import ObjectInfo
from fractal.archive.epochs import AGAIN, Rollback
from fractal.archive.expected import DOUBT, MOST_IN_DOUBT
from fractal.core.model import Timers
from fractal.testing.archive_world import APP, GROUP, Device, World

TIMERS = Timers()


def key(epoch: int, app: str = APP) -> str:
    return f"{GROUP}/epoch/{app}/{epoch}"


async def broken_off(device: Device) -> None:
    """A listing that came to its end, and whose objects could not be read."""
    store = device.world.store
    store.fail = lambda call, _key: "down" if call == "get" else ""
    with pytest.raises(BackendError, match="down"):
        await device.epochs.listing()
    store.fail = lambda _call, _key: ""


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_stray_name_that_could_not_be_read_makes_nobody_forget_the_highest_epoch(
    world: World, restarts: bool
) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await kitchen.epochs.create(APP, 2, TIMERS)
    assert sorted((await attic.epochs.listing())[APP]) == [1, 2]
    world.objects[key(900)] = b"garbage"
    await broken_off(attic)
    if restarts:
        attic.open_epochs()
    world.store.hidden = {key(2)}
    with pytest.raises(Rollback, match=key(2)):
        await attic.epochs.listing()


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_a_person_removed_is_missed_for_a_while_and_then_forgotten(
    world: World, restarts: bool
) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    for epoch in (2, *range(400, 410)):  # the first of these uses its number up
        world.objects[key(epoch)] = b"garbage"
    if restarts:
        await broken_off(attic)
        attic.open_epochs()
    else:
        await attic.epochs.listing()
        await broken_off(world.device("Kitchen"))
    for epoch in (2, *range(400, 410)):
        del world.objects[key(epoch)]
    with pytest.raises(Rollback, match="somebody removed it") as caught:
        await attic.epochs.listing()
    assert caught.value.retryable
    world.clock.now += DOUBT - 1
    with pytest.raises(Rollback):
        await attic.epochs.listing()
    world.clock.now += 1
    assert sorted((await attic.epochs.listing())[APP]) == [1]
    attic.open_epochs()
    assert sorted((await attic.epochs.listing())[APP]) == [1]


async def test_a_name_in_doubt_that_comes_back_is_missed_anew(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await kitchen.epochs.listing()
    await attic.epochs.create(APP, 2, TIMERS)
    await broken_off(kitchen)
    world.store.hidden = {key(2)}
    with pytest.raises(Rollback):
        await kitchen.epochs.listing()
    world.clock.now += DOUBT
    world.store.hidden = set()
    await broken_off(kitchen)
    world.store.hidden = {key(2)}
    with pytest.raises(Rollback):
        await kitchen.epochs.listing()
    # Read and valid, it is expected for ever.
    world.store.hidden = set()
    await kitchen.epochs.listing()
    world.clock.now += 10 * DOUBT
    world.store.hidden = {key(2)}
    for _ in range(2):
        with pytest.raises(Rollback, match="rolled back or hides it"):
            await kitchen.epochs.listing()
        world.clock.now += 10 * DOUBT


async def test_apps_that_the_log_does_not_know_are_neither_read_nor_remembered(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    strange = [key(1, f"{n:016x}") for n in range(300)]
    world.objects.update(dict.fromkeys(strange, b"garbage"))
    world.store.gets.clear()
    assert list(await attic.epochs.listing()) == [APP]
    assert world.store.gets == []
    await broken_off(world.device("Kitchen"))
    for name in strange:
        del world.objects[name]
    for device in (attic, world.device("Kitchen")):
        device.open_epochs()
        assert list(await device.epochs.listing()) == [APP]
        assert len(b"".join(value for _, value in device.notes.scan("archive/"))) < 200


async def test_garbage_is_read_once_and_then_seldom_a_few_at_a_time(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    garbage = [key(epoch) for epoch in (*range(2, 300), *range(500, 700))]
    world.objects.update(dict.fromkeys(garbage, b"FHSdoc\x01garbage"))
    running, most = 0, 0

    async def slow(_key: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    world.store.slow = slow
    world.store.gets.clear()
    assert max((await attic.epochs.listing())[APP]) == 299
    assert sorted(world.store.gets) == sorted(garbage)
    assert 2 <= most <= 8
    world.store.gets.clear()
    await attic.epochs.listing()
    assert world.store.gets == []
    world.clock.now += AGAIN
    await attic.epochs.listing()
    await attic.epochs.listing()
    assert len(world.store.gets) == len(set(world.store.gets)) == 16, "in turn"


async def test_a_listing_that_was_cut_short_goes_on_where_it_was(world: World) -> None:
    """Each try has seconds: what was read in one is not read in the next."""
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    world.objects.update({key(epoch): b"garbage" for epoch in range(2, 102)})
    left = 60

    def fail(call: str, _key: str) -> str:
        nonlocal left
        left -= call == "get"
        return "down" if left < 0 else ""

    world.store.fail = fail
    with pytest.raises(BackendError):
        await attic.epochs.listing()
    left = 60
    assert max((await attic.epochs.listing())[APP]) == 101


async def test_a_store_that_is_mended_is_believed_soon(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    good = world.objects[key(1)]
    world.objects[key(1)] = good[:-1]
    assert (await kitchen.epochs.listing())[APP][1].owner == ""
    world.objects[key(1)] = good
    world.clock.now += AGAIN
    assert (await kitchen.epochs.listing())[APP][1].owner == attic.keys.id


async def test_names_in_doubt_are_bounded_and_the_next_epochs_are_among_them(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await kitchen.epochs.listing()
    await attic.epochs.create(APP, 2, TIMERS)
    world.objects.update({key(epoch): b"garbage" for epoch in range(3, 5000)})
    await broken_off(kitchen)
    assert len(b"".join(value for _, value in kitchen.notes.scan("archive/")).split()) <= 1 + MOST_IN_DOUBT
    kitchen.open_epochs()
    world.store.hidden = {key(2)}
    with pytest.raises(Rollback, match=key(2)):
        await kitchen.epochs.listing()


async def test_a_name_that_another_listing_forgets_meanwhile_is_not_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    world.objects[key(500)] = b"garbage"
    await broken_off(attic)
    listing, gate, first = world.store.list, asyncio.Event(), iter([True])

    async def gated(prefix: str) -> AsyncIterator[ObjectInfo]:
        if next(first, False):
            await gate.wait()
        async for info in listing(prefix):
            yield info

    monkeypatch.setattr(world.store, "list", gated)
    slow = asyncio.create_task(attic.epochs.listing())
    await asyncio.sleep(0)
    await attic.epochs.listing()
    del world.objects[key(500)]
    gate.set()
    assert sorted((await slow)[APP]) == [1]


async def test_garbage_of_any_size_takes_little_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractal.archive.epochs.MOST_KEPT", 3)
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    world.objects.update({key(epoch): b"FHSdoc\x01" + bytes(500_000) for epoch in (2, 3)})
    world.objects.update({key(epoch): b"FHSdoc\x01" + bytes(100) for epoch in (4, 5, 6)})
    assert max((await attic.epochs.listing())[APP]) == 6
    assert sum(len(data) for data, _ in attic.epochs._raw.values()) < 4096
