"""A device that comes later gets every generation of an app's key: what it may have to restore was sealed under the older ones."""

from __future__ import annotations

from dataclasses import replace

from fractal.core.entries import AppKeyAdded
from fractal.testing.group import World


def rekeyed() -> tuple[World, str]:
    """An app whose key has two generations, and a device that came after both."""
    world = World.founded()
    world.join("shed", "ann")
    world.join("lost", "ann")
    app = world.install()
    world.remove("lost")
    world.join("late", "ann")
    return world, app


def test_any_generation_is_widened() -> None:
    world, app = rekeyed()
    late = world.machines["late"]
    for key in world.state.apps[app].keys:
        assert late.id not in key.sealed
        secret = world.machines["shed"].keys.unseal(key.sealed[world.machines["shed"].id])
        world.must("shed", AppKeyAdded(app=app, key=replace(key, sealed=world.sealed(secret, [late]))))
    assert [late.id in key.sealed for key in world.state.apps[app].keys] == [True, True]
    assert [key.generation for key in world.state.apps[app].keys] == [1, 2]


def test_an_older_generation_keeps_its_public_key() -> None:
    world, app = rekeyed()
    other = replace(world.app_key(1, [world.machines["late"]]), generation=1)
    assert "is another" in world.say("shed", AppKeyAdded(app=app, key=other))


def test_who_does_not_hold_the_app_widens_nothing() -> None:
    world, app = rekeyed()
    world.join("stranger", "bob")
    key = world.state.apps[app].keys[0]
    stranger = world.machines["stranger"]
    forged = replace(key, sealed=world.sealed(b"0" * 32, [stranger]))
    assert world.say("stranger", AppKeyAdded(app=app, key=forged)) != ""
