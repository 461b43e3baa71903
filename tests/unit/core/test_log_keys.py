"""The fold where keys change: removals, rotations, newcomers and invitations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fractal.core.entries import (
    Answered,
    Approved,
    GroupChanged,
    Invited,
    MemberRemoved,
    Released,
    Took,
)
from fractal.core.log import (
    OLD_GENERATION,
    state_hash,
)
from fractal.core.model import Role
from fractal.crypto.keys import device_statement
from fractal.crypto.seal import (
    GroupOpener,
    key_check,
)
from fractal.testing.group import World

APP = "a" * 16


def test_a_removed_device_is_blind_and_mute(world: World) -> None:
    world.remove("den")
    assert "was removed" in world.say("den", Answered(seen=1))
    world.must("attic", GroupChanged(name="without den"))
    state = world.read(opener=GroupOpener(world.machines["den"].keys, {1: world.group_keys[1]}))
    assert state.left
    assert state.name == "Group 1"
    assert state.sealed_out == state.position


def test_a_removed_device_stays_out_and_cannot_be_let_in_again(world: World) -> None:
    world.remove("den")
    reason = world.say("attic", replace(world.approval(world.machines["den"], by="attic"), invitation=""))
    assert "is or was in the group" in reason


def test_late_lease_entries_count_one_generation_back_and_no_further(world: World) -> None:
    world.must("attic", Took(epochs={APP: 1}))
    world.join("loft", "ann")
    before = world.state
    world.remove("den")
    release = world.seal("attic", Released(app=APP, epoch=1, clean=True), state=world.state)
    late = world.custom("kitchen", "lease.answered", {"seen": 1}, generation=1)
    assert world.put(late) == ""
    named = world.custom("kitchen", "group.changed", {"name": "late"}, generation=1)
    assert world.put(named) == OLD_GENERATION
    assert world.put(release) == ""
    world.remove("loft")
    assert world.put(world.custom("kitchen", "lease.answered", {"seen": 1}, generation=1)) == OLD_GENERATION
    assert world.state.generation == before.generation + 2
    world.must("kitchen", GroupChanged(name="goes on"))


@pytest.mark.parametrize("how", ["another key", "damaged", "missing its key", "sealed in its own way"])
def test_a_removal_that_gives_somebody_a_wrong_key_is_skipped_by_everybody_alike(
    world: World, how: str
) -> None:
    """Any member may put a device of its own out: it must not be able to shut the others out of their log for ever."""
    world.join("cave", "cat")
    entry, new = world.removal("cave")
    kitchen = world.machines["kitchen"]
    other = {
        "another key": world.shared(bytes(32), [kitchen])[kitchen.id],
        "damaged": b"damaged",
        "missing its key": b"",
        "sealed in its own way": world.sealed(new, [kitchen])[kitchen.id],
    }[how]
    reason = world.say("den", replace(entry, sealed_keys={**entry.sealed_keys, kitchen.id: other}))
    assert "to everybody alike" in reason
    names = [name for name in world.machines if name != "cave"]
    readers = [world.reader(name, extra={1: world.group_keys[1]}) for name in names]
    readers.append(world.reader("attic", extra={1: world.group_keys[1], 2: new}))
    for reader in readers:
        assert state_hash(world.read(opener=reader)) == state_hash(world.state)
    world.must("kitchen", GroupChanged(name="goes on"))


def test_a_rotation_is_read_by_every_device_and_by_who_joins_later(world: World) -> None:
    world.remove("den")
    world.must("attic", GroupChanged(name="secretly"))
    world.join("loft", "ann")
    for name in ("attic", "kitchen"):
        state = world.read(opener=world.reader(name, extra={1: world.group_keys[1]}))
        assert state_hash(state) == state_hash(world.state)
    assert state_hash(world.read(opener=world.reader("loft"))) == state_hash(world.state)


def test_a_device_to_which_nothing_can_be_sealed_is_not_let_in(world: World) -> None:
    """With it in the group no removal could ever give everybody a new key."""
    machine = world.machine("trap", world.people["cat"])
    said = device_statement(machine.person.id, machine.keys.sign_public, bytes(32))
    new = replace(
        world.certified_device(machine), box_key=bytes(32), certificate=machine.person.keys.sign(said)
    )
    entry = Approved(device=new, sealed_keys={"1": b"x"})
    assert "certificate" in world.say("den", entry)
    world.remove("den")


@pytest.mark.parametrize(
    "damage",
    [{"sealed_keys": {}}, {"generation": 1}, {"generation": 3}, {"key_check": b""}, {"app_keys": {}}],
)
def test_a_removal_must_rotate_everything(world: World, damage: dict[str, Any]) -> None:
    entry, _ = world.removal("den")
    assert world.say("attic", replace(entry, **damage)) != ""
    assert world.state.generation == 1
    assert not world.state.devices[world.machines["den"].id].removed


def test_a_plain_member_cannot_slip_a_key_into_others_apps(world: World) -> None:
    world.join("cave", "cat")
    entry, new = world.removal("cave")
    assert APP in world.state.apps
    world.must("den", entry)
    world.group_keys[2] = new
    assert [k.generation for k in world.state.apps[APP].keys] == [1]


def test_the_last_owner_and_its_last_device_stay(world: World) -> None:
    entry, new = world.removal("attic")
    assert "last owner" in world.say("attic", entry)
    member = MemberRemoved(
        member=world.people["ann"].id,
        generation=2,
        sealed_keys=entry.sealed_keys,
        key_check=key_check(new),
        app_keys=entry.app_keys,
    )
    assert "last owner" in world.say("attic", member)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("certified by somebody else", "who approves"),
        ("with a forged certificate of the member", "new member's certificate"),
        ("with a forged certificate of the device", "device's certificate"),
        ("with another's device", "not the new member's"),
        ("without the present group key", "present group key"),
        ("with a key of a generation to come", "unknown generation"),
        ("on an invitation that does not exist", "is not open"),
        ("on an invitation for another role", "another role"),
        ("on an invitation for another member", "another member"),
    ],
)
def test_who_is_let_in_must_be_certified_and_get_the_key(world: World, what: str, reason: str) -> None:
    eve, cat = world.person("eve", Role.MEMBER), world.people["cat"]
    machine = world.machine("laptop", eve)
    good = world.approval(machine, by="kitchen")
    assert good.member is not None
    ann = world.people["ann"]
    world.must("attic", Invited(id="1" * 16, verify_key=bytes(32), role=Role.ADMIN, expires_ms=0))
    world.must(
        "attic", Invited(id="2" * 16, verify_key=bytes(32), role=Role.MEMBER, expires_ms=0, member=cat.id)
    )
    others = world.certified_device(world.machine("others", cat))
    bad = {
        "certified by somebody else": replace(good, member=world.certified_member(eve, by=ann)),
        "with a forged certificate of the member": replace(
            good, member=replace(good.member, certificate=bytes(64))
        ),
        "with a forged certificate of the device": replace(
            good, device=replace(good.device, certificate=bytes(64))
        ),
        "with another's device": replace(good, device=others),
        "without the present group key": replace(good, sealed_keys={}),
        "with a key of a generation to come": replace(good, sealed_keys={**good.sealed_keys, "2": b"x"}),
        "on an invitation that does not exist": replace(good, invitation="3" * 16),
        "on an invitation for another role": replace(good, invitation="1" * 16),
        "on an invitation for another member": replace(good, invitation="2" * 16),
    }[what]
    assert reason in world.say("kitchen", bad)
    assert eve.id not in world.state.members
    assert world.say("kitchen", good) == ""


def test_an_invitation_serves_once(world: World) -> None:
    world.must("attic", Invited(id="1" * 16, verify_key=bytes(32), role=Role.MEMBER, expires_ms=0))
    for name, reason in (("eve", ""), ("fay", "is not open")):
        machine = world.machine(name, world.person(name, Role.MEMBER))
        said = world.say("attic", replace(world.approval(machine, by="attic"), invitation="1" * 16))
        assert reason in said
        assert (said == "") == (reason == "")


def test_codes_of_a_removed_device_serve_no_longer(world: World) -> None:
    cat = world.people["cat"]
    world.must(
        "den", Invited(id="1" * 16, verify_key=bytes(32), role=Role.MEMBER, expires_ms=0, member=cat.id)
    )
    world.must("attic", Invited(id="2" * 16, verify_key=bytes(32), role=Role.MEMBER, expires_ms=0))
    world.remove("den")
    assert set(world.state.invitations) == {"2" * 16}
