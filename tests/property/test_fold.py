"""Whatever stands in a log, every reader comes to the same state, and damage changes nothing but positions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fractal.core.entries import (
    Answered,
    AppChanged,
    AppKeyAdded,
    AppMoved,
    AppRemoved,
    Challenged,
    DeviceUpdated,
    Entry,
    Found,
    GroupChanged,
    Pinned,
    Released,
    RoleChanged,
    RouteAdded,
    RouteRemoved,
    Serving,
    Took,
)
from fractal.core.log import checkpoint_bytes, fold, state_from_checkpoint, state_hash
from fractal.core.model import Desired, DeviceRole, GroupState, Point, Role
from fractal.testing.group import World

APPS = ("a" * 16, "b" * 16)
FOREIGN = World.founded(seed=99, device="elsewhere", person="eve")
FOREIGN.join("shed", "mallory", by="elsewhere")

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _any_entry(world: World, rng: random.Random) -> Entry:
    """Something that a device may say, wisely or not."""
    device = rng.choice(list(world.machines.values())).id
    person = rng.choice(list(world.people.values())).id
    app = rng.choice([APPS[0], APPS[0], APPS[0], *APPS, "c" * 16])
    epoch = rng.randint(0, 4)
    position = rng.randint(0, world.state.position)
    makers: list[Callable[[], Entry]] = [
        lambda: Challenged(device=device),
        lambda: Answered(seen=position),
        lambda: Took(epochs={app: epoch, APPS[0]: epoch + 1}),
        lambda: Found(app=app, epoch=epoch, owner=rng.choice([device, ""])),
        lambda: Released(app=app, epoch=epoch, clean=rng.random() < 0.5, unhealthy=rng.random() < 0.5),
        lambda: Serving(app=app, epoch=epoch),
        lambda: AppMoved(app=app, to=rng.choice([device, ""])),
        lambda: AppChanged(app=app, desired=rng.choice(list(Desired))),
        lambda: AppRemoved(app=app),
        lambda: AppKeyAdded(app=app, key=world.app_key(rng.randint(1, 3))),
        lambda: Pinned(app=app, point=Point(epoch=epoch, number=position), keep=rng.random() < 0.7),
        lambda: RouteAdded(name=rng.choice(["dav.example.org", ":70000", "x y"]), app=app),
        lambda: RouteRemoved(name="dav.example.org"),
        lambda: RoleChanged(member=person, role=rng.choice(list(Role))),
        lambda: GroupChanged(name=rng.choice(["", "New name"])),
        lambda: DeviceUpdated(device=device, draining=True, roles=frozenset({DeviceRole.HOST})),
        lambda: world.installation(app, store="5" * 16, placed=rng.choice(list(world.machines))),
    ]
    return rng.choice(makers)()


def _grow(world: World, rng: random.Random, steps: int) -> None:
    """A log of honest, foolish and damaged entries, as a careless server might hand it out."""
    past = [world.state]
    for _ in range(steps):
        what = rng.random()
        if what < 0.6:
            _say_anything(world, rng, past)
        elif what < 0.7:
            world.put(rng.choice(world.log))
        elif what < 0.8:
            world.put(rng.choice(FOREIGN.log))
        elif what < 0.9:
            world.put(_damaged(rng.choice(world.log), rng))
        else:
            world.put(rng.randbytes(rng.randint(0, 60)))
        past.append(world.state)


def _say_anything(world: World, rng: random.Random, past: list[GroupState]) -> None:
    name = rng.choice(list(world.machines))
    folded = world.state if rng.random() < 0.8 else rng.choice(past)
    if rng.random() < 0.15 and len(world.live()) > 2:
        gone = rng.choice(world.live()).name
        entry, new = world.removal(gone)
        before = world.state.generation
        world.put(world.seal(name, entry))
        if world.state.generation > before:
            world.group_keys[world.state.generation] = new
            world.opener.add(world.group_keys)  # also if its own device was the one that was put out
        return
    world.put(world.seal(name, _any_entry(world, rng), state=folded))


def _damaged(raw: bytes, rng: random.Random) -> bytes:
    raw = raw or b"?"
    at = rng.randrange(len(raw))
    return rng.choice(
        [raw[:at], raw + b" ", raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]]
    )


def _world(seed: int, steps: int = 40) -> World:
    world = World.founded(seed)
    world.join("kitchen", "bob", Role.ADMIN)
    world.join("den", "cat")
    world.install(APPS[0])
    _grow(world, random.Random(seed), steps)
    return world


def _meaning(state: GroupState) -> GroupState:
    """The state without what every raw entry changes."""
    return replace(state, position=0, head=b"", recent=(), skipped=0, skips=())


@quick
@given(st.integers(0, 10**9), st.integers(0, 44))
def test_any_prefix_leads_on_to_the_same_state(seed: int, cut: int) -> None:
    world = _world(seed)
    first = world.read(world.log[:cut])
    assert world.read(world.log[cut:], state=first) == world.read() == world.state


@quick
@example(77762475)  # the world's own device is put out
@given(st.integers(0, 10**9))
def test_readers_with_the_same_entries_have_equal_hashes(seed: int) -> None:
    world = _world(seed)
    expected = state_hash(world.state)
    assert world.state.position == len(world.log)
    for name in world.machines:
        state = world.read(opener=world.reader(name))
        assert not state.sealed_out
        assert state_hash(state) == expected


@quick
@given(st.integers(0, 10**9))
def test_a_reader_that_could_not_unseal_for_a_while_ends_up_like_the_others(seed: int) -> None:
    world = _world(seed)
    blind = world.reader("den", extra={})
    shut = world.read(opener=blind)
    assert shut.sealed_out == 1
    assert (shut.position, shut.head) == (world.state.position, world.state.head)
    late = world.reader("den", extra={1: world.group_keys[1]})
    half = world.read(opener=late)
    if half.sealed_out:
        seen = world.read(world.log[: half.sealed_out - 1], opener=late)
        late.add(world.group_keys)
        half = world.read(world.log[half.sealed_out - 1 :], opener=late, state=seen)
    assert state_hash(half) == state_hash(world.state)


@quick
@given(st.integers(0, 10**9), st.integers(0, 44))
def test_a_checkpoint_and_the_rest_equal_the_whole(seed: int, cut: int) -> None:
    world = _world(seed)
    cut = max(1, min(cut, len(world.log)))
    early = world.read(world.log[:cut])
    base = state_from_checkpoint(checkpoint_bytes(early), state_hash(early))
    assert state_hash(base) == state_hash(early)
    assert state_hash(world.read(world.log[cut:], state=base)) == state_hash(world.state)


@quick
@given(st.integers(0, 10**9), st.binary(max_size=300))
def test_garbage_repeats_and_foreign_entries_change_nothing(seed: int, garbage: bytes) -> None:
    world = _world(seed, steps=15)
    rng = random.Random(seed)
    opener = world.reader("attic")
    noise = [garbage, *world.log, *FOREIGN.log, *(_damaged(raw, rng) for raw in world.log)]
    for raw in noise:
        after = fold(world.state, raw, opener)
        assert _meaning(after) == _meaning(world.state)
        assert after.position == world.state.position + 1
        assert after.head != world.state.head


@quick
@given(st.integers(0, 10**9))
def test_authority_never_grows_by_itself(seed: int) -> None:
    """In any log: an owner with a live device stays, epochs only rise, the removed stay removed."""
    world = _world(seed)
    state = replace(GroupState(), id=world.state.id)
    opener = world.reader("attic")
    for raw in world.log:
        after = fold(state, raw, opener)
        owners = {m.id for m in after.members.values() if m.role is Role.OWNER and not m.removed}
        assert not after.generation or any(
            d.member in owners and not d.removed for d in after.devices.values()
        )
        for app in state.apps.values():
            assert after.apps[app.id].epoch >= app.epoch
            assert after.apps[app.id].owner == app.owner or after.apps[app.id].epoch > app.epoch
        for device in state.devices.values():
            assert after.devices[device.id].removed >= device.removed
        state = after
