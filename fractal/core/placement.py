"""Which devices may host an app, and in which order they stand in for it. Every device computes the same from the log."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar, cast

from fractal.core.model import App, Device, DeviceRole, GroupState, Role

S = TypeVar("S")
T = TypeVar("T")


def trusted(app: App, device: str) -> bool:
    """Whether the newest generation of the app's key is sealed to the device."""
    return bool(app.keys) and device in app.keys[-1].sealed


def manages(state: GroupState, app: App, device: str) -> bool:
    """Whether the device's member may decide over the app: it is its own, or the member is an admin or owner."""
    known = state.devices.get(device)
    member = state.members.get(known.member) if known is not None and not known.removed else None
    return member is not None and (member.role is not Role.MEMBER or member.id == app.owner_member)


def refusal(state: GroupState, app: App, device: Device) -> str:
    """Why the device may not host the app, in words; "" if it may."""
    if device.removed:
        return "it was removed from the group"
    if DeviceRole.HOST not in device.roles:
        return "it does not have the role host"
    if not trusted(app, device.id):
        return "it does not hold the app's key"
    if app.source is not None and app.source.app not in state.apps:
        return "the app that it is a fork of is unknown"
    return cannot_run(app.spec, device) or _wrong_images(app, device)


def cannot_run(spec: Mapping[str, object], device: Device) -> str:
    """Why a device cannot run what a specification (`AppSpec` as plain values) describes; "" if it can."""
    architectures = spec.get("architectures")
    if isinstance(architectures, list | tuple) and architectures and device.arch not in architectures:
        return (
            f"its architecture {device.arch or 'unknown'} is not one of {', '.join(map(str, architectures))}"
        )
    if images_of(spec) and device.runtime and not device.images:
        return f"its runtime {device.runtime} runs no container images"
    return ""


def cannot_restore(state: GroupState, app: App, device: Device) -> str:
    """Why a device cannot make the app's data out of what its owner archives; "" if it can, or nobody knows.

    No refusal: an owner that died before it archived anything has left what those before it archived.
    """
    owner = state.devices.get(app.owner)
    if owner is None or owner.id == device.id or not owner.snapshot_format or not device.receives:
        return ""
    if owner.snapshot_format in device.receives:
        return ""
    return f"it receives {', '.join(sorted(device.receives))}, and {owner.name} archives as {owner.snapshot_format}"


