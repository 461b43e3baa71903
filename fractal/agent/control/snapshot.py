"""Handlers of the `snapshot` commands."""

from __future__ import annotations

from collections.abc import Mapping

from fractal.agent.agent import Agent
from fractal.agent.control.app import archived, job_of, moment_of, moments, named
from fractal.agent.control.dispatch import Result, command
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.progress import Progress, Silent
from fractal.agent.control.waiting import DEFAULT, wait_until
from fractal.agent.group import GroupAgent
from fractal.agent.mending import Damage
from fractal.agent.remote import ask
from fractal.api.errors import Denied, InvalidInput
from fractal.archive.collecting import Leaving
from fractal.archive.orphans import GRACE
from fractal.archive.thinning import Outlook
from fractal.archive.timeline import name
from fractal.core.entries import Pinned
from fractal.core.model import App
from fractal.core.retention import Merge

OPEN = 3600.0
"""Seconds for which a moment stays open unless told."""
LONGEST_OPEN = 7 * 86400.0


@command("snapshot.list")
async def snapshot_list(agent: Agent, params: Params, _: Progress) -> Result:
    group, app = archived(agent, params)
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
                "level": timeline.record(m.point).level,
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

    async def take(progress: Progress) -> None:
        outcome.update(await take_now(group, app, limit, progress))

    action = Action(
        f"take a snapshot of {app.name} on {group.state.device_name(app.owner)}", {"app": app.name}, take
    )
    return plan(action, result=lambda: outcome)


async def take_now(group: GroupAgent, app: App, limit: float, progress: Progress) -> Mapping[str, object]:
    """Have the app's device take a snapshot, of a stopped app too: `moment`, and whether it was stored (`done`) within `limit` seconds.

    Raises Unreachable, Denied, BackendError, NotFound.
    """
    if app.owner != group.me:
        wanted = {"group": group.id, "app": app.id, "wait_s": min(limit, 80.0)}
        answer = await ask(group, app.owner, "snapshot.create", wanted, Silent())
        return {"moment": answer["moment"], "done": answer["done"]}
    job = job_of(group, app)
    asked = group.agent.clock.boottime()
    job.saver.hurry()
    group.pulse.beat()
    done = await wait_until(
        group, limit, lambda: job.saver.safe(asked), progress, lambda: job.trouble or job.saver.problem
    )
    point = job.facts.now.committed
    return {"moment": f"{point.epoch}.{point.number}" if done and point is not None else "", "done": done}


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


