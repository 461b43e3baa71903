"""The fold of entries about the group, its members, devices, invitations and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from fractal.api.errors import Denied
from fractal.core.entries import (
    Approved,
    DeviceRemoved,
    DeviceUpdated,
    GroupChanged,
    GroupCreated,
    InvitationEnded,
    Invited,
    MemberRemoved,
    NewDevice,
    NewMember,
    RoleChanged,
)
from fractal.core.fold_join import close_invitation, close_invitations_of
from fractal.core.fold_rules import (
    KEY_SIZE,
    Certifier,
    Turn,
    live_device,
    live_member,
    require,
    require_id,
    require_name,
    with_device,
    with_member,
)
from fractal.core.model import App, AppKey, Device, GroupState, Invitation, Member, Role, Timers

MAX_INVITATIONS = 64
"""Open at a time."""
MAX_OWN_INVITATIONS = 8
"""Of a plain member, which must not use up everybody's."""
MAX_DEVICES = 64
"""Live ones of a member."""
MAX_TIMER = 86_400_000
"""A day in milliseconds: no failover timer is longer."""
MAX_TEXT = 400

_BY_OTHERS = frozenset({"device", "name", "roles", "draining", "address"})
"""What a device's member and admins may update besides the device itself."""


# --- the group -------------------------------------------------------------------------------------------------------


def created(state: GroupState, author: str, entry: GroupCreated, certifier: Certifier) -> GroupState:
    """The first valid entry: the founder certifies itself, and its device."""
    founder, first = entry.founder, entry.device
    require_name(entry.name, "group name")
    _require_timers(entry.timers)
    member = certifier.member_of(founder, founder.key)
    require(member != "" and founder.by == member, "the founder's certificate is not its own")
    require(founder.role is Role.OWNER, "the founder is an owner")
    require(first.member == member, "the first device is the founder's")
    device = certifier.device_of(first, founder.key)
    require(device == author, "the first entry is not by the first device")
    require(set(entry.sealed_keys) == {device}, "the first group key is sealed to the first device")
    require(len(entry.key_check) == KEY_SIZE, "the first group key has no check")
    state = replace(state, name=entry.name, timers=entry.timers, generation=1)
    state = replace(state, group_keys={"1": entry.sealed_keys}, key_checks={"1": entry.key_check})
    return with_device(with_member(state, _member(member, founder)), _device(device, first))


def changed(turn: Turn, entry: GroupChanged) -> GroupState:
    """New name or timers."""
    turn.require_admin()
    state = turn.state
    if entry.name:
        require_name(entry.name, "group name")
        state = replace(state, name=entry.name)
    if entry.timers is not None:
        _require_timers(entry.timers)
        state = replace(state, timers=entry.timers)
    return state


def _require_timers(timers: Timers) -> None:
    values = [getattr(timers, f.name) for f in fields(timers) if f.name != "profile"]
    require(all(0 < v <= MAX_TIMER for v in values), "timers are positive and at most a day")
    require_name(timers.profile, "profile")


# --- members and devices ---------------------------------------------------------------------------------------------


def invited(turn: Turn, entry: Invited) -> GroupState:
    """An invitation: by admins, or by a member for a device of its own."""
    state = turn.state
    require_id(entry.id, "invitation")
    require(entry.id not in state.invitations, f"invitation {entry.id} exists")
    require(len(entry.verify_key) == KEY_SIZE, "the invitation's key is not 32 bytes")
    if entry.member:
        turn.require_over(live_member(state, entry.member))
    else:
        turn.require_grants(entry.role)
    opened = [i.by for i in state.invitations.values() if not i.used]
    require(len(opened) < MAX_INVITATIONS, f"{MAX_INVITATIONS} invitations are open: withdraw some")
    mine = sum(by in state.devices and state.devices[by].member == turn.member.id for by in opened)
    require(
        turn.admin or mine < MAX_OWN_INVITATIONS, f"{MAX_OWN_INVITATIONS} of yours are open: withdraw some"
    )
    made = Invitation(
        id=entry.id,
        verify_key=entry.verify_key,
        member=entry.member,
        role=entry.role,
        by=turn.device.id,
        expires_ms=entry.expires_ms,
        lobby_key=entry.lobby_key,
    )
    return replace(state, invitations={**state.invitations, entry.id: made})


