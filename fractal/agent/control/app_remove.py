"""`app remove`: the app's last snapshot is stored before it goes, and what could not be stored is nobody's to delete but a person's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fractal.agent.agent import Agent
from fractal.agent.control.app import archived, desire, named, state_words, stopped, waiting_plan
from fractal.agent.control.dispatch import command
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan
from fractal.agent.control.progress import Progress
from fractal.agent.control.snapshot import take_now
from fractal.agent.control.waiting import DEFAULT, wait_until
from fractal.agent.group import GroupAgent
from fractal.agent.journal import Stale
from fractal.agent.status import app_status
from fractal.api.errors import BackendError, Conflict, FractalError, NotFound, Unreachable
from fractal.core.entries import AppRemoved
from fractal.core.model import App, Desired, GroupState


@command("app.remove")
async def app_remove(agent: Agent, params: Params, _: Progress) -> Plan:
    if params.flag("discard"):
        return _discard(agent, params)
    group, app = named(agent, params)
    wait = params.number("wait_s", DEFAULT)
    actions = _forced(group, app) if params.flag("force") else _orderly(group, app, wait or DEFAULT)

    def done() -> bool:
        job = group.jobs.get(app.id)
        return group.app(app.id).removed and not (job and job.runs())

    return waiting_plan(group, app.id, wait, actions, done)


def _orderly(group: GroupAgent, app: App, limit: float) -> list[Action]:
    """Stop, store, remove. Raises Unreachable while nobody can store what the app wrote last."""
    if app.epoch == 0 or app.release is not None:
        # Nobody has run it yet, or who did has nothing any more that waits to be taken.
        return [_remove(group, app, partial(_as_planned, app))]
    where = group.state.device_name(app.owner)
    if not group.online(app.owner):
        raise Unreachable(
            f"{app.name} is on {where}, which is silent: {_may_lose(group, app)}. Remove it when {where} is back, or say --force"
        )
    store = group.state.stores[app.store].name

    async def until_stopped(progress: Progress) -> None:
        words = partial(state_words, group, app.id)
        if not await wait_until(group, limit, lambda: stopped(group, app.id), progress, words):
            raise BackendError(_kept(app, f"it has not stopped within {limit:g} s"))

    async def store_last(progress: Progress) -> None:
        try:
            outcome = await take_now(group, group.app(app.id), limit, progress)
        except FractalError as error:
            raise BackendError(_kept(app, f"its last snapshot was not taken: {error}")) from error
        if not outcome["done"]:
            job = group.jobs.get(app.id)
            why = (job.trouble or job.saver.problem) if job else ""
            words = f"its last snapshot is not in store {store} within {limit:g} s"
            raise BackendError(_kept(app, f"{words}: {why}" if why else words))

    detail = {"app": app.name, "device": where}
    return [
        *([] if app.desired is Desired.STOPPED else [desire(group, app, Desired.STOPPED)]),
        Action("wait until it has stopped", detail, until_stopped),
        Action(f"store its last snapshot in {store}", detail, store_last),
        _remove(group, app, partial(_as_planned, replace(app, desired=Desired.STOPPED))),
    ]


def _forced(group: GroupAgent, app: App) -> list[Action]:
    """Remove at once: its device ends it, and stores what it wrote last if it still can."""
    lose = Action(
        f"{_may_lose(group, app)}, unless {_where(group, app)} can still store it", {"app": app.name}
    )
    return [*([lose] if app.epoch else []), _remove(group, app, lambda state: not state.apps[app.id].removed)]


def _remove(group: GroupAgent, app: App, wanted: Callable[[GroupState], bool]) -> Action:
    async def remove(_: Progress) -> None:
        try:
            await group.journal.append(AppRemoved(app=app.id), wanted=wanted)
        except Stale as error:
            raise Conflict(
                f"{app.name} was changed meanwhile by somebody else and is not removed: look at `homeserver status`"
            ) from error

    store = group.state.stores[app.store].name
    return Action(f"remove {app.name}; its archive stays in store {store}", {"app": app.name}, remove)


def _as_planned(app: App, state: GroupState) -> bool:
    now = state.apps[app.id]
    return not now.removed and (now.epoch, now.desired) == (app.epoch, app.desired)


def _where(group: GroupAgent, app: App) -> str:
    return group.state.device_name(app.owner) or "its last device"


def _may_lose(group: GroupAgent, app: App) -> str:
    lose = app_status(group, app)["would_lose_s"]
    return (
        f"what it wrote in the last {lose:g} s may be lost"
        if lose is not None
        else "what it wrote last may be lost"
    )


def _kept(app: App, why: str) -> str:
    return (
        f"{app.name} is not removed: {why}. It is not lost: it may be stopped, and keeps all its data. Try again, start it again "
        f"(homeserver app start), or say --force to remove it all the same"
    )


def _discard(agent: Agent, params: Params) -> Plan:
    """Give up what this device holds of a removed app and no store has."""
    group, app = archived(agent, params)
    if not app.removed:
        raise Conflict(f"{app.name} is not removed: --discard is for what is left of an app that was")
    job = group.jobs.get(app.id)
    if job is None or not job.facts.now.queue:
        raise NotFound(f"nothing of {app.name} waits on this device to be stored")

    async def give_up(_: Progress) -> None:
        job.facts.change(queue=())
        group.pulse.beat()

    count = len(job.facts.now.queue)
    what = f"delete {count} snapshot(s) of {app.name} that no store has from this device, for ever"
    wait = params.number("wait_s", DEFAULT)
    return waiting_plan(
        group, app.id, wait, [Action(what, {"app": app.name}, give_up)], lambda: app.id not in group.jobs
    )
