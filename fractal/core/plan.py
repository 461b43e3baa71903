"""What a device should do next about one app: a pure comparison of what should be with what is.

The agent asks for the next step, carries it out, and asks again. No step depends on an earlier one having been seen: after
a crash at any point the comparison gives what is left to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fractal.api.runtime import Health
from fractal.core.lease import Right, Standing
from fractal.core.model import App, Desired, Point

BASE_LEAD = 3.0
"""Seconds before the end of the wait at which the base is chosen: late, so that what the previous owner stored counts."""
SMALL_ROUND = 8 << 20
"""A planned move stops the app once a round was at most this many bytes."""
MAX_ROUNDS = 6


class Step(Enum):
    """What to do next. The words are shown by `--dry-run` and in the agent's log."""

    IDLE = "nothing to do"
    KILL = "end a run that this device has no right to"
    SET_ASIDE = "put the data of a replaced epoch away"
    FETCH = "fetch snapshots"
    PREPARE = "make the volume root out of the base"
    FINISH_WAIT = "note that the wait is over"
    RESTORE = "put an earlier moment in place"
    STOP = "stop"
    UPDATE = "stop, to start with the new manifest"
    BRING = "have what it needs to start on this device"
    START = "start"
    ANNOUNCE = "announce that it is healthy"
    GIVE_UP = "release it: it does not get healthy here"
    REST = "stop it for a while: it gets healthy on none of its devices"
    LET_GO = "release it: the epoch cannot start here"
    HAND_OVER = "stop, take the last snapshot and release"
    RELEASE = "announce a release that was noted but not sent"
    TICK = "take a snapshot"
    MAKE_ROOM = "delete snapshots that nothing needs"
    CLEAN_UP = "remove what is left of an app that was removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One app as this device sees it at `now`."""

    me: str
    now: float
    app: App
    standing: Standing
    right: Right
    runs: Mapping[int, Health] = field(default_factory=dict)
    """Runs that exist here: epoch -> health."""
    wait_over: float | None = None
    """When the wait of the present epoch ends; None: no wait has begun."""
    fetched: Point | None = None
    """Newest snapshot of the app that is here."""
    newest: Point | None = None
    """Newest snapshot of the main line that is known of."""
    standby: bool = False
    """This device keeps a warm copy."""
    crowded: bool = False
    """Snapshots may be here that nothing needs. An owner deletes them when it has stored one more, or found nothing to store."""
    started: float | None = None
    """When the present run was started, or could first not be prepared."""
    start_limit: float = 120.0
    """Seconds within which it must get healthy."""
    tick_due: float = 0.0
    """When the next snapshot is due."""
    changed_since_tick: bool = True
    hand_over_to: str = ""
    """Device that is to have it ("*": anybody): a move, a drain or the agent's end."""
    rounds: int = 0
    """Rounds of the move that were copied so far."""
    last_round: int | None = None
    """Bytes of the last round; None before the first."""
    saving: bool = False
    """Snapshots wait to be stored."""
    target_ready: bool = False
    """The target has everything up to the last round."""
    others_left: bool = True
    """Some eligible device has not yet tried the app."""
    outdated: bool = False
    """What runs was started with another manifest or other secrets than the log has now."""
    ending: bool = False
    """The agent is about to end: what nobody else takes comes to rest."""
    held: bool = False
    """Something of the app on this device is in no store yet, or somebody looks into one of its moments here."""
    start_at: float = 0.0
    """Not to be started before: a start was tried a moment ago."""
    here: bool = True
    """What a start needs is on this device: images above all."""
    bringing: bool = False
    """It is being brought, beside the steps."""
    restore_at: float = 0.0
    """A restore is not to be tried before: the last try failed."""
    rest_until: float = 0.0
    """Before then an app that got healthy on none of its devices is not started once more."""
    unprepared: float | None = None
    """Since when the present epoch's volume root cannot be made; None: no try failed, or one succeeded."""
    spoilt: bool = False
    """What stands in the store as the present epoch's base is not valid: nobody can start from this epoch."""
    log_away: bool = False
    """The log cannot be read, or proves nothing: a release would reach nobody, and it is final."""
    others_there: bool = False
    """One of `others_left` gives signs of life. Asked only where a volume root cannot be made."""


def steady(view: View) -> bool:
    """Whether an owner's app is as it should be, so that only news, or the next snapshot's time, can make anything due."""
    app = view.app
    return (
        app.serving == app.epoch
        and view.runs.get(app.epoch) is Health.HEALTHY
        and view.right.deadline is not None
        and view.right.deadline > view.now
        and not app.move_to
        and not view.ending
    )


