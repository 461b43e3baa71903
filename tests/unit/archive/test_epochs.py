"""The lock: one winner per number, burnt numbers block nobody, bases stand, two writers make a branch."""

from __future__ import annotations

import asyncio

import pytest

from fractal.api.errors import BackendError, Conflict, Corrupt, InvalidInput
from fractal.archive.epochs import MAX_LEAP, Rollback
from fractal.archive.sealed import seal_statement
from fractal.core.chain import EMPTY
from fractal.core.model import Point, Timers
from fractal.testing.archive_world import APP, GROUP, Device, World

TIMERS = Timers()


def key(epoch: int) -> str:
    return f"{GROUP}/epoch/{APP}/{epoch}"


async def test_one_of_many_wins_and_all_list_the_same(world: World) -> None:
    devices = [world.device(f"D{n}") for n in range(5)]
    results = await asyncio.gather(
        *(d.epochs.create(APP, 1, TIMERS) for d in devices), return_exceptions=True
    )
    winners = [r for r in results if not isinstance(r, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(r, Conflict) for r in results if isinstance(r, BaseException))
    assert winners[0].acknowledged == world.clock.now
    for device in devices:
        assert await device.epochs.listing() == {APP: {1: winners[0]}}


async def test_timers_of_the_owner_are_listed(world: World) -> None:
    await world.device("Attic").epochs.create(APP, 1, Timers(proof=60_000, margin=5_000))
    record = (await world.device("Kitchen").epochs.listing())[APP][1]
    assert (record.proof_ms, record.margin_ms, record.owner) == (60_000, 5_000, world.device("Attic").keys.id)


@pytest.mark.parametrize("how", ["before", "after"])
async def test_an_ambiguous_create_is_repeated_and_counts_from_knowing(world: World, how: str) -> None:
    attic = world.device("Attic")
    answers = iter([how, how])
    world.store.fail = lambda call, _key: next(answers, "") if call == "put" else ""
    before = world.clock.now
    record = await attic.epochs.create(APP, 1, TIMERS)
    assert record.acknowledged is not None
    assert record.acknowledged > before
    assert (await attic.epochs.listing())[APP][1] == record


async def test_an_ambiguous_create_that_another_won_is_a_conflict(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    answers = iter(["before"])
    world.store.fail = lambda call, _key: next(answers, "") if call == "put" else ""
    taking = asyncio.create_task(attic.epochs.create(APP, 1, TIMERS))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await kitchen.epochs.create(APP, 1, TIMERS)
    with pytest.raises(Conflict, match=kitchen.keys.id):
        await taking


async def test_an_own_epoch_that_was_forgotten_is_taken_with_the_wait_from_now(world: World) -> None:
    attic = world.device("Attic")
    first = await attic.epochs.create(APP, 1, TIMERS)
    world.clock.now += 500
    attic.open_epochs()
    again = await attic.epochs.create(APP, 1, TIMERS)
    assert again == first
    assert again.acknowledged == world.clock.now


def signed(device: Device, epoch: int) -> bytes:
    """A valid epoch object out of a device of the group, whatever its number."""
    body = {"app": APP, "epoch": epoch, "proof": TIMERS.proof, "margin": TIMERS.margin}
    return seal_statement(
        "archive-epoch",
        key(epoch),
        body,
        keys=device.keys,
        group_key=device.world.group_key,
        entropy=device.entropy,
    )


async def test_a_device_of_the_group_cannot_stop_an_app_with_an_epoch_out_of_reach(world: World) -> None:
    """Nobody could announce it, so nobody could run the app or take it over, for ever."""
    attic, den = world.device("Attic"), world.device("Den")
    await attic.epochs.create(APP, 1, TIMERS)
    for epoch in (MAX_LEAP + 2, 10**15 - 1):
        world.objects[key(epoch)] = signed(den, epoch)
    assert sorted((await attic.epochs.listing())[APP]) == [1]
    assert (await attic.epochs.create(APP, 2, TIMERS)).epoch == 2
    # Within reach it counts, as it may be the lock: the fold burns it if its owner may not host the app.
    world.objects[key(MAX_LEAP)] = signed(den, MAX_LEAP)
    assert sorted((await attic.epochs.listing())[APP]) == [1, 2, MAX_LEAP, MAX_LEAP + 2]


async def test_epochs_above_a_gap_that_was_announced_are_seen(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    await attic.epochs.create(APP, 3 * MAX_LEAP, TIMERS)
    attic.announced = 3 * MAX_LEAP - 1
    attic.open_epochs()
    assert sorted((await attic.epochs.listing())[APP]) == [1, 3 * MAX_LEAP]


async def test_a_store_that_lists_without_end_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fractal.archive.epochs.MAX_LISTED", 10)
    for number in range(11):
        world.objects[f"{GROUP}/epoch/{APP}/x{number}"] = b""
    with pytest.raises(BackendError, match="more than 10"):
        await world.device("Attic").epochs.listing()


async def test_garbage_burns_a_number_and_no_more(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    world.objects[key(2)] = b"garbage"
    world.objects[key(10**15 - 1)] = b"garbage"
    world.objects[f"{GROUP}/epoch/{APP}/007"] = b"garbage"
    world.objects[f"{GROUP}/epoch/{APP}/x/y"] = b"garbage"
    listed = (await kitchen.epochs.listing())[APP]
    assert sorted(listed) == [1, 2]
    assert listed[2].owner == "" and "not an object" in listed[2].burnt
    with pytest.raises(Conflict):
        await kitchen.epochs.create(APP, 2, TIMERS)
    assert (await kitchen.epochs.create(APP, 3, TIMERS)).epoch == 3
    assert max((await attic.epochs.listing())[APP]) == 3


async def test_an_epoch_under_another_name_is_burnt(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    world.objects[key(2)] = world.objects[key(1)]
    assert (await attic.epochs.listing())[APP][2].owner == ""


async def test_an_epoch_of_a_device_that_the_log_has_not_told_of_yet_becomes_valid_later(
    world: World,
) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    world.strangers.add("Attic")
    world.generation = 2
    await attic.epochs.listing()
    world.objects[key(1)] = b""
    del world.objects[key(1)]
    await _create_as_stranger(world)
    assert (await kitchen.epochs.listing())[APP][1].owner == ""
    world.strangers.clear()
    assert (await kitchen.epochs.listing())[APP][1].owner == attic.keys.id


async def _create_as_stranger(world: World) -> None:
    with pytest.raises(Conflict, match="no device of the group"):
        await world.device("Attic").epochs.create(APP, 1, TIMERS)


async def test_a_newer_group_key_than_known_burns_until_it_is_known(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    world.generation = 2
    await attic.epochs.create(APP, 1, TIMERS)
    world.generation = 1
    assert "group key 2, which is not known" in (await kitchen.epochs.listing())[APP][1].burnt
    world.generation = 2
    assert (await kitchen.epochs.listing())[APP][1].owner == attic.keys.id


async def test_a_listing_that_lacks_what_was_seen_is_a_rollback_also_after_a_restart(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await attic.epochs.create(APP, 2, TIMERS)
    await kitchen.epochs.listing()
    world.store.hidden.add(key(2))
    for _ in range(2):
        for device in (attic, kitchen):
            with pytest.raises(Rollback, match=rf"{key(2)}.*rolled back or hides"):
                await device.epochs.listing()
            device.open_epochs()
    world.store.hidden.clear()
    assert sorted((await kitchen.epochs.listing())[APP]) == [1, 2]


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_a_listing_showed_that_was_refused_must_not_be_missing_later(
    world: World, restarts: bool
) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await kitchen.epochs.listing()
    await attic.epochs.create(APP, 2, TIMERS)
    world.store.hidden.add(key(1))
    with pytest.raises(Rollback, match=key(1)):
        await kitchen.epochs.listing()
    if restarts:
        kitchen.open_epochs()
    world.store.hidden = {key(2)}
    with pytest.raises(Rollback, match=key(2)):
        await kitchen.epochs.listing()


async def test_what_was_listed_and_could_not_be_read_must_not_be_missing_later(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await kitchen.epochs.listing()
    await attic.epochs.create(APP, 2, TIMERS)
    world.store.fail = lambda c, _key: "down" if c == "get" else ""
    with pytest.raises(BackendError, match="down"):
        await kitchen.epochs.listing()
    world.store.fail = lambda _call, _key: ""
    world.store.hidden.add(key(2))
    with pytest.raises(Rollback, match=key(2)):
        await kitchen.epochs.listing()


async def test_a_stray_name_that_counts_for_nothing_may_go_again(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    for stray in (key(5), key(MAX_LEAP + 10)):
        await world.store.put_new(stray, b"no epoch")
    assert sorted((await attic.epochs.listing())[APP]) == [1]
    for restarts in (False, True):
        if restarts:
            attic.open_epochs()
        world.store.hidden = {key(5), key(MAX_LEAP + 10)}
        assert sorted((await attic.epochs.listing())[APP]) == [1]


async def test_a_stale_listing_proves_nothing_but_is_no_alarm_within_the_declared_bound(world: World) -> None:
    attic = world.device("Attic")
    world.store._staleness = 30.0
    await attic.epochs.create(APP, 1, TIMERS)
    world.store.hidden.add(key(1))
    with pytest.raises(Rollback) as caught:
        await attic.epochs.listing()
    assert caught.value.retryable
    world.clock.now += 31
    with pytest.raises(Rollback) as caught:
        await attic.epochs.listing()
    assert not caught.value.retryable


async def test_a_failing_store_proves_nothing(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    for call in ("list", "get"):
        world.store.fail = lambda c, _key, call=call: "down" if c == call else ""  # type: ignore[misc]  # a default in a lambda
        with pytest.raises(BackendError):
            await world.device(f"Fresh {call}").epochs.listing()


async def test_a_base_is_chosen_once_by_the_owner_only(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await attic.epochs.create(APP, 2, TIMERS)
    assert await kitchen.epochs.base(APP, 2) is None
    with pytest.raises(InvalidInput):
        await attic.epochs.create_base(APP, 2, Point(epoch=2, number=1))
    first = Point(epoch=1, number=4)
    assert await attic.epochs.create_base(APP, 2, first) == first
    attic.open_epochs()
    assert await attic.epochs.create_base(APP, 2, Point(epoch=1, number=7)) == first
    assert await kitchen.epochs.base(APP, 2) == first
    with pytest.raises(Corrupt, match="does not own"):
        await kitchen.epochs.create_base(APP, 1, EMPTY)
    assert await attic.epochs.base(APP, 1) is None
    assert sorted((await kitchen.epochs.listing())[APP]) == [1, 2]


async def test_a_base_of_garbage_is_none_and_says_so_to_its_owner(world: World) -> None:
    attic = world.device("Attic")
    await attic.epochs.create(APP, 1, TIMERS)
    world.objects[key(1) + "/base"] = b"garbage"
    assert await attic.epochs.base(APP, 1) is None
    with pytest.raises(Corrupt):
        await attic.epochs.create_base(APP, 1, EMPTY)


async def test_two_writers_at_different_epochs_make_a_line_and_a_branch(world: World) -> None:
    attic, kitchen = world.device("Attic"), world.device("Kitchen")
    await attic.epochs.create(APP, 1, TIMERS)
    await attic.epochs.create_base(APP, 1, EMPTY)
    one = await attic.save(1, "t-1", {"a": b"1"}, None)
    await kitchen.fetch(one)
    await kitchen.epochs.create(APP, 2, TIMERS)
    base = await kitchen.epochs.create_base(APP, 2, one)
    # The old owner does not know yet, and both go on at once.
    late, new = await asyncio.gather(
        attic.save(1, "t-2", {"a": b"late"}, one), kitchen.save(2, "t-1", {"a": b"new"}, base)
    )
    # Only the look after the put tells the old owner that its snapshot is a branch.
    assert max((await attic.epochs.listing())[APP]) == 2
    later = await attic.save(1, "t-3", {"a": b"later"}, late)
    timeline = await world.device("Shed").archive.timeline()
    bases = {1: EMPTY, 2: base}
    assert [r.point for r in timeline.main(bases, 2)] == [one, new]
    assert [r.point for r in timeline.branches(bases, 2)] == [late, later]
    contents = [await world.device("Shed").fetch(p) for p in (one, new, late, later)]
    assert [c["a"] for c in contents] == [b"1", b"new", b"late", b"later"]