def invitation_ended(turn: Turn, entry: InvitationEnded) -> GroupState:
    """Withdrawn by who made it or an admin."""
    found = turn.state.invitations.get(entry.id)
    if found is None or found.used:
        raise Denied(f"invitation {entry.id} is not open")
    inviter = turn.state.devices.get(found.by)
    mine = inviter is not None and inviter.member == turn.member.id
    require(mine or turn.admin, "only the inviting member, admins and owners may withdraw an invitation")
    return close_invitation(turn.state, entry.id, used=False)


def approved(turn: Turn, entry: Approved) -> GroupState:
    """A device comes in, with a new member or for one that is there."""
    state, new = turn.state, entry.device
    if entry.member is not None:
        state = _admit(turn, entry.member)
    member = live_member(state, new.member)
    if entry.member is None:
        turn.require_over(member)
    else:
        admitted = turn.certifier.member_of(entry.member, turn.member.key)
        require(admitted == member.id, "the new device is not the new member's")
    device = turn.certifier.device_of(new, member.key)
    require(device != "", "the device's certificate is not by its member")
    require(device not in state.devices, f"device {device} is or was in the group already")
    others = sum(d.member == member.id and not d.removed for d in state.devices.values())
    require(others < MAX_DEVICES, f"{member.name} has {MAX_DEVICES} devices: remove some")
    require_name(new.name, "device name")
    if entry.invitation:
        state = _use_invitation(state, entry)
    requests = {d: r for d, r in state.requests.items() if d != device}
    state = replace(state, requests=requests, group_keys=_with_keys_for(state, device, entry.sealed_keys))
    return with_device(state, _device(device, new))


def _admit(turn: Turn, new: NewMember) -> GroupState:
    turn.require_grants(new.role)
    require(new.by == turn.member.id, "a new member is certified by the member who approves it")
    member = turn.certifier.member_of(new, turn.member.key)
    require(member != "", "the new member's certificate is not by the approving member")
    require(member not in turn.state.members, f"member {member} is or was in the group already")
    require_name(new.name, "member name")
    return with_member(turn.state, _member(member, new))


def _use_invitation(state: GroupState, entry: Approved) -> GroupState:
    found = state.invitations.get(entry.invitation)
    if found is None or found.used:
        raise Denied(f"invitation {entry.invitation} is not open")
    if found.member:
        require(
            entry.member is None and entry.device.member == found.member,
            "the invitation is for another member",
        )
    else:
        require(
            entry.member is not None and entry.member.role is found.role,
            "the invitation is for a new member of another role",
        )
    return close_invitation(state, found.id, used=True)


def _with_keys_for(
    state: GroupState, device: str, sealed: Mapping[str, bytes]
) -> Mapping[str, Mapping[str, bytes]]:
    require(str(state.generation) in sealed, "the present group key is not sealed to the new device")
    require(set(sealed) <= set(state.group_keys), "a group key of an unknown generation")
    return {g: {**keys, device: sealed[g]} if g in sealed else keys for g, keys in state.group_keys.items()}


def device_updated(turn: Turn, entry: DeviceUpdated) -> GroupState:
    """What a device says of itself; its name, roles, public address and draining also by its member and admins."""
    device = live_device(turn.state, entry.device)
    news = {f.name: v for f in fields(entry) if (v := getattr(entry, f.name)) is not None}
    if device.id != turn.device.id:
        turn.require_over(live_member(turn.state, device.member))
        others = sorted(set(news) - _BY_OTHERS)
        require(not others, f"only the device itself may update its {', '.join(others)}")
    if "name" in news:
        require_name(device.name if entry.name is None else entry.name, "device name")
    require(entry.capacity is None or entry.capacity >= 0, "capacity is not negative")
    texts = [v for v in news.values() if isinstance(v, str)]
    require(all(len(t) <= MAX_TEXT and t.isprintable() for t in texts), "a text is too long or not printable")
    del news["device"]
    return with_device(turn.state, replace(device, **news))


def role_changed(turn: Turn, entry: RoleChanged) -> GroupState:
    """Owners change anybody; admins those who are no owners, to roles below owner."""
    member = live_member(turn.state, entry.member)
    turn.require_admin()
    turn.require_over(member)
    turn.require_grants(entry.role)
    state = with_member(turn.state, replace(member, role=entry.role))
    _require_owner_left(state)
    return state


# --- leaving ---------------------------------------------------------------------------------------------------------


def device_removed(turn: Turn, entry: DeviceRemoved) -> GroupState:
    """A device is out: by its member, or an admin."""
    device = live_device(turn.state, entry.device)
    turn.require_over(live_member(turn.state, device.member))
    state = _drop(turn.state, frozenset({device.id}))
    return _rotate(turn, state, entry)


