"""Slow housekeeping: telling the group about this device, sharing app keys, draining."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fractal.agent.journal import Stale
from fractal.agent.membership import send_welcomes
from fractal.api.transport import SupportsCertificates
from fractal.core.entries import AppChanged, AppKeyAdded, AppMoved, DeviceUpdated
from fractal.core.model import App, GroupState
from fractal.core.placement import may_trust, successors
from fractal.crypto.keys import seal_to

if TYPE_CHECKING:
    from fractal.agent.group import GroupAgent

INTERVAL = 2.0


async def keep_up(group: GroupAgent) -> None:
    """Compare and mend, every couple of seconds. Nothing is written to the log while nothing differs."""
    while True:
        await send_welcomes(group.agent, group.journal)
        if not group.blind and group.me in group.state.devices:
            await _publish(group)
            for app in list(group.state.apps.values()):
                if not app.removed:
                    await _share_key(group, app)
                    await _drain(group, app)
                    await _certify(group, app)
        await group.agent.clock.sleep(INTERVAL)


async def _publish(group: GroupAgent) -> None:
    """What others must know of this device. Capacity counts by powers of two: small changes are not news."""
    known = group.state.devices[group.me]
    facts = group.agent.self_description()
    changes: dict[str, Any] = {k: v for k, v in facts.items() if getattr(known, k) != v}
    capacity = group.agent.capacity()
    if abs(capacity.bit_length() - known.capacity.bit_length()) > (1 if known.capacity else 0):
        changes["capacity"] = capacity
    if changes:
        await group.journal.append(DeviceUpdated(device=group.me, **changes))


async def _share_key(group: GroupAgent, app: App) -> None:
    """The owner seals the app's newest key to devices that are trusted with the app and do not hold it yet."""
    if app.owner != group.me or not app.keys or group.me not in app.keys[-1].sealed:
        return
    newest = app.keys[-1]
    trusted = may_trust(group.state, app.policy.trust, app.policy.devices, app.owner_member)
    missing = [d for d in trusted if d not in newest.sealed]
    if not missing:
        return
    secret = group.agent.keys.unseal(newest.sealed[group.me])
    sealed = {d: seal_to(group.state.devices[d].box_key, secret, group.agent.entropy) for d in missing}
    await group.journal.append(
        AppKeyAdded(app=app.id, key=replace(newest, sealed={**newest.sealed, **sealed})),
        wanted=lambda state: state.apps[app.id].keys[-1].generation == newest.generation,
    )


async def _certify(group: GroupAgent, app: App) -> None:
    """The owner makes a certificate for each HTTPS name of the app that has none, where the transport wants such ones.

    It belongs to the app, not to the device: sealed to the app's key, so the next owner has it before traffic comes.
    """
    maker = group.agent.transport
    if app.owner != group.me or not isinstance(maker, SupportsCertificates):
        return
    names = [r.name for r in group.state.routes.values() if r.app == app.id and r.kind == "https"]
    missing = [n for n in sorted(names) if f"tls.{n}.key" not in app.secrets]
    if not missing:
        return
    secrets = dict(app.secrets)
    for name in missing:
        made = await maker.certify(name)
        for part, value in (("chain", made.chain), ("key", made.key)):
            secrets[f"tls.{name}.{part}"] = seal_to(app.keys[-1].public, value, group.agent.entropy)
    await group.journal.append(AppChanged(app=app.id, secrets=secrets))


async def _drain(group: GroupAgent, app: App) -> None:
    """A draining device asks for its apps to be moved to the best other device that is there."""
    device = group.state.devices[group.me]
    if not device.draining or app.owner != group.me or app.move_to or app.release is not None:
        return
    others = [d for d in successors(group.state, app, without=[group.me]) if group.online(d)]
    if not others:
        return

    def wanted(state: GroupState) -> bool:
        return not state.apps[app.id].move_to and state.apps[app.id].owner == group.me

    try:
        await group.journal.append(AppMoved(app=app.id, to=others[0]), wanted=wanted)
    except Stale:
        return