def next_step(view: View) -> Step:
    """The next thing to do; IDLE if all is as it should be."""
    app = view.app
    ours = app.owner == view.me and app.epoch > 0 and not app.removed
    given_up = app.release is not None or view.standing.released >= app.epoch
    if any(epoch != app.epoch or not ours or given_up for epoch in view.runs):
        return Step.KILL
    if view.standing.root and (view.standing.root != app.epoch or not ours):
        return Step.SET_ASIDE
    if app.removed:
        # What no store has is deleted for nobody's sake: it is stored first, or given up by a person.
        return Step.IDLE if view.held else Step.CLEAN_UP
    if ours and given_up and app.release is None:
        return Step.RELEASE
    if not ours or given_up:
        if view.standby and _fetchable(view):
            return Step.FETCH
        # Not while the app is on its way: it may be for this device, and people wait.
        return Step.MAKE_ROOM if view.crowded and app.release is None else Step.IDLE
    if view.standing.root != app.epoch and (step := _without_root(view)) is not None:
        return step
    if view.standing.waited != app.epoch:
        return _waiting(view)
    if view.standing.root != app.epoch:
        return Step.PREPARE
    return _owning(view)


def _without_root(view: View) -> Step | None:
    """Whether to let an epoch go whose volume root cannot be made. Nothing of it is here yet, so nothing has to be stored first.

    Its owner lives and answers challenges, so nobody else would ever take it.
    """
    if view.log_away:
        return None
    if view.spoilt:
        return Step.LET_GO  # no fault of this device: it may well be the next to try
    if view.unprepared is None:
        return None
    if view.hand_over_to:
        return Step.LET_GO
    app, late = view.app, view.now - view.unprepared > view.start_limit
    asked_for = app.desired is Desired.RUNNING and app.policy.failover != "manual"
    # Where nobody else could try, this device goes on: the disk may get room, the store come back.
    return Step.GIVE_UP if late and asked_for and view.others_there else None


def _waiting(view: View) -> Step:
    if view.wait_over is None:
        return Step.IDLE
    if view.standing.root != view.app.epoch:
        if view.now >= view.wait_over - BASE_LEAD:
            return Step.PREPARE
        return Step.FETCH if view.newest is None or _fetchable(view) else Step.IDLE
    return Step.FINISH_WAIT if view.now >= view.wait_over else Step.IDLE


def _fetchable(view: View) -> bool:
    return view.newest is not None and (view.fetched is None or view.fetched < view.newest)


def _owning(view: View) -> Step:
    app = view.app
    health = view.runs.get(app.epoch)
    running = health is not None and health is not Health.STOPPED
    if view.right.deadline is None or view.right.deadline <= view.now:
        return Step.IDLE
    if app.restore is not None and app.restore.id != app.restored and view.now >= view.restore_at:
        return Step.RESTORE
    if app.desired is Desired.STOPPED or (view.ending and not view.hand_over_to):
        if health is not None:
            return Step.STOP
        return Step.TICK if view.changed_since_tick and view.now >= view.tick_due else Step.IDLE
    if view.hand_over_to and _hand_over_now(view, running=running):
        return Step.HAND_OVER
    nowhere = _all_failed(view)
    if not running and _hopeless(view, health):
        # Before yet another start: what cannot be prepared here would be tried for ever.
        return Step.REST if nowhere else Step.GIVE_UP
    resting = nowhere and view.now < view.rest_until
    if not running and view.now >= view.start_at and not resting and not view.bringing:
        return Step.START if view.here else Step.BRING
    if running and view.outdated:
        return Step.UPDATE
    if health is Health.HEALTHY and app.serving != app.epoch:
        return Step.ANNOUNCE
    if _hopeless(view, health):
        return Step.REST if nowhere else Step.GIVE_UP
    return Step.TICK if view.now >= view.tick_due or _round_wanted(view) else Step.IDLE


def _round_wanted(view: View) -> bool:
    """Whether a planned move needs one more copying round while the app runs."""
    if not view.hand_over_to or view.saving:
        return False
    return view.last_round is None or (view.target_ready and view.last_round > SMALL_ROUND)


def _hand_over_now(view: View, *, running: bool) -> bool:
    if view.log_away:
        return False
    if view.hand_over_to == "*" or not running:
        return True
    small = view.last_round is not None and view.last_round <= SMALL_ROUND
    return view.target_ready and (small or view.rounds >= MAX_ROUNDS)


def _hopeless(view: View, health: Health | None) -> bool:
    if health is Health.HEALTHY or view.app.serving == view.app.epoch or view.app.policy.failover == "manual":
        return False
    if view.log_away:
        return False
    return view.started is not None and view.now - view.started > view.start_limit


def _all_failed(view: View) -> bool:
    """Every eligible device tried and none got it healthy: it stays here, is tried again now and then, and people are told."""
    return view.me in view.app.failed and not view.others_left
