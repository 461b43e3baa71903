"""Slow housekeeping: telling the group about this device, app keys and secrets, checkpoints, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fractal.agent.checkpoints import due, write_checkpoint
from fractal.agent.journal import Stale
from fractal.agent.membership import send_welcomes
from fractal.api.errors import BackendError, FractalError
from fractal.core.entries import AppChanged, AppKeyAdded, AppMoved, DeviceUpdated
from fractal.core.model import App, AppKey, DeviceRole, GroupState, Role
from fractal.core.placement import may_trust, successors, trusted
from fractal.crypto.keys import app_keypair, seal_to

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

INTERVAL = 2.0
CHECKPOINT_LIMIT = 60.0
"""Seconds that writing a checkpoint may take."""
CHECKPOINT_AGAIN = 600.0
"""Seconds before one that could not be written is tried again."""

Step = tuple[str, Callable[[], Awaitable[None]]]


async def keep_up(group: GroupAgent) -> None:
    """Compare and mend, every couple of seconds. Nothing is written to the log while nothing differs.

    A step that fails is told once and tried again; it keeps none of the others from being done.
    """
    told: dict[str, str] = {}
    checkpoints = Checkpoints(group)
    settled: tuple[object, ...] | None = None
    """All that the steps for apps look at, when every one of them had found nothing more to do."""
    while True:
        basis = (group.state, group.agent.stopping, tuple(group.jobs))
        # Whether the others are there, which draining asks, is not in the log.
        open_ends = _drains(group)
        for name, step in _steps(group, checkpoints, apps=open_ends or basis != settled):
            try:
                await step()
                told.pop(name, None)
            except Stale:
                open_ends = True  # somebody else did it, or it is wanted no more
            except FractalError as error:
                open_ends = True
                if told.get(name) != str(error):
                    group.logger.warning("%s: %s", name, error)
                told[name] = str(error)
        settled = None if open_ends else basis
        await group.agent.clock.sleep(INTERVAL)


def _drains(group: GroupAgent) -> bool:
    me = group.state.devices.get(group.me)
    return me is not None and me.draining


def _steps(group: GroupAgent, checkpoints: Checkpoints, *, apps: bool) -> Iterator[Step]:
    yield "welcomes", partial(send_welcomes, group.agent, group.journal)
    me = group.state.devices.get(group.me)
    if group.blind or me is None or me.removed or group.agent.stopping:
        return
    yield "telling of this device", partial(_publish, group)
    yield "checkpoint", checkpoints.keep
    for app_id, app in group.state.apps.items() if apps else ():
        if app.removed or app.owner != group.me:
            continue
        # Each looks at the app as it is by then: the step before it may have changed it.
        for word, step in (
            ("new key", _renew_key),
            ("key for more devices", _share_key),
            ("secrets", _seal_again),
            ("draining", _drain),
        ):
            yield f"{app.name}: {word}", partial(_with_app, group, app_id, step)


async def _with_app(group: GroupAgent, app: str, step: Callable[[GroupAgent, App], Awaitable[None]]) -> None:
    await step(group, group.app(app))


class Checkpoints:
    """States one when enough was written: the first device that is there of those whose members may, hosts before others."""

    def __init__(self, group: GroupAgent) -> None:
        self._group = group
        self._not_before = 0.0

    async def keep(self) -> None:
        """Write one if it is due and this device's turn. Raises BackendError and what an append raises."""
        group, now = self._group, self._group.agent.clock.boottime()
        if now < self._not_before or not due(group.state) or group.me != self._whose_turn():
            return
        stores = sorted(s.id for s in group.state.stores.values() if not s.removed)
        if not stores:
            return
        self._not_before = now + CHECKPOINT_AGAIN
        try:
            async with asyncio.timeout(CHECKPOINT_LIMIT):
                opened = await group.store(stores[0])
                await write_checkpoint(group.journal, opened.store, stores[0], group.agent.entropy)
        except TimeoutError as error:
            name = group.state.stores[stores[0]].name
            raise BackendError(
                f"store {name}: a checkpoint was not written within {CHECKPOINT_LIMIT:g} s", retryable=True
            ) from error
        self._not_before = 0.0

    def _whose_turn(self) -> str:
        state = self._group.state
        admins = {m.id for m in state.members.values() if m.role is not Role.MEMBER and not m.removed}
        there = [
            d
            for d in state.devices.values()
            if d.member in admins and not d.removed and self._group.online(d.id)
        ]
        # A gateway may have no way into the store, and would keep its turn for ever: only where no host could have it.
        return min(((DeviceRole.HOST not in d.roles, d.id) for d in there), default=(False, ""))[1]