def member_removed(turn: Turn, entry: MemberRemoved) -> GroupState:
    """A member and its devices are out: by itself, or an admin."""
    member = live_member(turn.state, entry.member)
    turn.require_over(member)
    devices = frozenset(d.id for d in turn.state.devices.values() if d.member == member.id and not d.removed)
    state = with_member(turn.state, replace(member, removed=True))
    for invitation in tuple(state.invitations.values()):
        if invitation.member == member.id and not invitation.used:
            state = close_invitation(state, invitation.id, used=False)
    return _rotate(turn, _drop(state, devices), entry)


def _drop(state: GroupState, gone: frozenset[str]) -> GroupState:
    devices = {i: replace(d, removed=True) if i in gone else d for i, d in state.devices.items()}
    challenges = {i: c for i, c in state.challenges.items() if i not in gone}
    apps = {i: replace(a, move_to="") if a.move_to in gone else a for i, a in state.apps.items()}
    state = replace(state, devices=devices, challenges=challenges, apps=apps)
    return close_invitations_of(state, gone)


def _rotate(turn: Turn, state: GroupState, entry: DeviceRemoved | MemberRemoved) -> GroupState:
    _require_owner_left(state)
    remaining = {d.id for d in state.devices.values() if not d.removed}
    require(
        entry.generation == state.generation + 1, "another removal rotated the group key first: try again"
    )
    require(set(entry.sealed_keys) == remaining, "the new group key is not sealed to exactly who remains")
    require(len(entry.key_check) == KEY_SIZE, "the new group key has no check")
    # Any member may put its own device out, and could hand the others rubbish: nobody could read on, for ever.
    boxes = {i: state.devices[i].box_key for i in remaining}
    shared = turn.certifier.shared(entry.generation, entry.key_check, entry.sealed_keys, boxes)
    # Who is put out gets no key to judge by; what it believes from here on is nothing.
    out = turn.certifier.device in turn.state.devices and turn.certifier.device not in remaining
    require(shared or out, "the new group key is not sealed to everybody alike")
    generation = str(entry.generation)
    return replace(
        state,
        generation=entry.generation,
        group_keys={**state.group_keys, generation: entry.sealed_keys},
        key_checks={**state.key_checks, generation: entry.key_check},
        apps=_with_app_keys(turn, state, entry.app_keys),
    )


def _with_app_keys(turn: Turn, state: GroupState, new: Mapping[str, AppKey]) -> dict[str, App]:
    """Apps with their new generations. Keys of apps that the author does not manage are left out.

    A plain member who removes a device of its own could otherwise slip a key into somebody else's app whose secret nobody
    holds; such an app is re-keyed by one of its own hosts (`AppKeyAdded`).
    """
    apps = dict(state.apps)
    remaining = {d.id for d in state.devices.values() if not d.removed}
    for app in state.apps.values():
        if app.removed or not turn.manages(app) or not app.keys:
            continue
        key = new.get(app.id)
        if key is None:
            require(
                set(app.keys[-1].sealed) <= remaining,
                f"app {app.id} was trusted and gets no new key: try again",
            )
            continue
        require_new_generation(app.keys, key, remaining)
        apps[app.id] = replace(app, keys=(*app.keys, key))
    return apps


def require_new_generation(keys: tuple[AppKey, ...], key: AppKey, allowed: set[str]) -> None:
    """Raises Denied unless `key` is the next generation, sealed to some of the allowed devices."""
    newest = keys[-1].generation if keys else 0
    require(key.generation == newest + 1, f"the app's next key generation is {newest + 1}")
    require(len(key.public) == KEY_SIZE, "the app's public key is not 32 bytes")
    require(bool(key.sealed), "the app's key is sealed to nobody")
    strangers = sorted(set(key.sealed) - allowed)
    require(not strangers, f"the app's key is sealed to devices that are not trusted: {', '.join(strangers)}")


def _require_owner_left(state: GroupState) -> None:
    owners = {m.id for m in state.members.values() if m.role is Role.OWNER and not m.removed}
    left = any(d.member in owners and not d.removed for d in state.devices.values())
    require(left, "the last owner, and its last device, cannot be removed or demoted")


def _member(identity: str, new: NewMember) -> Member:
    require_name(new.name, "member name")
    return Member(id=identity, name=new.name, role=new.role, key=new.key)


def _device(identity: str, new: NewDevice) -> Device:
    require_name(new.name, "device name")
    return Device(
        id=identity,
        name=new.name,
        member=new.member,
        sign_key=new.sign_key,
        box_key=new.box_key,
        roles=new.roles,
    )
