"""The fold against a log server that forks, drops, reorders, replays and makes things up, and across versions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fractal.api import canonical
from fractal.api.errors import Corrupt, InvalidInput
from fractal.api.plain import from_plain
from fractal.core.entries import (
    KINDS,
    Answered,
    AppChanged,
    Challenged,
    DeviceUpdated,
    GroupChanged,
    GroupCreated,
    Serving,
    Took,
)
from fractal.core.log import (
    _HANDLERS,
    MAX_SKIPS,
    RECENT,
    Opened,
    _hash_plain,
    checkpoint_bytes,
    fold,
    group_id,
    state_from_checkpoint,
    state_hash,
)
from fractal.core.model import Author, GroupState, Role
from fractal.crypto.keys import DeviceKeys
from fractal.crypto.seal import (
    GroupOpener,
    parse_envelope,
    seal_genesis,
)
from fractal.testing.group import SeededEntropy, World

APP = "a" * 16


# --- a server that lies ----------------------------------------------------------------------------------------------


def test_entries_in_another_order_are_skipped_and_raise_the_alarm(world: World) -> None:
    start = len(world.log)
    world.must("kitchen", Challenged(device=world.machines["attic"].id))
    world.must("attic", Answered(seen=1))
    swapped = [*world.log[:start], world.log[start + 1], world.log[start]]
    state = world.read(swapped)
    assert "had read" in state.forked
    assert world.machines["attic"].id not in state.answers


def test_a_withheld_entry_of_one_author_is_noticed_at_its_next(world: World) -> None:
    at = len(world.log)
    world.must("kitchen", GroupChanged(name="one"))
    world.must("kitchen", GroupChanged(name="two"))
    state = world.read([*world.log[:at], *world.log[at + 1 :]])
    assert "is missing before" in state.forked
    assert state.name == "Group 1"


def test_two_histories_are_noticed_as_soon_as_they_meet(world: World) -> None:
    """The server tells kitchen another story than attic; the first entry that crosses over gives it away."""
    fork = world.read()
    world.must("attic", GroupChanged(name="what attic saw"))
    told_to_kitchen = world.seal("kitchen", GroupChanged(name="what kitchen saw"), state=fork)
    other = fold(fork, told_to_kitchen, world.reader("kitchen"))
    from_kitchen = world.seal("kitchen", Answered(seen=1), state=other)
    state = world.read([*world.log, from_kitchen])
    assert "is missing" in state.forked
    from_attic = world.seal("attic", Answered(seen=1))
    state = world.read([from_attic], state=other)
    assert "is missing" in state.forked


def test_a_history_with_a_made_up_entry_is_noticed(world: World) -> None:
    honest = world.seal("attic", GroupChanged(name="honest"))
    state = world.read([*world.log, b"made up", honest])
    assert state.forked == ""
    later = fold(world.state, b"made up", world.opener)
    after = world.seal("attic", GroupChanged(name="after"), state=replace(later, authors=world.state.authors))
    state = world.read([*world.log, after])
    assert "had read" in state.forked
    assert state.name == "Group 1"


def test_a_device_that_raises_a_false_alarm_is_put_out_and_the_alarm_is_over(world: World) -> None:
    """Nobody can tell a lying device from a lying server; but one member must not stop every takeover for good."""
    lie = replace(world.state, head=bytes(32))
    assert "another history" in world.put(world.seal("den", GroupChanged(name="x"), state=lie))
    assert list(world.state.alarms) == [world.machines["den"].id]
    first = world.state.forked
    gap = replace(world.state, authors={world.machines["kitchen"].id: Author(number=9, hash=bytes(32))})
    assert "is missing" in world.put(world.seal("kitchen", GroupChanged(name="x"), state=gap))
    world.remove("den")
    assert first and world.state.forked and first not in world.state.alarms.values()
    world.remove("kitchen")
    assert world.state.forked == "" and not world.state.alarms


def test_a_head_out_of_reach_is_not_judged(world: World) -> None:
    old = world.state
    raw = world.seal("den", Answered(seen=1))
    for number in range(RECENT + 1):
        world.put(b"noise %d" % number)
    assert len(world.state.recent) == RECENT
    assert len(world.state.skips) == MAX_SKIPS
    assert world.put(raw) == ""
    assert world.state.answers[world.machines["den"].id] > old.position


def test_replays_are_skipped_without_alarm(world: World) -> None:
    for raw in tuple(world.log):
        assert world.put(raw) != ""
    assert world.state.forked == ""


def test_a_device_that_numbers_twice_is_heard_once(world: World) -> None:
    first, second = (world.seal("den", Answered(seen=n)) for n in (1, 2))
    assert world.put(first) == ""
    assert "repeated" in world.put(second)


def test_an_entry_that_follows_something_else_is_skipped(world: World) -> None:
    raw = world.custom("kitchen", "group.changed", {"name": "x"}, prev=bytes(32), number=1)
    assert "does not follow" in world.put(raw)
    assert "attic" not in world.state.forked


def test_another_groups_first_entry_is_refused(world: World) -> None:
    other = World.founded(seed=5)
    state = fold(
        GroupState(id=world.state.id),
        other.log[0],
        GroupOpener(world.machines["attic"].keys, world.group_keys),
    )
    assert state.generation == 0
    assert state.skipped == 1


def test_noise_before_the_first_entry_counts_positions_only(world: World) -> None:
    state = world.read([b"", b"noise", *world.log[:1]])
    assert state.generation == 1
    assert state.position == 3


def test_the_group_is_created_once(world: World) -> None:
    body = {"name": "again"}
    assert world.put(world.custom("attic", "group.created", body)) != ""
    assert world.put(world.log[0]) == "an entry of another group"
    assert world.state.name == "Group 1"


@pytest.mark.parametrize("kind", ["group.changed", "lease.answered", "unknown"])
def test_nothing_comes_before_the_group(kind: str) -> None:
    world = World.founded()
    keys = world.machines["attic"].keys
    empty = World(seed=7)
    empty.machines, empty.group_keys = world.machines, world.group_keys
    raw = empty.custom(
        "attic", kind, {"device": {"sign_key": canonical.pack(keys.sign_public)}}, generation=1
    )
    assert fold(GroupState(), raw, world.opener).generation == 0
    assert not fold(GroupState(), raw, world.opener).authors


# --- authors and signatures ------------------------------------------------------------------------------------------


def test_strangers_and_forgers_are_not_heard(world: World) -> None:
    stranger = world.machine("stranger", world.person("zoe", Role.OWNER))
    assert "not in the group" in world.say("stranger", GroupChanged(name="mine"))
    honest = parse_envelope(world.seal("attic", GroupChanged(name="mine")))
    forged = replace(honest, sig=stranger.keys.sign(honest.signed()))
    assert "signature" in world.put(forged.to_bytes())
    assert world.state.name == "Group 1"


@pytest.mark.parametrize(
    "field", ["group", "author", "number", "prev", "position", "head", "generation", "box"]
)
def test_the_signature_covers_the_whole_envelope(world: World, field: str) -> None:
    honest = parse_envelope(world.seal("attic", GroupChanged(name="mine")))
    value = getattr(honest, field)
    other: Any = (
        value + 1 if isinstance(value, int) else value[:-1] + (b"?" if isinstance(value, bytes) else "?")
    )
    raw = replace(honest, **{field: other}).to_bytes()
    assert world.put(raw) != ""
    assert world.state.name == "Group 1"


def test_a_box_does_not_move_to_another_header(world: World) -> None:
    """Even the author cannot put its old sealed inside below a new header: nobody reads what it did not state."""
    first = parse_envelope(world.seal("kitchen", GroupChanged(name="mine")))
    moved = replace(first, position=first.position, number=first.number + 1)
    keys = world.machines["kitchen"].keys
    assert world.put(first.to_bytes()) == ""
    last = world.state.authors[keys.id]
    moved = replace(moved, prev=last.hash, position=world.state.position, head=world.state.head)
    assert (
        world.put(replace(moved, sig=keys.sign(moved.signed())).to_bytes()) == "signed, but does not unseal"
    )


# --- versions --------------------------------------------------------------------------------------------------------


def test_unknown_kinds_are_kept_and_skipped_and_their_author_goes_on(world: World) -> None:
    assert "not known" in world.put(world.custom("kitchen", "app.teleported", {"to": "moon"}))
    world.must("kitchen", GroupChanged(name="next"))


def test_unknown_fields_of_newer_agents_are_dropped_at_any_depth(world: World) -> None:
    timers = {"profile": "fast", "beat": 1000, "telepathy": True}
    assert (
        world.put(world.custom("kitchen", "group.changed", {"name": "new", "mood": 1, "timers": timers}))
        == ""
    )
    assert (world.state.name, world.state.timers.beat) == ("new", 1000)


@pytest.mark.parametrize(
    "body", [{"name": 1}, {"name": None}, {"timers": []}, {"timers": {"beat": "1"}}, {"timers": {"beat": 0}}]
)
def test_a_malformed_body_is_skipped_and_its_author_goes_on(world: World, body: dict[str, Any]) -> None:
    assert world.put(world.custom("kitchen", "group.changed", body)) != ""
    world.must("kitchen", GroupChanged(name="next"))


def test_every_kind_has_a_handler() -> None:
    assert set(_HANDLERS) | {GroupCreated} == set(KINDS.values())


# --- checkpoints and hashes ------------------------------------------------------------------------------------------


def test_hash_leaves_out_what_is_local_and_covers_the_rest(world: World) -> None:
    state = world.state
    local = replace(state, sealed_out=4, left=True, skips=((1, "x"),), skipped=1, alarms={"z": "y"})
    assert state_hash(local) == state_hash(state)
    changes: list[dict[str, Any]] = [
        {"name": "x"},
        {"position": 0},
        {"head": b""},
        {"apps": {}},
        {"devices": {}},
        {"generation": 9},
        {"key_checks": {}},
    ]
    for change in changes:
        assert state_hash(replace(state, **change)) != state_hash(state)


def test_a_checkpoint_is_believed_only_with_the_stated_hash(world: World) -> None:
    data, expected = checkpoint_bytes(world.state), state_hash(world.state)
    assert state_hash(state_from_checkpoint(data, expected)) == expected
    for damaged, stated in ((data[:-1], expected), (data, bytes(32)), (b"{}", expected), (b"", b"")):
        with pytest.raises(Corrupt):
            state_from_checkpoint(damaged, stated)


def test_a_checkpoint_of_a_newer_agent_is_read_without_what_is_new(world: World) -> None:
    value = canonical.decode(checkpoint_bytes(world.state))
    value["state"]["moods"] = {"attic": "fine"}
    newer = canonical.encode(value)
    with pytest.raises(Corrupt):
        state_from_checkpoint(newer, state_hash(world.state))
    state = state_from_checkpoint(newer, _hash_plain(value["state"]))
    assert state_hash(state) == state_hash(world.state)


def test_a_log_that_could_not_be_read_gives_no_checkpoint(world: World) -> None:
    with pytest.raises(InvalidInput):
        checkpoint_bytes(replace(world.state, sealed_out=3))
    with pytest.raises(InvalidInput):
        checkpoint_bytes(GroupState())


# --- the first entry -------------------------------------------------------------------------------------------------


def test_the_groups_id_is_its_first_entrys_hash(world: World) -> None:
    assert world.state.id == group_id(world.log[0])
    assert len(world.state.id) == 32


def test_a_first_entry_that_does_not_hold_together_founds_nothing() -> None:
    world = World.founded()
    keys, entropy = world.machines["attic"].keys, SeededEntropy(1)
    other = DeviceKeys.generate(entropy)
    opened = world.opener.open(world.log[0], GroupState())
    assert isinstance(opened, Opened)
    good = from_plain(GroupCreated, opened.body)
    bad = [
        replace(good, founder=replace(good.founder, role=Role.ADMIN)),
        replace(good, founder=replace(good.founder, certificate=bytes(64))),
        replace(good, founder=replace(good.founder, by="somebody")),
        replace(good, founder=replace(good.founder, name="a\nb")),
        replace(good, device=replace(good.device, name="")),
        replace(good, device=replace(good.device, member="somebody")),
        replace(good, device=replace(good.device, certificate=bytes(64))),
        replace(good, device=replace(good.device, sign_key=other.sign_public)),
        replace(good, sealed_keys={}),
        replace(good, key_check=b""),
        replace(good, name=""),
        replace(good, name="a\x1b[31mb"),
    ]
    for entry in bad:
        _, raw = seal_genesis(entry, keys=keys, group_key=world.group_keys[1], entropy=entropy)
        state = fold(GroupState(), raw, world.opener)
        assert (state.generation, dict(state.devices), state.skipped) == (0, {}, 1)
        _, again = seal_genesis(good, keys=keys, group_key=world.group_keys[1], entropy=entropy)
        assert fold(state, again, world.opener).generation == 1


def test_names_never_carry_control_characters(world: World) -> None:
    den = world.machines["den"].id
    for name in ("", " x", "a\nb", "\x1b[2J", "x" * 101):
        assert world.say("den", DeviceUpdated(device=den, name=name)) != ""
        assert world.say("attic", AppChanged(app=APP, name=name)) != ""


def test_serving_needs_the_present_epoch(world: World) -> None:
    assert world.say("attic", Serving(app=APP, epoch=1)) != ""
    world.must("attic", Took(epochs={APP: 1}))
    assert world.say("kitchen", Serving(app=APP, epoch=1)) != ""
    world.must("attic", Serving(app=APP, epoch=1))
    assert world.state.apps[APP].serving == 1


# --- what only a careful look tells apart ----------------------------------------------------------------------------


def test_another_history_at_the_same_length_is_noticed(world: World) -> None:
    """Nothing is missing and nobody is ahead: only the running hash tells that noise was swapped."""
    told = fold(world.state, b"told to kitchen", world.opener)
    world.put(b"told to attic")
    raw = world.seal("kitchen", GroupChanged(name="x"), state=told)
    assert "another history" in world.put(raw)
    assert "another history" in world.state.forked
    assert world.state.name == "Group 1"


def test_a_refused_entry_uses_its_number_up(world: World) -> None:
    den = world.machines["den"].id
    before = world.state.authors.get(den)
    raw = world.seal("den", GroupChanged(name="x"))
    assert "only admins" in world.put(raw)
    assert world.state.authors[den].number == (before.number if before else 0) + 1
    assert "repeated" in world.put(raw)


def test_behind_an_entry_that_cannot_be_unsealed_nothing_is_believed(world: World) -> None:
    """Also not what could be unsealed: it may build on what could not."""
    start = world.state
    entry, new = world.removal("den")
    kitchen = world.machines["kitchen"]
    world.must("attic", entry)
    world.group_keys[2] = new
    world.must("attic", GroupChanged(name="unreadable"))
    late = world.custom("kitchen", "lease.answered", {"seen": 1}, generation=1)
    assert world.put(late) == ""
    opener = world.reader("den", extra={1: world.group_keys[1]})
    state = world.read(world.log[start.position :], state=start, opener=opener)
    assert state.sealed_out == start.position + 2
    assert kitchen.id not in state.answers
    assert state.position == world.state.position
