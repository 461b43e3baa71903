"""From when to when an owner may run its app without proof, as the log says it."""

from __future__ import annotations

from fractal.core.entries import Answered, AppChanged, Found, Released, Serving, Took
from fractal.core.model import App, Policy
from fractal.testing.group import World

APP = "a" * 16
KEEP, FREEZE, AUTOMATIC = (
    Policy(failover="manual", on_isolation="keep"),
    Policy(failover="manual"),
    Policy(),
)


def app(world: World) -> App:
    return world.state.apps[APP]


def change(world: World, policy: Policy) -> int:
    world.must("attic", AppChanged(app=APP, policy=policy))
    return world.state.position


def test_an_epoch_that_begins_under_keep_is_run_without_proof(world: World) -> None:
    world.must("attic", Took(epochs={APP: 1}))
    change(world, KEEP)
    assert app(world).unproven == 0, "the policy came later: somebody may be about to take the next epoch"
    world.must("attic", Took(epochs={APP: 2}))
    assert app(world).unproven == world.state.position
    world.must("attic", Released(app=APP, epoch=2, clean=True))
    world.must("kitchen", Took(epochs={APP: 3}))
    assert app(world).unproven == world.state.position
    change(world, AUTOMATIC)
    world.must("den", Found(app=APP, epoch=4, owner=world.machines["attic"].id))
    assert app(world).unproven == 0


def test_it_ends_when_the_owner_has_read_another_policy(world: World) -> None:
    change(world, KEEP)
    world.must("attic", Took(epochs={APP: 1}))
    before = world.state.position
    said = change(world, FREEZE)
    assert app(world).unproven == said
    change(world, AUTOMATIC)
    assert app(world).unproven == said, "read with the change before"
    world.must("attic", Answered(seen=before))
    world.must("kitchen", Answered(seen=world.state.position))
    world.must("attic", Serving(app=APP, epoch=1))
    assert app(world).unproven == said, (
        "an older answer, another device's, and what names no position say nothing"
    )
    world.must("attic", Answered(seen=said))
    assert app(world).unproven == 0


def test_an_answer_that_was_overtaken_by_keep_ends_nothing(world: World) -> None:
    """Its author may have read that policy since, and run on."""
    change(world, KEEP)
    world.must("attic", Took(epochs={APP: 1}))
    first = change(world, AUTOMATIC)
    change(world, KEEP)
    world.must("attic", Answered(seen=first))
    assert app(world).unproven == first
    second = change(world, AUTOMATIC)
    world.must("attic", Answered(seen=first))
    assert app(world).unproven == second
    world.must("attic", Answered(seen=second))
    assert app(world).unproven == 0
