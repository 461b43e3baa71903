"""The fold of challenges, answers, takes and releases (docs/explanation/failover.md).

The lock is the epoch object in the app's store; these entries announce it. What the fold decides is who everybody
believes to be the owner, so it must come out the same for all of them, also when announcements arrive twice or late.
"""

from __future__ import annotations

from dataclasses import replace

from fractal.api.errors import Denied
from fractal.core.entries import Answered, Challenged, Found, Released, Serving, Took
from fractal.core.fold_rules import Turn, live_app, live_device, require, with_app
from fractal.core.model import App, Challenge, GroupState, Release
from fractal.core.placement import refusal, trusted

MAX_LEAP = 1_000
"""How far one announcement may raise an epoch: a forged one must not use the numbers up."""
MAX_UNOWNED = 64
"""Runs of epochs without an owner that are remembered of an app that serves nowhere, the newest."""


def challenged(turn: Turn, entry: Challenged) -> GroupState:
    """Opens a challenge; while one is open another changes nothing."""
    state = turn.state
    device = live_device(state, entry.device)
    require(device.id != turn.device.id, "a device does not challenge itself")
    if device.id in state.challenges:
        return state
    challenge = Challenge(device=device.id, by=turn.device.id, position=state.position)
    return replace(state, challenges={**state.challenges, device.id: challenge})


def answered(turn: Turn, entry: Answered) -> GroupState:
    """The author lives: its challenge is over, whatever was asked before this entry.

    And what it read binds it: an app of its own that no policy keeps any more runs there by proof only, from now on.
    """
    state, me = turn.state, turn.device.id
    require(0 <= entry.seen < state.position, "the answer names a position that is not before it")
    challenges = {i: c for i, c in state.challenges.items() if i != me}
    bound = {
        i: replace(a, unproven=0)
        for i, a in state.apps.items()
        if a.owner == me and not a.policy.keeps and 0 < a.unproven <= entry.seen
    }
    apps = {**state.apps, **bound} if bound else state.apps
    return replace(state, challenges=challenges, answers={**state.answers, me: state.position}, apps=apps)


def took(turn: Turn, entry: Took) -> GroupState:
    """The author created these epochs. Each app is judged by itself; one that stands already is no reason to skip."""
    state, reasons, good = turn.state, [], False
    for app, epoch in sorted(entry.epochs.items()):
        try:
            state = _take(state, live_app(state, app), epoch, turn.device.id)
            good = True
        except Denied as denied:
            reasons.append(f"{app}: {denied}")
    require(good, "; ".join(reasons) or "the entry names no app")
    return state


def _take(state: GroupState, app: App, epoch: int, taker: str) -> GroupState:
    if epoch == app.epoch and app.owner == taker:
        return state
    _require_next(app, epoch)
    reason = refusal(state, app, state.devices[taker])
    require(not reason, f"device {taker} may not host it: {reason}")
    return with_app(state, _kept(_owned(app, epoch, taker), state.position))


def found(turn: Turn, entry: Found) -> GroupState:
    """Somebody's epoch stands in the store. One whose owner is nobody, removed or not eligible is burnt: owned by none.

    The log alone cannot tell a made-up one, which costs the owner its app. So only those may say it who could do that
    anyway: devices that the app trusts, which can take it, and who manages it.
    """
    state = turn.state
    app = live_app(state, entry.app)
    allowed = turn.manages(app) or trusted(app, turn.device.id)
    require(allowed, "only who manages the app, or a device that it trusts, may say so")
    owner = state.devices.get(entry.owner)
    require(owner is not None or not entry.owner, f"device {entry.owner} was never in the group")
    able = owner is not None and not refusal(state, app, owner)
    name = entry.owner if able else ""
    if entry.epoch == app.epoch and app.owner == name:
        return state
    _require_next(app, entry.epoch)
    return with_app(state, _kept(_owned(app, entry.epoch, name), state.position))


def _require_next(app: App, epoch: int) -> None:
    require(epoch > app.epoch, f"epoch {epoch} is not above {app.epoch}")
    require(epoch <= app.epoch + MAX_LEAP, f"epoch {epoch} is more than {MAX_LEAP} above {app.epoch}")


def _owned(app: App, epoch: int, owner: str) -> App:
    first, unowned = app.epoch + 1, app.unowned
    if not owner:
        # With what it left out: a stranger may create that later. An owner leaves nothing out.
        if unowned and unowned[-1][1] == app.epoch:
            first, unowned = unowned[-1][0], unowned[:-1]
        unowned = (*unowned, (first, epoch))[-MAX_UNOWNED:]
    return replace(app, epoch=epoch, owner=owner, unowned=unowned, release=None)


def _kept(app: App, position: int) -> App:
    """Of an epoch that is announced at this position: its owner may run it without proof if the policy keeps the app now."""
    return replace(app, unproven=position if app.owner and app.policy.keeps else 0)


def released(turn: Turn, entry: Released) -> GroupState:
    """The owner of the present epoch gives it up, finally. Unhealthy: it is not tried there again before others."""
    app = _owned_by_author(turn, entry.app, entry.epoch)
    release = Release(epoch=entry.epoch, clean=entry.clean, base=entry.base, unhealthy=entry.unhealthy)
    if app.release is not None:
        require(app.release == release, f"epoch {entry.epoch} was released already")
        return turn.state
    failed = app.failed
    if entry.unhealthy and turn.device.id not in failed:
        failed = (*failed, turn.device.id)
    return with_app(turn.state, replace(app, release=release, failed=failed))


def serving(turn: Turn, entry: Serving) -> GroupState:
    """The app is healthy on the owner of the present epoch: routes lead there, and a move to it is done."""
    app = _owned_by_author(turn, entry.app, entry.epoch)
    require(app.release is None, f"epoch {entry.epoch} was released")
    move_to = "" if app.move_to == turn.device.id else app.move_to
    # What it starts from is chosen: nobody looks below it any more for what may be there.
    return with_app(turn.state, replace(app, serving=entry.epoch, unowned=(), failed=(), move_to=move_to))


def _owned_by_author(turn: Turn, identity: str, epoch: int) -> App:
    app = live_app(turn.state, identity)
    require(app.owner == turn.device.id, "another device owns the app")
    require(app.epoch == epoch, f"epoch {epoch} is not the present one, {app.epoch}")
    return app
