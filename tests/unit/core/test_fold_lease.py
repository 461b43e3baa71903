"""Challenges, takes, releases: what everybody believes of who owns an app."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.core.entries import (
    Answered,
    AppMoved,
    AppRemoved,
    Challenged,
    DeviceUpdated,
    Found,
    Released,
    Serving,
    Took,
)
from fractal.core.fold_lease import MAX_LEAP, MAX_UNOWNED
from fractal.core.model import App, DeviceRole, Point, Policy, Role
from fractal.testing.group import World

APP, OTHER = "a" * 16, "b" * 16


@pytest.fixture
def world() -> World:
    world = World.founded()
    world.join("kitchen", "bob", Role.ADMIN)
    world.join("den", "cat")
    world.install(APP)
    world.install(OTHER)
    return world


def app(world: World, identity: str = APP) -> App:
    return world.state.apps[identity]


def test_one_answer_covers_all_challenges_before_it(world: World) -> None:
    attic = world.machines["attic"].id
    world.must("kitchen", Challenged(device=attic))
    opened = world.state.challenges[attic]
    world.must("den", Challenged(device=attic))
    assert world.state.challenges == {attic: opened}
    world.must("attic", Answered(seen=world.state.position))
    assert not world.state.challenges
    assert world.state.answers == {attic: world.state.position}
    world.must("den", Challenged(device=attic))
    assert world.state.challenges[attic].by == world.machines["den"].id


def test_an_answer_cannot_have_seen_what_is_to_come(world: World) -> None:
    assert world.say("attic", Answered(seen=world.state.position + 1)) != ""
    world.must("attic", Answered(seen=world.state.position))


def test_the_lower_epoch_is_skipped_for_its_app_only(world: World) -> None:
    world.must("attic", Took(epochs={APP: 1}))
    world.must("kitchen", Took(epochs={APP: 1, OTHER: 1}))
    assert (app(world).owner, app(world).epoch) == (world.machines["attic"].id, 1)
    assert (app(world, OTHER).owner, app(world, OTHER).epoch) == (world.machines["kitchen"].id, 1)
    assert "not above" in world.say("den", Took(epochs={APP: 1, OTHER: 1}))
    assert world.say("den", Took(epochs={})) != ""


def test_took_after_found_of_the_same_is_no_refusal(world: World) -> None:
    kitchen = world.machines["kitchen"].id
    world.must("den", Found(app=APP, epoch=3, owner=kitchen))
    before = app(world)
    world.must("kitchen", Took(epochs={APP: 3}))
    world.must("attic", Found(app=APP, epoch=3, owner=kitchen))
    assert app(world) == before


def test_a_take_ends_the_release_and_leaves_the_challenge(world: World) -> None:
    attic = world.machines["attic"].id
    world.must("attic", Took(epochs={APP: 1}))
    world.must("attic", Released(app=APP, epoch=1, clean=True, base=Point(epoch=1, number=3)))
    world.must("den", Challenged(device=attic))
    world.must("kitchen", Took(epochs={APP: 2}))
    assert app(world).release is None
    assert attic in world.state.challenges


def test_who_is_not_eligible_takes_nothing_and_its_epoch_is_burnt(world: World) -> None:
    den = world.machines["den"].id
    world.must("den", DeviceUpdated(device=den, roles=frozenset({DeviceRole.STORE})))
    assert "role host" in world.say("den", Took(epochs={APP: 1}))
    assert app(world).epoch == 0
    world.must("kitchen", Found(app=APP, epoch=1, owner=den))
    assert (app(world).epoch, app(world).owner) == (1, "")
    world.must("kitchen", Took(epochs={APP: 2}))


def test_who_does_not_hold_the_key_is_not_eligible(world: World) -> None:
    world.join("late", "ann")
    assert "does not hold" in world.say("late", Took(epochs={APP: 1}))


def test_an_epoch_of_a_removed_or_unreadable_owner_is_burnt(world: World) -> None:
    den = world.machines["den"].id
    world.remove("den")
    world.must("kitchen", Found(app=APP, epoch=1, owner=den))
    world.must("kitchen", Found(app=APP, epoch=2, owner=""))
    assert (app(world).epoch, app(world).owner) == (2, "")
    assert "never in the group" in world.say("kitchen", Found(app=APP, epoch=3, owner="9" * 20))


def test_a_made_up_epoch_does_not_use_the_numbers_up(world: World) -> None:
    attic = world.machines["attic"].id
    assert "more than" in world.say("den", Found(app=APP, epoch=MAX_LEAP + 1, owner=attic))
    assert "more than" in world.say("den", Took(epochs={APP: 2**53 - 1}))
    world.must("den", Took(epochs={APP: MAX_LEAP}))


@pytest.mark.parametrize("epoch", [0, -1, 1])
def test_epochs_only_rise(world: World, epoch: int) -> None:
    world.must("attic", Took(epochs={APP: 1}))
    assert world.say("kitchen", Took(epochs={APP: epoch})) != ""
    assert world.say("kitchen", Found(app=APP, epoch=epoch, owner="")) != ""


def test_a_release_is_final_and_by_the_owner_of_the_epoch(world: World) -> None:
    world.must("attic", Took(epochs={APP: 1}))
    assert world.say("kitchen", Released(app=APP, epoch=1, clean=True)) != ""
    assert world.say("attic", Released(app=APP, epoch=2, clean=True)) != ""
    world.must("attic", Released(app=APP, epoch=1, clean=False))
    world.must("attic", Released(app=APP, epoch=1, clean=False))
    assert "already" in world.say("attic", Released(app=APP, epoch=1, clean=True))
    assert "released" in world.say("attic", Serving(app=APP, epoch=1))
    release = app(world).release
    assert release is not None
    assert not release.clean


def test_unhealthy_releases_are_counted_once_per_device_until_it_serves(world: World) -> None:
    attic, kitchen = world.machines["attic"].id, world.machines["kitchen"].id
    for epoch, name in enumerate(("attic", "kitchen", "attic"), start=1):
        world.must(name, Took(epochs={APP: epoch}))
        world.must(name, Released(app=APP, epoch=epoch, clean=True, unhealthy=True))
    assert app(world).failed == (attic, kitchen)
    world.must("den", Took(epochs={APP: 4}))
    world.must("den", Serving(app=APP, epoch=4))
    assert app(world).failed == ()
    assert app(world).serving == 4


def test_serving_ends_the_move_to_its_author_only(world: World) -> None:
    kitchen, den = world.machines["kitchen"].id, world.machines["den"].id
    world.must("attic", Took(epochs={APP: 1}))
    world.must("attic", AppMoved(app=APP, to=kitchen))
    world.must("attic", Serving(app=APP, epoch=1))
    assert app(world).move_to == kitchen
    world.must("kitchen", Took(epochs={APP: 2}))
    world.must("kitchen", Serving(app=APP, epoch=2))
    assert app(world).move_to == ""
    world.must("attic", AppMoved(app=APP, to=den))
    world.must("attic", AppMoved(app=APP, to=""))
    assert app(world).move_to == ""


def test_a_removed_app_has_no_lease(world: World) -> None:
    world.must("attic", Took(epochs={APP: 1}))
    world.must("attic", AppRemoved(app=APP))
    for entry in (Took(epochs={APP: 2}), Released(app=APP, epoch=1, clean=True), Serving(app=APP, epoch=1)):
        assert "not installed" in world.say("attic", entry)


def test_an_architecture_that_does_not_fit_does_not_host(world: World) -> None:
    third = "c" * 16
    entry = world.installation(third, store="5" * 16, placed="attic", policy=Policy())
    world.must("attic", replace(entry, spec={"architectures": ["x86_64"]}))
    assert "architecture" in world.say("kitchen", Took(epochs={third: 1}))
    world.must("kitchen", DeviceUpdated(device=world.machines["kitchen"].id, arch="x86_64"))
    world.must("kitchen", Took(epochs={third: 1}))


def test_who_has_nothing_to_do_with_an_app_cannot_take_it_from_its_owner(world: World) -> None:
    """The log alone cannot tell a made-up epoch; believed, it ends the owner's right to run."""
    world.must("attic", Took(epochs={APP: 1}))
    world.join("shed", "dan")
    before = app(world)
    for owner in ("", world.machines["shed"].id, world.machines["kitchen"].id):
        assert "that it trusts" in world.say("shed", Found(app=APP, epoch=2, owner=owner))
    assert app(world) == before
    world.must("den", Found(app=APP, epoch=2, owner=""))


