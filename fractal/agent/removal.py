"""Putting a device or a member out, which gives the others new keys in the same entry.

The group key is made anew and sealed to who remains, so that what is written from then on is closed to who left. So is the
key of every app that it was trusted with: what is archived from then on is closed to it, what it could read before stays
readable to it (it may have copied it). A plain member who removes a device of its own cannot re-key other people's apps;
their own hosts do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fractal.agent.here import GroupLog, Here, address_of, forget_group
from fractal.agent.journal import Stale
from fractal.api.errors import BackendError, Conflict, Denied, NotFound
from fractal.core.entries import DeviceRemoved, MemberRemoved
from fractal.core.model import App, AppKey, Device, DeviceRole, GroupState, Role
from fractal.crypto.keys import app_keypair, seal_shared, seal_to
from fractal.crypto.seal import key_check

KEY_SIZE = 32
TRIES = 5
"""How often a removal is put together anew because the group changed while it was on its way."""


async def remove_device(here: Here, log: GroupLog, device: str) -> None:
    """Put a device out. Nothing but the backend's own access if it is out already.

    Raises NotFound, Denied, Conflict when others keep changing the group, BackendError.
    """
    found = log.state.devices.get(device)
    if found is None:
        raise NotFound(f"group {log.state.name!r} has no device {device}")

    def entry(rotation: Rotation) -> DeviceRemoved:
        return DeviceRemoved(
            device=device,
            generation=rotation.generation,
            sealed_keys=rotation.sealed_keys,
            app_keys=rotation.app_keys,
            key_check=rotation.key_check,
        )

    def gone(state: GroupState) -> frozenset[str]:
        return frozenset({device}) if not state.devices[device].removed else frozenset()

    await _rotate(here, log, gone, entry)
    await _shut(here, log.state.id, [device])


async def remove_member(here: Here, log: GroupLog, member: str) -> None:
    """Put a member and all its devices out. Raises as `remove_device`."""
    if member not in log.state.members:
        raise NotFound(f"group {log.state.name!r} has no member {member}")

    def entry(rotation: Rotation) -> MemberRemoved:
        return MemberRemoved(
            member=member,
            generation=rotation.generation,
            sealed_keys=rotation.sealed_keys,
            app_keys=rotation.app_keys,
            key_check=rotation.key_check,
        )

    def gone(state: GroupState) -> frozenset[str] | None:
        if state.members[member].removed:
            return frozenset()
        return frozenset(d.id for d in state.devices.values() if d.member == member and not d.removed) or None

    devices = [d.id for d in log.state.devices.values() if d.member == member]
    await _rotate(here, log, gone, entry)
    await _shut(here, log.state.id, devices)


async def leave_group(here: Here, log: GroupLog) -> None:
    """Take this device out of the group and forget it here. The caller closes the group first.

    Raises Denied for the last owner's last device: a group that nobody owns could never change again.
    """
    address = address_of(here, log.state.id)
    if not log.state.left:
        await remove_device(here, log, here.keys.id)
    await here.coordinator.leave(address)
    forget_group(here.notes, log.state.id)


@dataclass(frozen=True, slots=True)
class Rotation:
    """New keys for who remains."""

    generation: int
    sealed_keys: dict[str, bytes]
    key_check: bytes
    app_keys: dict[str, AppKey]


async def _rotate(
    here: Here,
    log: GroupLog,
    gone: Callable[[GroupState], frozenset[str] | None],
    entry: Callable[[Rotation], DeviceRemoved | MemberRemoved],
) -> None:
    """Append the removal until it stands. `gone`: devices to go, None for a member without any, empty when done."""
    for _ in range(TRIES):
        state = log.state
        going = gone(state)
        if going is not None and not going:
            return
        built_on = _basis(here, state, going or frozenset())

        def still(now: GroupState, basis: object = built_on, going: frozenset[str] | None = going) -> bool:
            return gone(now) == going and _basis(here, now, going or frozenset()) == basis

        try:
            await log.append(entry(_rotation(here, state, going or frozenset())), wanted=still)
        except Stale:
            continue
        except Denied:
            if still(log.state):
                raise
            continue
        return
    raise Conflict(f"group {log.state.name!r} kept changing while somebody was to be removed: try again")


def _basis(here: Here, state: GroupState, gone: frozenset[str]) -> object:
    """What a rotation is made of: if it changed on the way, the rotation must be made anew."""
    remaining = frozenset(d.id for d in _remaining(state, gone))
    return state.generation, remaining, {app.id: len(app.keys) for app in _apps_to_rekey(here, state, gone)}


def _rotation(here: Here, state: GroupState, gone: frozenset[str]) -> Rotation:
    group_key = here.entropy.bytes(KEY_SIZE)
    remaining = _remaining(state, gone)
    return Rotation(
        generation=state.generation + 1,
        sealed_keys={d.id: seal_shared(d.box_key, group_key) for d in remaining},
        key_check=key_check(group_key),
        app_keys={app.id: _app_key(here, app, remaining) for app in _apps_to_rekey(here, state, gone)},
    )


def _remaining(state: GroupState, gone: frozenset[str]) -> list[Device]:
    return [d for d in state.devices.values() if not d.removed and d.id not in gone]


def _apps_to_rekey(here: Here, state: GroupState, gone: frozenset[str]) -> list[App]:
    """Apps that this device's member manages and that somebody was trusted with who will not be in the group."""
    me = state.members[state.devices[here.keys.id].member]
    remaining = {d.id for d in _remaining(state, gone)}
    return [
        app
        for app in state.apps.values()
        if not app.removed
        and app.keys
        and (me.role is not Role.MEMBER or app.owner_member == me.id)
        and not set(app.keys[-1].sealed) <= remaining
    ]


def _app_key(here: Here, app: App, remaining: list[Device]) -> AppKey:
    public, secret = app_keypair(here.entropy)
    trusted = [d for d in remaining if d.id in app.keys[-1].sealed] or _heirs(here, app, remaining)
    return AppKey(
        generation=app.keys[-1].generation + 1,
        public=public,
        sealed={d.id: seal_to(d.box_key, secret, here.entropy) for d in trusted},
    )


def _heirs(here: Here, app: App, remaining: list[Device]) -> list[Device]:
    """Who gets the new key of an app when nobody remains who had the old one: who its policy trusts, else this device."""
    trust = app.policy.trust
    found = [
        d
        for d in remaining
        if DeviceRole.HOST in d.roles
        and (
            trust == "group"
            or (trust == "member" and d.member == app.owner_member)
            or (trust == "list" and d.id in app.policy.devices)
        )
    ]
    return found or [d for d in remaining if d.id == here.keys.id] or remaining[:1]


async def _shut(here: Here, group: str, devices: list[str]) -> None:
    """The second fence: the backend's own access, where it has any."""
    address = address_of(here, group)
    for device in devices:
        try:
            await here.coordinator.remove(address, device)
        except BackendError as error:
            raise BackendError(
                f"device {device} is out of the group and its keys are replaced, but the log server still lets it in: "
                f"{error}; repeat the removal to try again",
                retryable=error.retryable,
            ) from error