async def _publish(group: GroupAgent) -> None:
    """What others must know of this device. Capacity counts by powers of two: small changes are not news."""
    known = group.state.devices[group.me]
    facts = group.agent.self_description()
    changes: dict[str, Any] = {k: v for k, v in facts.items() if getattr(known, k) != v}
    capacity = group.agent.capacity()
    if abs(capacity.bit_length() - known.capacity.bit_length()) > (1 if known.capacity else 0):
        changes["capacity"] = capacity
    if known.away_until:
        changes["away_until"] = 0  # back again
    if changes:
        await group.journal.append(DeviceUpdated(device=group.me, **changes))


async def _renew_key(group: GroupAgent, app: App) -> None:
    """The owner begins a new generation of the app's key when a device that was removed holds the newest.

    Usually the removal brought one; not where who removed the device does not manage the app.
    """
    newest, state = app.keys[-1], group.state
    gone = [d for d in newest.sealed if d in state.devices and state.devices[d].removed]
    if not gone or not trusted(app, group.me):
        return
    public, secret = app_keypair(group.agent.entropy)
    heirs = {*may_trust(state, app.policy.trust, app.policy.devices, app.owner_member), group.me}
    sealed = {d: seal_to(state.devices[d].box_key, secret, group.agent.entropy) for d in sorted(heirs)}
    key = AppKey(generation=newest.generation + 1, public=public, sealed=sealed)
    await group.journal.append(
        AppKeyAdded(app=app.id, key=key),
        wanted=lambda state: state.apps[app.id].keys[-1].generation == newest.generation,
    )


async def _share_key(group: GroupAgent, app: App) -> None:
    """The owner seals the app's keys to devices that are trusted with the app and do not hold them yet.

    All generations: what a newcomer may have to restore was sealed under the older ones. The newest comes last, as whoever holds
    that counts as able to take the app over.
    """
    may = may_trust(group.state, app.policy.trust, app.policy.devices, app.owner_member)
    for key in app.keys:
        missing = [d for d in may if d not in key.sealed]
        if group.me not in key.sealed or not missing:
            continue
        secret = group.agent.keys.unseal(key.sealed[group.me])
        sealed = {d: seal_to(group.state.devices[d].box_key, secret, group.agent.entropy) for d in missing}
        await group.journal.append(
            AppKeyAdded(app=app.id, key=replace(key, sealed={**key.sealed, **sealed})),
            wanted=lambda state: state.apps[app.id].keys[-1].generation == app.keys[-1].generation,
        )


async def _seal_again(group: GroupAgent, app: App) -> None:
    """The owner seals the app's secrets to its newest key: who gets the key later holds no older one."""
    job = group.jobs.get(app.id)
    if job is None or not job.data.outdated():
        return
    # All of them: the group lets an owner that does not manage the app do it once for each generation.
    values = job.data.secrets().items()
    sealed = {n: seal_to(app.keys[-1].public, v.encode(), group.agent.entropy) for n, v in values}
    await change_secrets(group, app, sealed)


async def change_secrets(group: GroupAgent, app: App, secrets: dict[str, bytes]) -> None:
    """Replace all secrets, unless they or the key that they are sealed to changed meanwhile. Raises Stale then."""
    await group.journal.append(
        AppChanged(app=app.id, secrets=secrets),
        wanted=lambda state: (
            state.apps[app.id].secrets == app.secrets
            and state.apps[app.id].keys[-1].generation == app.keys[-1].generation
        ),
    )


async def _drain(group: GroupAgent, app: App) -> None:
    """A draining device asks for its apps to be moved to the best other device that is there."""
    if not group.state.devices[group.me].draining or app.release is not None:
        return
    if app.move_to and group.online(app.move_to):
        return
    others = [d for d in successors(group.state, app, without=[group.me]) if group.online(d)]
    if not others:
        return

    def wanted(state: GroupState) -> bool:
        return state.apps[app.id].move_to == app.move_to and state.apps[app.id].owner == group.me

    await group.journal.append(AppMoved(app=app.id, to=others[0]), wanted=wanted)
