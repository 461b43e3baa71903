"""Handlers of the `snapshot` commands."""

from __future__ import annotations

from fractal.agent.agent import Agent
from fractal.agent.control.app import job_of, moment_of, moments, named
from fractal.agent.control.dispatch import Result, command
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.progress import Progress, Silent
from fractal.agent.control.waiting import DEFAULT, wait_until
from fractal.agent.remote import ask
from fractal.core.entries import Pinned


@command("snapshot.list")
async def snapshot_list(agent: Agent, params: Params, _: Progress) -> Result:
    group, app = named(agent, params)
    every, _main, side = await moments(group, app)
    timeline = await (await job_of(group, app).data.archive()).timeline()
    off = {m.point for m in side}
    return {
        "snapshots": [
            {
                "moment": f"{m.point.epoch}.{m.point.number}",
                "wall_ms": m.wall_ms,
                "device": group.state.device_name(timeline.record(m.point).device),
                "bytes": timeline.record(m.point).stored,
                "pinned": m.point in app.pins,
                "branch": m.point in off,
            }
            for m in every
        ]
    }


@command("snapshot.create")
async def snapshot_create(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    outcome: dict[str, object] = {"moment": "", "done": False}
    limit = params.number("wait_s", DEFAULT)

    async def here(progress: Progress) -> None:
        job = job_of(group, app)
        asked = agent.clock.boottime()
        job.saver.hurry()
        group.pulse.beat()
        outcome["done"] = await wait_until(
            group, limit, lambda: job.saver.safe(asked), progress, lambda: job.trouble or job.saver.problem
        )
        point = job.facts.now.committed
        if outcome["done"] and point is not None:
            outcome["moment"] = f"{point.epoch}.{point.number}"

    async def there(_: Progress) -> None:
        wanted = {"group": group.id, "app": app.id, "wait_s": min(limit, 80.0)}
        answer = await ask(group, app.owner, "snapshot.create", wanted, Silent())
        outcome.update(moment=answer["moment"], done=answer["done"])

    where = group.state.device_name(app.owner)
    action = Action(
        f"take a snapshot of {app.name} on {where}",
        {"app": app.name},
        here if app.owner == group.me else there,
    )
    return plan(action, result=lambda: outcome)


@command("snapshot.verify")
async def snapshot_verify(agent: Agent, params: Params, progress: Progress) -> Result:
    group, app = named(agent, params)
    job = job_of(group, app)
    deep = params.flag("deep")
    if deep and not job.data.keyring().secrets and app.owner:
        wanted = {"group": group.id, "app": app.id, "deep": True}
        return await ask(group, app.owner, "snapshot.verify", wanted, progress)
    await group.list_epochs(app.store)
    report = await (await job.data.archive()).verify(deep=deep)
    job.care.verified(len(report.problems), next((f"{p.key}: {p.what}" for p in report.problems), ""))
    return {
        "objects": report.objects,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "problems": [{"object": p.key, "what": p.what} for p in report.problems],
    }


@command("snapshot.pin")
async def snapshot_pin(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    moment = await moment_of(group, app, params.text("at"))
    keep = not params.flag("off")
    text = f"{moment.point.epoch}.{moment.point.number}"

    async def pin(_: Progress) -> None:
        await group.journal.append(Pinned(app=app.id, point=moment.point, keep=keep))

    words = (
        f"keep snapshot {text} of {app.name} for ever"
        if keep
        else f"let retention have snapshot {text} again"
    )
    actions = (
        [] if (moment.point in app.pins) == keep else [Action(words, {"app": app.name, "moment": text}, pin)]
    )
    return plan(*actions, result={"moment": text, "pinned": keep})
