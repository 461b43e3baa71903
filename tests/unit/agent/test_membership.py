"""Three real journals on one sqlite log: create, invite, join, approve, remove, leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fractal.agent.journal import Journal
from fractal.agent.membership import (
    approve,
    await_welcome,
    create_group,
    group_addresses,
    invite,
    leave_group,
    member_keys,
    pending_joins,
    remove_device,
    remove_member,
    request_join,
    requests,
    send_welcomes,
)
from fractal.agent.notes import MemoryNotes
from fractal.api.coordination import Page
from fractal.api.errors import Conflict, Denied, InvalidInput, NotFound, Unreachable
from fractal.core.entries import AppInstalled, DeviceUpdated, GroupChanged, InvitationEnded, StoreAdded
from fractal.core.log import fold, state_hash
from fractal.core.model import AppKey, DeviceRole, GroupState, Policy, Role
from fractal.crypto.join import parse_code
from fractal.crypto.keys import app_keypair, seal_to, unseal_with
from fractal.crypto.seal import GroupOpener, seal_entry

MakePeer = Callable[[str], Awaitable[Any]]


async def found(peer: Any) -> tuple[str, Journal]:
    group = await create_group(
        peer,
        name="Group 1",
        device_name=peer.name,
        member_name="Ada",
        roles=frozenset({DeviceRole.HOST}),
    )
    return group, await peer.journal(group)


async def let_in(
    inviter: Any, log: Journal, newcomer: Any, *, member_name: str = "", role: Role = Role.MEMBER
) -> Journal:
    """The whole dance, approved by the inviter."""
    code = await invite(inviter, log, new_member=bool(member_name), role=role)
    group = await request_join(newcomer, code, device_name=newcomer.name, member_name=member_name)
    await log.poll(0.0)
    await approve(inviter, log, newcomer.keys.id)
    assert await await_welcome(newcomer, group, timeout=0.0) == group
    journal: Journal = await newcomer.journal(group)
    return journal


async def agree(*logs: Journal) -> GroupState:
    for log in logs:
        await log.poll(0.0)
    assert len({state_hash(log.state) for log in logs}) == 1
    return logs[0].state


async def install(peer: Any, log: Journal, app: str, trusted: list[Any]) -> bytes:
    """An app whose key is sealed to the trusted peers; the secret key."""
    public, secret = app_keypair(peer.entropy)
    if "0123456789ab" not in log.state.stores:
        await log.append(StoreAdded(id="0123456789ab", name="Shelf", backend="directory"))
    sealed = {p.keys.id: seal_to(p.keys.box_public, secret, peer.entropy) for p in trusted}
    await log.append(
        AppInstalled(
            app=app,
            name=f"app {app}",
            manifest="x",
            spec={},
            store="0123456789ab",
            placed=peer.keys.id,
            key=AppKey(generation=1, public=public, sealed=sealed),
            policy=Policy(),
        )
    )
    return secret


async def test_three_devices_become_a_group_and_one_is_put_out(make_peer: MakePeer, log_path: Path) -> None:
    attic, kitchen, front = [await make_peer(name) for name in ("Attic", "Kitchen", "Front door")]
    group, at_attic = await found(attic)
    at_kitchen = await let_in(attic, at_attic, kitchen)
    at_front = await let_in(attic, at_attic, front, member_name="Bob")
    state = await agree(at_attic, at_kitchen, at_front)
    assert state.id == group and state.generation == 1 and not state.requests
    assert {d.name for d in state.devices.values()} == {"Attic", "Kitchen", "Front door"}
    assert {m.name: m.role for m in state.members.values()} == {"Ada": Role.OWNER, "Bob": Role.MEMBER}
    assert state.devices[kitchen.keys.id].member == state.devices[attic.keys.id].member

    # Every device can write, a device of the same member as its member's equal.
    await at_front.append(DeviceUpdated(device=front.keys.id, address="front.example"))
    await at_kitchen.append(GroupChanged(name="Renamed"))
    await agree(at_attic, at_kitchen, at_front)
    secret = await install(attic, at_attic, "aaaaaaaaaaaa", [attic, kitchen])
    only_attic = await install(attic, at_attic, "bbbbbbbbbbbb", [attic])
    before = await agree(at_attic, at_kitchen, at_front)

    await remove_device(attic, at_attic, kitchen.keys.id)
    state = await agree(at_attic, at_front)
    assert state.devices[kitchen.keys.id].removed and state.generation == 2
    await at_attic.append(GroupChanged(name="Canary after"))
    assert (await agree(at_attic, at_front)).name == "Canary after"

    # The app that it was trusted with has a new key, sealed to who remains; the other one keeps its own.
    first, second = state.apps["aaaaaaaaaaaa"].keys
    assert set(second.sealed) == {attic.keys.id} and first == before.apps["aaaaaaaaaaaa"].keys[0]
    assert unseal_with(attic.keys.box_secret, second.sealed[attic.keys.id]) not in (secret, only_attic)
    assert len(state.apps["bbbbbbbbbbbb"].keys) == 1

    # With its old keys and the log's file in its hands it reads nothing new ...
    await at_kitchen.poll(0.0)
    assert at_kitchen.state.left or at_kitchen.state.sealed_out
    assert at_kitchen.state.name == "Renamed"
    with pytest.raises(Denied):
        at_kitchen.group_key(2)
    with pytest.raises(Denied):
        await at_kitchen.append(GroupChanged(name="by the removed"), timeout=5.0)
    # ... and writes nothing that counts, whichever old key it seals with.
    for generation, known in ((1, at_kitchen.state), (2, at_attic.state)):
        raw = seal_entry(
            GroupChanged(name="forged"),
            state=known,
            keys=kitchen.keys,
            group_key=at_kitchen.group_key(1)[1],
            entropy=kitchen.entropy,
        )
        await kitchen.coordinator.append(at_attic.address, f"forged{generation}", raw)
    state = await agree(at_attic, at_front)
    assert state.name == "Canary after" and state.forked == ""


async def test_nothing_readable_is_in_the_log_file(make_peer: MakePeer, log_path: Path) -> None:
    attic, front = await make_peer("Canary device"), await make_peer("Canary front")
    _, log = await found(attic)
    code = await invite(attic, log, new_member=True)
    await request_join(front, code, device_name=front.name, member_name="Canary Bob")
    await log.poll(0.0)
    await approve(attic, log, front.keys.id)
    page = await attic.coordinator.read(log.address, None)
    everything = b"".join(page.entries)
    secrets = [parse_code(code).secret, parse_code(code).lobby_key, log.group_key()[1], attic.keys.box_secret]
    for needle in (b"Canary", b"Group 1", b"Bob", *secrets):
        assert needle not in everything


async def test_device_of_the_same_member_can_speak_for_it(make_peer: MakePeer) -> None:
    attic, kitchen, shed = [await make_peer(name) for name in ("Attic", "Kitchen", "Shed")]
    group, at_attic = await found(attic)
    at_kitchen = await let_in(attic, at_attic, kitchen)
    mine = member_keys(kitchen.notes, group)
    assert mine is not None and mine == member_keys(attic.notes, group)
    # A code shown on one device, approved on another.
    code = await invite(attic, at_attic, new_member=False)
    await request_join(shed, code, device_name="Shed")
    await at_kitchen.poll(0.0)
    await approve(kitchen, at_kitchen, shed.keys.id, roles=frozenset({DeviceRole.STORE}))
    await await_welcome(shed, group, timeout=0.0)
    state = await agree(at_attic, at_kitchen, await shed.journal(group))
    assert state.devices[shed.keys.id].roles == {DeviceRole.STORE}


async def test_newcomer_after_rotations_reads_the_whole_history(make_peer: MakePeer) -> None:
    attic, kitchen, shed = [await make_peer(name) for name in ("Attic", "Kitchen", "Shed")]
    _, at_attic = await found(attic)
    await let_in(attic, at_attic, kitchen)
    await remove_device(attic, at_attic, kitchen.keys.id)
    at_shed = await let_in(attic, at_attic, shed)
    assert (await agree(at_attic, at_shed)).generation == 2
    assert at_shed.group_key(1) == at_attic.group_key(1) and at_shed.group_key() == at_attic.group_key()


async def test_journal_opens_again_from_notes(make_peer: MakePeer) -> None:
    attic, kitchen = await make_peer("Attic"), await make_peer("Kitchen")
    group, at_attic = await found(attic)
    at_kitchen = await let_in(attic, at_attic, kitchen)
    await agree(at_attic, at_kitchen, await attic.journal(group), await kitchen.journal(group))


async def test_member_and_all_its_devices_are_put_out(make_peer: MakePeer) -> None:
    attic, front, shed = [await make_peer(name) for name in ("Attic", "Front", "Shed")]
    group, at_attic = await found(attic)
    at_front = await let_in(attic, at_attic, front, member_name="Bob")
    code = await invite(front, at_front, new_member=False)
    await request_join(shed, code, device_name="Shed")
    await at_front.poll(0.0)
    await approve(front, at_front, shed.keys.id)
    await await_welcome(shed, group, timeout=0.0)
    state = await agree(at_attic, at_front, await shed.journal(group))
    await remove_member(attic, at_attic, state.devices[front.keys.id].member)
    state = at_attic.state
    assert [d.name for d in state.devices.values() if not d.removed] == ["Attic"]
    assert state.generation == 2
    await remove_member(attic, at_attic, state.devices[front.keys.id].member)  # again: nothing to do
    assert at_attic.state.generation == 2


async def test_leaving(make_peer: MakePeer) -> None:
    attic, front = await make_peer("Attic"), await make_peer("Front")
    group, at_attic = await found(attic)
    at_front = await let_in(attic, at_attic, front, member_name="Bob")
    await leave_group(front, at_front)
    assert group not in group_addresses(front.notes)
    assert front.notes.scan(f"group/{group}/") == []
    await at_attic.poll(0.0)
    assert at_attic.state.devices[front.keys.id].removed
    with pytest.raises(Denied, match="last owner"):
        await leave_group(attic, at_attic)


async def test_two_removals_at_once_both_happen(make_peer: MakePeer) -> None:
    attic, kitchen, one, two = [await make_peer(name) for name in ("Attic", "Kitchen", "One", "Two")]
    _, at_attic = await found(attic)
    at_kitchen = await let_in(attic, at_attic, kitchen)
    await let_in(attic, at_attic, one)
    await let_in(attic, at_attic, two)
    await at_kitchen.poll(0.0)
    await asyncio.gather(
        remove_device(attic, at_attic, one.keys.id), remove_device(kitchen, at_kitchen, two.keys.id)
    )
    state = await agree(at_attic, at_kitchen)
    assert state.devices[one.keys.id].removed and state.devices[two.keys.id].removed
    assert state.generation == 3


async def test_two_approvals_at_once_let_it_in_once(make_peer: MakePeer) -> None:
    attic, kitchen, shed = [await make_peer(name) for name in ("Attic", "Kitchen", "Shed")]
    group, at_attic = await found(attic)
    at_kitchen = await let_in(attic, at_attic, kitchen)
    code = await invite(attic, at_attic, new_member=False)
    await request_join(shed, code, device_name="Shed")
    await at_attic.poll(0.0)
    await at_kitchen.poll(0.0)
    results = await asyncio.gather(
        approve(attic, at_attic, shed.keys.id),
        approve(kitchen, at_kitchen, shed.keys.id),
        return_exceptions=True,
    )
    assert sum(result is None for result in results) >= 1
    await await_welcome(shed, group, timeout=0.0)
    await agree(at_attic, at_kitchen, await shed.journal(group))


async def test_code_admits_one_device_once(make_peer: MakePeer) -> None:
    attic, kitchen, thief = [await make_peer(name) for name in ("Attic", "Kitchen", "Thief")]
    group, log = await found(attic)
    code = await invite(attic, log, new_member=False)
    await request_join(kitchen, code, device_name="Kitchen")
    await request_join(thief, code, device_name="Thief")
    await log.poll(0.0)
    assert {asking.request.name for asking in requests(attic, log)} == {"Kitchen", "Thief"}
    await approve(attic, log, kitchen.keys.id)
    assert requests(attic, log) == []
    with pytest.raises(NotFound):
        await approve(attic, log, thief.keys.id)
    with pytest.raises(Unreachable):
        await await_welcome(thief, group, timeout=0.0)
    await request_join(thief, code, device_name="Thief")  # and again, the code being used up
    await log.poll(0.0)
    assert requests(attic, log) == []


async def test_withdrawn_and_expired_invitations_admit_nobody(make_peer: MakePeer) -> None:
    attic, kitchen = await make_peer("Attic"), await make_peer("Kitchen")
    _, log = await found(attic)
    code = await invite(attic, log, new_member=False)
    await request_join(kitchen, code, device_name="Kitchen")
    await log.poll(0.0)
    await log.append(InvitationEnded(id=parse_code(code).invitation))
    assert requests(attic, log) == []
    expired = await invite(attic, log, new_member=False, valid_ms=-1)
    await request_join(kitchen, expired, device_name="Kitchen")
    await log.poll(0.0)
    assert [asking.expired for asking in requests(attic, log)] == [True]
    with pytest.raises(Denied, match="expired"):
        await approve(attic, log, kitchen.keys.id)


async def test_invitations_of_a_removed_device_are_void(make_peer: MakePeer) -> None:
    attic, kitchen, mole = [await make_peer(name) for name in ("Attic", "Kitchen", "Mole")]
    _, log = await found(attic)
    at_kitchen = await let_in(attic, log, kitchen)
    code = await invite(kitchen, at_kitchen, new_member=False)
    await log.poll(0.0)
    await remove_device(attic, log, kitchen.keys.id)
    await request_join(mole, code, device_name="Mole")
    await log.poll(0.0)
    assert requests(attic, log) == []


async def test_agent_that_died_after_the_approval_welcomes_at_its_next_start(
    make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attic, kitchen = await make_peer("Attic"), await make_peer("Kitchen")
    group, log = await found(attic)
    code = await invite(attic, log, new_member=False)
    await request_join(kitchen, code, device_name="Kitchen")
    await log.poll(0.0)

    async def die(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr("fractal.agent.membership.send_welcomes", die)
        with pytest.raises(asyncio.CancelledError):
            await approve(attic, log, kitchen.keys.id)
    with pytest.raises(Unreachable):
        await await_welcome(kitchen, group, timeout=0.0)
    assert pending_joins(kitchen.notes) == [group]
    log = await attic.journal(group)
    await send_welcomes(attic, log)
    await await_welcome(kitchen, group, timeout=0.0)
    assert pending_joins(kitchen.notes) == [] and attic.notes.scan("welcome/") == []


async def test_asking_twice_and_asking_where_one_is(make_peer: MakePeer) -> None:
    attic, kitchen = await make_peer("Attic"), await make_peer("Kitchen")
    _, log = await found(attic)
    code = await invite(attic, log, new_member=False)
    await request_join(kitchen, code, device_name="Kitchen")
    await request_join(kitchen, code, device_name="Kitchen 2")
    await log.poll(0.0)
    assert [asking.request.name for asking in requests(attic, log)] == ["Kitchen 2"]
    with pytest.raises(Conflict):
        await request_join(attic, code, device_name="Attic")


async def test_new_member_needs_a_name_and_names_are_checked(make_peer: MakePeer) -> None:
    attic, front = await make_peer("Attic"), await make_peer("Front")
    _, log = await found(attic)
    code = await invite(attic, log, new_member=True)
    with pytest.raises(InvalidInput, match="name"):
        await request_join(front, code, device_name="Front")
    await request_join(front, code, device_name="Front\x1b[2J", member_name="Bob")
    await log.poll(0.0)
    assert requests(attic, log) == []
    with pytest.raises(Denied, match="group name"):
        await create_group(attic, name=" ", device_name="Attic", member_name="Ada")


async def test_plain_member_may_not_invite_members(make_peer: MakePeer) -> None:
    attic, front = await make_peer("Attic"), await make_peer("Front")
    _, log = await found(attic)
    at_front = await let_in(attic, log, front, member_name="Bob")
    with pytest.raises(Denied):
        await invite(front, at_front, new_member=True)
    with pytest.raises(Denied):
        await remove_device(front, at_front, attic.keys.id)
    assert (await agree(log, at_front)).generation == 1


async def test_stolen_notes_of_a_removed_device_open_nothing_new(make_peer: MakePeer) -> None:
    attic, kitchen = await make_peer("Attic"), await make_peer("Kitchen")
    group, log = await found(attic)
    at_kitchen = await let_in(attic, log, kitchen)
    keys = {1: at_kitchen.group_key(1)[1]}
    await remove_device(attic, log, kitchen.keys.id)
    await log.append(GroupChanged(name="Afterwards"))
    page = await attic.coordinator.read(log.address, None)
    state = GroupState(id=group)
    for raw in page.entries:
        state = fold(state, raw, GroupOpener(kitchen.keys, keys))
    assert state.name == "Group 1"


def test_peer_notes_are_plain() -> None:
    assert group_addresses(MemoryNotes()) == {} and member_keys(MemoryNotes(), "x") is None


class Endless:
    """A log server that makes entries up for ever, and says how long that takes."""

    def __init__(self, start: float) -> None:
        self.now = start

    async def read(self, address: str, after: str | None, *, limit: int = 500, wait: float = 0.0) -> Page:
        self.now += 50.0
        return Page((b"noise",) * 500, "0", head=False)

    def boottime(self) -> float:
        return self.now


async def test_a_log_without_an_end_is_given_up(make_peer: MakePeer) -> None:
    attic, kitchen = await make_peer("Attic"), await make_peer("Kitchen")
    _, log = await found(attic)
    code = await invite(attic, log, new_member=False)
    group = await request_join(kitchen, code, device_name="Kitchen")
    server = Endless(kitchen.clock.boottime())
    kitchen.coordinator = kitchen.clock = server
    with pytest.raises(Unreachable, match="does not come to an end"):
        await await_welcome(kitchen, group, timeout=0.0)
    assert pending_joins(kitchen.notes) == [group]