def test_epochs_that_nobody_owned_are_told_from_those_that_count(world: World) -> None:
    """A device that was removed can create epochs in the store for ever: the next owner must not start from what they hold."""
    kitchen = world.machines["kitchen"].id
    world.must("attic", Took(epochs={APP: 1}))
    world.must("attic", Serving(app=APP, epoch=1))
    assert app(world).unowned == ()
    world.must("attic", Found(app=APP, epoch=4, owner=""))
    world.must("attic", Found(app=APP, epoch=5, owner=""))
    world.must("kitchen", Took(epochs={APP: 6}))
    world.must("kitchen", Released(app=APP, epoch=6, clean=True))
    world.must("attic", Found(app=APP, epoch=8, owner=""))
    world.must("kitchen", Found(app=APP, epoch=9, owner=kitchen))
    assert app(world).unowned == ((2, 5), (7, 8))
    assert [e for e in range(1, 10) if app(world).counts(e)] == [1, 6, 9]
    world.must("kitchen", Serving(app=APP, epoch=9))
    assert app(world).unowned == ()


def test_epochs_that_nobody_owned_are_remembered_in_bounds(world: World) -> None:
    for epoch in range(1, 200, 2):
        world.must("attic", Took(epochs={APP: epoch}))
        world.must("attic", Found(app=APP, epoch=epoch + 1, owner=""))
    assert len(app(world).unowned) == MAX_UNOWNED
    assert not app(world).counts(200) and app(world).counts(199)
