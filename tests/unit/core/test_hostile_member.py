"""A member's device that keeps to the form and wants to harm: what it writes must not outgrow or mislead the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fractal.api import canonical
from fractal.api.plain import to_plain
from fractal.core.entries import AppChanged, AppKeyAdded, AppRemoved, Invited, RouteAdded
from fractal.core.fold_apps import MAX_APPS, MAX_NEEDLESS_KEYS, MAX_ROUTES
from fractal.core.fold_join import MAX_PER_CODE
from fractal.core.fold_people import MAX_DEVICES, MAX_OWN_INVITATIONS
from fractal.core.log import checkpoint_bytes
from fractal.core.model import Role
from fractal.crypto.join import join_request, new_code
from fractal.crypto.keys import DeviceKeys
from fractal.testing.group import World

APP = "a" * 16


@pytest.fixture
def world() -> World:
    world = World.founded()
    world.join("den", "cat")
    world.install(APP)
    return world


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"x": value}
    return value


def noteworthy(world: World) -> None:
    """Every reader notes its state and writes checkpoints: a state that has no bytes would stop them all."""
    assert checkpoint_bytes(world.state)
    assert canonical.encode({"fold": "x", "state": to_plain(world.state)})


@pytest.mark.parametrize("levels", [12, 18, 20])
def test_no_specification_makes_the_state_impossible_to_note(world: World, levels: int) -> None:
    entry = replace(world.installation("b" * 16, store="5" * 16, placed="den"), spec=nested(levels))
    assert "nested deeper" in world.say("den", entry)
    noteworthy(world)
    world.must("den", replace(entry, spec=nested(6), key=world.app_key()))
    assert "nested deeper" in world.say("den", AppChanged(app="b" * 16, spec=nested(levels)))
    noteworthy(world)


def test_nobody_passes_for_anothers_app(world: World) -> None:
    for name in ("radicale", "RADICALE", APP, "A" * 16, "0123456789ab"):
        entry = replace(world.installation("b" * 16, store="5" * 16, placed="den"), name=name)
        assert world.say("den", entry) != "", name
    world.must("den", replace(entry, name="calendar"))
    assert "already" in world.say("den", AppChanged(app="b" * 16, name="Radicale"))
    world.must("den", AppChanged(app="b" * 16, name="calendar"))
    world.must("attic", AppRemoved(app=APP))
    world.must("den", AppChanged(app="b" * 16, name="Radicale"))


def test_one_member_cannot_use_up_everybodys_invitations(world: World) -> None:
    cat = world.people["cat"].id

    def invitation(number: int, member: str = "") -> Invited:
        return Invited(
            id=f"{number:016x}", verify_key=bytes(32), role=Role.MEMBER, expires_ms=0, member=member
        )

    for number in range(MAX_OWN_INVITATIONS):
        world.must("den", invitation(number, cat))
    assert "of yours" in world.say("den", invitation(98, cat))
    world.must("attic", invitation(99))


def test_a_code_that_leaked_does_not_crowd_out_who_has_another(world: World) -> None:
    codes = [new_code(world.state.id, "log", world.entropy, new_member=False) for _ in range(2)]
    for code in codes:
        world.must(
            "attic",
            Invited(
                id=code.invitation,
                verify_key=code.signer.public,
                role=Role.MEMBER,
                expires_ms=0,
                member=world.people["ann"].id,
                lobby_key=code.lobby_key,
            ),
        )

    def ask(which: int) -> str:
        return world.put(join_request(codes[which], DeviceKeys.generate(world.entropy), "new", world.entropy))

    assert [ask(0) for _ in range(MAX_PER_CODE)] == [""] * MAX_PER_CODE
    assert "beyond" in ask(0)
    assert ask(1) == ""


def test_keys_without_need_are_bounded_and_a_removal_brings_one_all_the_same(world: World) -> None:
    for generation in range(2, MAX_NEEDLESS_KEYS + 1):
        world.must("attic", AppKeyAdded(app=APP, key=world.app_key(generation)))
    more = AppKeyAdded(app=APP, key=world.app_key(MAX_NEEDLESS_KEYS + 1))
    assert "only when a removed device" in world.say("attic", more)
    world.remove("den")
    assert len(world.state.apps[APP].keys) == MAX_NEEDLESS_KEYS + 1


def test_apps_routes_and_devices_of_one_member_are_bounded(world: World) -> None:
    for number in range(MAX_ROUTES):
        world.must("attic", RouteAdded(name=f"r{number}.example.org", app=APP))
    assert "routes" in world.say("attic", RouteAdded(name="one-more.example.org", app=APP))
    world.must("attic", RouteAdded(name="r0.example.org", app=APP, kind="https", service="web"))
    den, mine = world.state.devices[world.machines["den"].id], world.state.apps[APP]
    cat = den.member
    devices = {f"{n:020x}": replace(den, id=f"{n:020x}") for n in range(MAX_DEVICES - 1)}
    apps = {
        f"{n:016x}": replace(mine, id=f"{n:016x}", name=f"app {n}", owner_member=cat) for n in range(MAX_APPS)
    }
    world.state = replace(
        world.state, devices={**world.state.devices, **devices}, apps={**world.state.apps, **apps}
    )
    entry = world.installation("b" * 16, store="5" * 16, placed="den")
    assert "remove some" in world.say("den", replace(entry, name="one more"))
    world.must("attic", replace(entry, name="one more"))
    late = world.machine("late", world.people["cat"])
    assert "remove some" in world.say("den", world.approval(late, by="den"))