@command("snapshot.repair")
async def snapshot_repair(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    deep = params.flag("deep")
    outcome: dict[str, object] = {"mended": [], "left": []}

    async def there(progress: Progress) -> None:
        wanted = {"group": group.id, "app": app.id, "deep": deep or None}
        answer = await ask(group, app.owner, "snapshot.repair", wanted, progress)
        outcome.update({field: answer[field] for field in outcome})

    if app.owner != group.me:
        where = group.state.device_name(app.owner)
        words = f"have {where}, where {app.name} runs, put back what a store lost and another has"
        return plan(*([Action(words, {}, there)] if app.owner else []), result=lambda: outcome)
    mending = job_of(group, app).mending
    mended: list[dict[str, object]] = []
    left: list[dict[str, object]] = []

    def action(damage: Damage) -> Action:
        store, first = group.state.stores[damage.store].name, damage.faults[0]

        async def mend(_: Progress) -> None:
            done = await mending.mend(damage)
            mended.extend({"object": m.key, "store": store, "source": m.source} for m in done if m.source)
            left.extend({"object": m.key, "store": store, "what": m.problem} for m in done if m.problem)

        words = f"put back {len(damage.faults)} object(s) of {app.name} in store {store}, first {first.key}: {first.what}"
        return Action(words, {"store": store}, mend)

    damages = await mending.look(deep=deep)
    return plan(*map(action, damages), result=lambda: {"mended": mended, "left": left})


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


@command("snapshot.plan")
async def snapshot_plan(agent: Agent, params: Params, _: Progress) -> Result:
    group, app = named(agent, params)
    job = job_of(group, app)
    return outlook_plain(await job.care.thinning.outlook(), await job.care.thinning.leaving())


@command("snapshot.open")
async def snapshot_open(agent: Agent, params: Params, _: Progress) -> Result:
    group, app = archived(agent, params)
    job = job_of(group, app)
    stays = params.number("for_s", OPEN)
    if not 0 < stays <= LONGEST_OPEN:
        raise InvalidInput("a moment can be opened for at most a week; `snapshot pin` keeps it in the store")
    moment = await moment_of(group, app, params.text("at"))
    if not job.data.keyring().secrets:
        where = ", ".join(sorted(group.state.device_name(d) for d in app.keys[-1].sealed))
        raise Denied(f"this device does not hold the key of {app.name}: open it on one that does ({where})")
    path = await job.data.open(moment.point, stays)
    return {"moment": name(moment.point), "wall_ms": moment.wall_ms, "path": str(path), "for_s": stays}


def outlook_plain(found: Outlook, leaving: list[Leaving]) -> dict[str, object]:
    """What the rules make of an archive, as it is shown."""
    timeline, retained = found.timeline, found.retained
    let_go = [timeline.stored[slot] for slot in retained.let_go]
    return {
        "kept": [
            {"moment": name(p), "wall_ms": timeline.record(p).wall_ms, "why": retained.kept[p]}
            for p in sorted(retained.kept)
        ],
        "let_go": [
            {"moment": name(r.point), "level": r.level, "wall_ms": r.wall_ms, "bytes": r.stored}
            for r in let_go
        ],
        "leaving": [
            {
                "moment": name(one.record.point),
                "level": one.record.level,
                "bytes": one.record.stored,
                "left_s": max(0.0, GRACE - one.age),
            }
            for one in leaving
        ],
        "merge": merge_words(found.merge) if found.merge else "",
        "kept_bytes": retained.bytes,
        "let_go_bytes": sum(r.stored for r in let_go),
        "leaving_bytes": sum(one.record.stored for one in leaving),
        "over_bytes": retained.over,
    }


def merge_words(merge: Merge) -> str:
    """A merge that is due, in words."""
    if merge.parent is None:
        return f"everything up to {name(merge.point)}, in full"
    return f"{merge.replaces} snapshots from {name(merge.parent)} to {name(merge.point)} into one"


@command("snapshot.prune")
async def snapshot_prune(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    job = job_of(group, app)
    outcome: dict[str, object] = {"merged": 0, "let_go": 0, "removed": 0, "bytes": 0}

    async def there(progress: Progress) -> None:
        wanted = {"group": group.id, "app": app.id}
        answer = await ask(group, app.owner, "snapshot.prune", wanted, progress)
        outcome.update({field: answer[field] for field in outcome})

    async def thin(_: Progress) -> None:
        done = await job.care.thinning.thin()
        outcome.update(merged=sum(1 for d in done if d.merged), let_go=sum(d.let_go for d in done))

    async def collect(_: Progress) -> None:
        gone = await job.care.thinning.collect()
        outcome.update(removed=len(gone), bytes=sum(r.stored for r in gone))

    if app.owner != group.me:
        where = group.state.device_name(app.owner)
        words = f"have {where}, where {app.name} runs, merge, let go and remove what is due"
        return plan(*([Action(words, {}, there)] if app.owner else []), result=lambda: outcome)
    found, leaving = await job.care.thinning.outlook(), await job.care.thinning.leaving()
    actions: list[Action] = []
    words = thin_words(found)
    if words:
        actions.append(Action(f"{app.name}: {words}", {}, thin))
    if ripe := [one.record for one in leaving if one.age >= GRACE]:
        size = sum(r.stored for r in ripe)
        actions.append(
            Action(f"remove {len(ripe)} records of {app.name} from the store, {size} bytes", {}, collect)
        )
    return plan(*actions, result=lambda: outcome)


def thin_words(found: Outlook) -> str:
    """What `thin` would do; "" if nothing."""
    words = [f"merge {merge_words(found.merge)}"] if found.merge else []
    words += [f"read back {len(found.pending)} merges"] if found.pending else []
    if found.back:
        words.append(f"take {len(found.back)} records back that are wanted since they were let go")
    if found.retained.let_go:
        going = [found.timeline.stored[slot] for slot in found.retained.let_go]
        size = sum(r.stored for r in going)
        ends = f"{name(going[0].point)} to {name(going[-1].point)}"
        words.append(f"let {len(going)} records go, {ends}, {size} bytes: removed after a day")
    return "; ".join(words)
