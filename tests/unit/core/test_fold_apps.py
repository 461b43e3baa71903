"""The fold of entries about apps, where a rule is easy to lose: who may change secrets, and who may try an app again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fractal.core.entries import AppChanged, AppKeyAdded, Released, Serving, StoreAdded, StoreRemoved, Took
from fractal.core.model import App, Desired, Role
from fractal.testing.group import World

APP = "a" * 16


@pytest.fixture
def world() -> World:
    """Ann's app on the device of Bob, a plain member."""
    world = World.founded()
    world.join("den", "bob", Role.MEMBER)
    world.install(APP, placed="den")
    world.must("attic", AppChanged(app=APP, secrets={"password": b"sealed to generation 1"}))
    world.must("den", Took(epochs={APP: 1}))
    return world


def app(world: World) -> App:
    return world.state.apps[APP]


def renewed(world: World) -> World:
    """The same, with a second generation of the app's key."""
    world.must("attic", AppKeyAdded(app=APP, key=world.app_key(2)))
    return world


def test_the_owner_seals_secrets_anew_once_for_each_key(world: World) -> None:
    sealed = {"password": b"sealed to generation 2"}
    assert world.say("den", AppChanged(app=APP, secrets=sealed))
    renewed(world)
    certified = {**app(world).secrets, "tls.cal.example.key": b"k"}
    world.must("den", AppChanged(app=APP, secrets=certified))
    world.must("den", AppChanged(app=APP, secrets={**certified, **sealed}))
    assert app(world).secrets["password"] == sealed["password"]
    assert world.say("den", AppChanged(app=APP, secrets={**certified, "password": b"another"}))


@pytest.mark.parametrize(
    "secrets",
    [
        pytest.param({}, id="lost one"),
        pytest.param({"password": b"x", "another": b"y"}, id="new one"),
        pytest.param({"other": b"x"}, id="renamed one"),
    ],
)
def test_it_may_not_change_which_secrets_there_are(world: World, secrets: dict[str, bytes]) -> None:
    renewed(world)
    before = app(world)
    assert world.say("den", AppChanged(app=APP, secrets=secrets))
    assert app(world) == before


def test_it_may_change_nothing_else_along_with_them(world: World) -> None:
    renewed(world)
    before = app(world)
    assert world.say("den", AppChanged(app=APP, secrets={"password": b"x"}, desired=Desired.STOPPED))
    assert app(world) == before


def test_another_device_may_not(world: World) -> None:
    world.join("shed", "bob")
    renewed(world)
    assert world.say("shed", AppChanged(app=APP, secrets={"password": b"x"}))


@pytest.mark.parametrize(
    "again", [AppChanged(app=APP, desired=Desired.RUNNING), AppChanged(app=APP, spec={"services": {}})]
)
def test_who_asks_anew_lets_every_device_try_again(world: World, again: AppChanged) -> None:
    world.must("den", Released(app=APP, epoch=1, clean=True, unhealthy=True))
    assert app(world).failed == (world.machines["den"].id,)
    world.must("attic", AppChanged(app=APP, name="other name"))
    assert app(world).failed
    world.must("attic", again)
    assert app(world).failed == ()


def test_healthy_somewhere_is_a_new_beginning_too(world: World) -> None:
    world.must("den", Released(app=APP, epoch=1, clean=True, unhealthy=True))
    world.must("attic", Took(epochs={APP: 2}))
    world.must("attic", Serving(app=APP, epoch=2))
    assert app(world).failed == ()


# --- mirrors ----------------------------------------------------------------------------------------------------------


def shelves(world: World, *ids: str) -> None:
    """More stores."""
    for number, store in enumerate(ids):
        world.must("attic", StoreAdded(id=store, name=f"more {number}", backend="directory", config={}))


MORE = ("1" * 20, "2" * 20, "3" * 20, "4" * 20)


def test_an_app_has_up_to_three_mirrors_which_are_live_stores(world: World) -> None:
    shelves(world, *MORE)
    world.must("attic", AppChanged(app=APP, mirrors=MORE[:3]))
    assert app(world).mirrors == MORE[:3]
    for wrong, why in (
        (MORE, "at most 3"),
        ((MORE[0], MORE[0]), "twice"),
        ((app(world).store,), "no mirror of itself"),
        (("f" * 20,), "is not in the group"),
    ):
        assert why in world.say("attic", AppChanged(app=APP, mirrors=wrong))
    assert app(world).mirrors == MORE[:3]
    world.must("attic", AppChanged(app=APP, mirrors=MORE[3:]))
    world.must("attic", StoreRemoved(id=MORE[0]))
    assert "is not in the group" in world.say("attic", AppChanged(app=APP, mirrors=MORE[:1]))


def test_mirrors_change_nothing_of_what_agents_that_know_none_fold(world: World) -> None:
    """Else one version has a store, or an app, that the other has not: who owns what must come out the same for all."""
    shelves(world, *MORE[:2])
    world.must("attic", AppChanged(app=APP, mirrors=MORE[:2]))
    world.must("attic", StoreRemoved(id=MORE[0]))
    assert app(world).mirrors == MORE[1:2]
    assert "is used by" in world.say("attic", StoreRemoved(id=app(world).store))
    policy = replace(app(world).policy, interval=30_000)
    wrong = (*MORE, "f" * 20, app(world).store, MORE[1])
    world.must("attic", AppChanged(app=APP, policy=policy, mirrors=wrong))
    assert app(world).policy == policy and app(world).mirrors == MORE[1:2]
    fork = world.installation("e" * 16, store=app(world).store, placed="den")
    world.must("attic", replace(fork, mirrors=wrong))
    assert world.state.apps["e" * 16].mirrors == MORE[1:2]


def test_a_change_of_the_policy_by_an_agent_that_knows_no_mirrors_leaves_them(world: World) -> None:
    shelves(world, MORE[0])
    world.must("attic", AppChanged(app=APP, mirrors=MORE[:1]))
    world.must("attic", AppChanged(app=APP, policy=replace(app(world).policy, interval=30_000)))
    assert app(world).mirrors == MORE[:1] and app(world).policy.interval == 30_000


def test_only_who_manages_an_app_says_where_its_copies_are(world: World) -> None:
    shelves(world, MORE[0])
    world.join("shed", "eve", Role.MEMBER)
    assert world.say("shed", AppChanged(app=APP, mirrors=MORE[:1]))
    assert world.say("den", AppChanged(app=APP, mirrors=MORE[:1], secrets={}))
    assert app(world).mirrors == ()
