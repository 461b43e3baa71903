"""Devices with several file systems in one group: who can stand in for whom."""

from __future__ import annotations

import pytest

from fractal.core.entries import DeviceUpdated, Took
from fractal.core.model import App, Role
from fractal.core.placement import cannot_restore, eligible, ranking, standbys
from fractal.testing.group import World

APP = "a" * 16


def publish(world: World, machine: str, sends: str, *receives: str, capacity: int = 1000) -> None:
    world.must(
        machine,
        DeviceUpdated(
            device=world.machines[machine].id,
            snapshot_format=sends,
            receives=frozenset(receives),
            capacity=capacity,
        ),
    )


@pytest.fixture
def world() -> World:
    """Attic owns the app; den has far more room than cellar."""
    world = World.founded()
    for machine in ("den", "cellar"):
        world.join(machine, "bob", Role.MEMBER)
    world.must("attic", world.installation(APP, store=world.add_store(), placed="attic"))
    world.must("attic", Took(epochs={APP: 1}))
    publish(world, "den", "zfs-send/1", "zfs-send/1", capacity=1 << 20)
    publish(world, "cellar", "zfs-send/1", "zfs-send/1", "btrfs-send/1")
    return world


def app(world: World) -> App:
    return world.state.apps[APP]


def names(world: World, ids: tuple[str, ...]) -> list[str]:
    return [world.state.devices[device].name for device in ids]


def test_while_nobody_knows_everybody_can(world: World) -> None:
    assert names(world, ranking(world.state, app(world)))[:1] == ["den"]
    assert names(world, standbys(world.state, app(world))) == ["den"]


def test_who_cannot_restore_stands_in_last_and_keeps_no_copy(world: World) -> None:
    publish(world, "attic", "btrfs-send/1", "btrfs-send/1")
    ranked = names(world, ranking(world.state, app(world)))
    assert ranked[-1] == "den"
    assert names(world, standbys(world.state, app(world))) == ["cellar"]
    den = next(d for d in world.state.devices.values() if d.name == "den")
    assert cannot_restore(world.state, app(world), den) == (
        "it receives zfs-send/1, and attic archives as btrfs-send/1"
    )


def test_it_stays_eligible_as_an_earlier_owner_may_have_archived_what_it_can(world: World) -> None:
    publish(world, "attic", "btrfs-send/1", "btrfs-send/1")
    assert "den" in {d.name for d in eligible(world.state, app(world))}