def images_of(spec: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the container images that a specification (`AppSpec` as plain values) needs, each once.

    A service that also says how to run without an image needs none.
    """
    services = spec.get("services")
    found: dict[str, None] = {}
    for service in services if isinstance(services, list | tuple) else ():
        image = service.get("image") if isinstance(service, Mapping) and not service.get("process") else None
        if isinstance(image, str) and image:
            found[image] = None
    return tuple(found)


def _wrong_images(app: App, device: Device) -> str:
    for name in images_of(app.spec):
        image = app.pinned_images.get(name)
        if image is not None and image.arch and image.arch != device.arch:
            return f"image {name} is for {image.arch}, and it is {device.arch or 'unknown'}"
    return ""


def eligible(state: GroupState, app: App) -> tuple[Device, ...]:
    """Devices that may host the app, draining ones excepted, in id order."""
    return of_both(state, app, _eligible)


def may_host(state: GroupState, app: App, device: str) -> bool:
    """Whether the device is one of the `eligible` ones."""
    return device in of_both(state, app, _eligible_ids)


def _eligible(state: GroupState, app: App) -> tuple[Device, ...]:
    return tuple(d for _, d in sorted(state.devices.items()) if not d.draining and not refusal(state, app, d))


def _eligible_ids(state: GroupState, app: App) -> frozenset[str]:
    return frozenset(d.id for d in eligible(state, app))


def ranking(state: GroupState, app: App) -> tuple[str, ...]:
    """Eligible devices, best first: who can restore the app, the policy's order, then free capacity by powers of two, then a hash.

    Capacity counts by powers of two so that small changes of free memory do not reorder anybody.
    """
    return of_both(state, app, _ranking)


def _ranking(state: GroupState, app: App) -> tuple[str, ...]:
    preferred = {device: place for place, device in enumerate(app.policy.devices)}

    def key(device: Device) -> tuple[bool, int, int, bytes]:
        place = preferred.get(device.id, len(preferred))
        return (
            bool(cannot_restore(state, app, device)),
            place,
            -device.capacity.bit_length(),
            _tie(app.id, device.id),
        )

    return tuple(d.id for d in sorted(eligible(state, app), key=key))


_KEPT = 256
_known: dict[tuple[int, int, int], tuple[GroupState, object, object]] = {}
"""Results by the identity of what they were computed of, which is kept beside them, as another value could get its address."""


def of_both(state: GroupState, other: S, compute: Callable[[GroupState, S], T]) -> T:
    """`compute(state, other)`, remembered: states change seldom, and every device asks several times a second.

    `other` is an app of the state, or what else nobody makes anew for each question; `compute` is a function of a module, which is
    always the same object.
    """
    key = (id(state), id(other), id(compute))
    known = _known.get(key)
    if known is not None:
        return cast("T", known[2])
    result = compute(state, other)
    if len(_known) >= _KEPT:
        _known.pop(next(iter(_known)), None)
    _known[key] = (state, other, result)
    return result


@lru_cache(maxsize=4096)
def _tie(app: str, device: str) -> bytes:
    return hashlib.blake2b(f"{app}/{device}".encode(), digest_size=8).digest()


def successors(state: GroupState, app: App, *, without: Iterable[str] = ()) -> tuple[str, ...]:
    """The ranking without some devices; devices where the app did not get healthy come last, best of all first."""
    out = frozenset(without)
    ranked = [d for d in ranking(state, app) if d not in out]
    return tuple([d for d in ranked if d not in app.failed] + [d for d in ranked if d in app.failed])


def standbys(state: GroupState, app: App) -> tuple[str, ...]:
    """Devices that keep a warm copy: the best of the ranking besides the owner, and the target of a move."""
    return of_both(state, app, _standbys)


def _standbys(state: GroupState, app: App) -> tuple[str, ...]:
    able = [d for d in ranking(state, app) if not cannot_restore(state, app, state.devices[d])]
    warm = [d for d in able if d != app.owner][: app.policy.standby]
    if app.move_to and app.move_to != app.owner and app.move_to not in warm:
        warm.append(app.move_to)
    return tuple(warm)


def may_trust(state: GroupState, trust: str, listed: Sequence[str], member: str) -> tuple[str, ...]:
    """Devices that an app of that trust policy gives its key to."""
    devices = [d for d in state.devices.values() if not d.removed and DeviceRole.HOST in d.roles]
    if trust == "member":
        devices = [d for d in devices if d.member == member]
    elif trust == "list":
        devices = [d for d in devices if d.id in listed]
    return tuple(sorted(d.id for d in devices))


def choose(
    state: GroupState,
    *,
    spec: Mapping[str, object],
    trusted_devices: Sequence[str],
    online: Mapping[str, bool],
) -> str:
    """Where a new app goes when nobody says: an online host with the most free capacity per app that it owns; "" if none."""
    owned: dict[str, int] = {}
    for app in state.apps.values():
        if not app.removed:
            owned[app.owner or app.placed] = owned.get(app.owner or app.placed, 0) + 1
    candidates = [
        d
        for d in state.devices.values()
        if d.id in trusted_devices
        and not d.removed
        and not d.draining
        and DeviceRole.HOST in d.roles
        and not cannot_run(spec, d)
    ]
    best = sorted(
        candidates,
        key=lambda d: (not online.get(d.id, False), -(d.capacity / (1 + owned.get(d.id, 0))), d.id),
    )
    return best[0].id if best else ""
