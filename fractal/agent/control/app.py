"""Handlers of the `app` commands that look or that change an installed app."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial

from fractal.agent.agent import Agent
from fractal.agent.app_job import AppJob
from fractal.agent.control.dispatch import Result, command
from fractal.agent.control.following import TAIL, follow_here, follow_there, show
from fractal.agent.control.names import (
    check_new_name,
    find_app,
    find_archived,
    find_device,
    find_group,
)
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.progress import Progress
from fractal.agent.control.waiting import DEFAULT, wait_until
from fractal.agent.group import GroupAgent
from fractal.agent.journal import Stale
from fractal.agent.manifest_use import digest_of
from fractal.agent.remote import ask
from fractal.agent.status import app_status, owner_says
from fractal.api.app import run_key
from fractal.api.errors import Denied, NotFound
from fractal.api.runtime import Health
from fractal.core.chain import main_line
from fractal.core.entries import AppChanged, AppMoved, AppRestoreWished
from fractal.core.model import App, Desired, GroupState, Policy
from fractal.core.moments import Moment, find, parse_point
from fractal.core.placement import cannot_restore, refusal

ATTEMPTS = 5
"""At a change of what others change too."""


def local_zone(wall_ms: int) -> tzinfo:
    """The zone in which people at this device write times, as it is at that moment."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).astimezone().tzinfo or UTC


def named(agent: Agent, params: Params) -> tuple[GroupAgent, App]:
    """The group and app that the parameters name."""
    group = agent.groups[find_group(agent, params).journal.state.id]
    return group, find_app(group.state, params.text("app"))


def archived(agent: Agent, params: Params) -> tuple[GroupAgent, App]:
    """As `named`, for what an archive alone can answer: also an app that was removed."""
    group = agent.groups[find_group(agent, params).journal.state.id]
    return group, find_archived(group.state, params.text("app"))


def job_of(group: GroupAgent, app: App) -> AppJob:
    """The app's job on this device. Raises NotFound while there is none yet."""
    job = group.job(app.id)
    if job is None:
        raise NotFound(f"{app.name} is not known to this device's jobs yet; try again in a moment")
    return job


async def moments(group: GroupAgent, app: App) -> tuple[list[Moment], tuple[Moment, ...], tuple[Moment, ...]]:
    """All moments of the app's archive, those of the main line, and those of branches."""
    job = job_of(group, app)
    await group.list_epochs(app.store)
    timeline = await (await job.data.archive()).timeline()
    bases = await job.data.bases()
    every = [Moment(p, timeline.record(p).wall_ms) for p in sorted(timeline.points)]
    by_point = {m.point: m for m in every}
    bases = {epoch: base for epoch, base in bases.items() if app.counts(epoch)}
    line = main_line([p for p in by_point if app.counts(p.epoch)], bases, app.epoch)
    on_line = frozenset(line)
    return every, tuple(by_point[p] for p in line), tuple(m for m in every if m.point not in on_line)


async def moment_of(group: GroupAgent, app: App, wanted: str) -> Moment:
    """The moment that somebody wrote. Raises InvalidInput, NotFound."""
    every, main, _ = await moments(group, app)
    try:
        now = group.agent.clock.wall_ms()
        return find(every, [m.point for m in main], wanted, now, local_zone(now))
    except NotFound as error:
        if (point := parse_point(wanted)) is not None:
            timeline = await (await job_of(group, app).data.archive()).timeline()
            if timeline.let_go(point):
                timeline.record(point)  # says so, and names the nearest
        raise NotFound(f"{app.name}: {error}") from error


def healthy(group: GroupAgent, app: str) -> bool:
    """Whether the app is announced and seen as healthy."""
    found = group.state.apps.get(app)
    if found is None or found.removed or found.serving != found.epoch or not found.epoch:
        return False
    # A remote owner announced it in the log; its own signal may be seconds behind.
    return found.owner != group.me or bool(app_status(group, found)["health"] == Health.HEALTHY.value)


def state_words(group: GroupAgent, app: str) -> str:
    status = app_status(group, group.app(app))
    where = f" on {status['device']}" if status["device"] else ""
    return f"{status['name']}: {status['note'] or status['health'] + where}"


def waiting_plan(
    group: GroupAgent,
    app: str,
    seconds: float,
    actions: list[Action],
    done: Callable[[], bool],
    result: Callable[[], dict[str, object]] | None = None,
) -> Plan:
    """A plan whose last action waits until `done`."""
    outcome = {"done": False}

    async def wait(progress: Progress) -> None:
        outcome["done"] = await wait_until(group, seconds, done, progress, lambda: state_words(group, app))

    waited = [Action(f"wait up to {seconds:g} s until it is so", {}, wait)] if seconds > 0 else []
    extra = result or dict
    return plan(*actions, *waited, result=lambda: {"app": app, "done": outcome["done"] or done(), **extra()})


@command("app.list")
async def app_list(agent: Agent, params: Params, _: Progress) -> Result:
    group = agent.groups[find_group(agent, params).journal.state.id]
    apps = sorted(group.state.apps.values(), key=lambda a: a.name)
    return {
        "apps": [app_status(group, a) for a in apps if not a.removed],
        "removed": [
            {"id": a.id, "name": a.name, "store": group.state.stores[a.store].name} for a in apps if a.removed
        ],
    }


@command("app.show")
async def app_show(agent: Agent, params: Params, _: Progress) -> Result:
    group, app = named(agent, params)
    job = job_of(group, app)
    run = job.health()
    seen = {s.name: s for s in run.services} if run else {}
    _every, _main, side = await moments(group, app)
    timeline = await (await job.data.archive()).timeline()
    writers = {m.point: timeline.record(m.point).device for m in side}
    return {
        "app": app_status(group, app),
        "store": group.state.stores[app.store].name,
        "policy": policy_plain(group, app.policy, app.mirrors),
        "services": [
            {
                "name": s.name,
                "image": s.image,
                "health": seen[s.name].health.value if s.name in seen else "unknown",
                "restarts": seen[s.name].restarts if s.name in seen else 0,
                "detail": seen[s.name].detail if s.name in seen else "",
            }
            for s in job.spec.services
        ],
        "volumes": list(job.spec.volumes),
        "routes": sorted(r.name for r in group.state.routes.values() if r.app == app.id),
        "secrets": sorted(app.secrets),
        "branches": [
            {
                "moment": f"{m.point.epoch}.{m.point.number}",
                "device": group.state.device_name(writers[m.point]),
                "wall_ms": m.wall_ms,
            }
            for m in side
        ],
        "manifest": app.manifest,
    }


def policy_plain(group: GroupAgent, policy: Policy, mirrors: Sequence[str]) -> dict[str, object]:
    """A policy as it is shown, with the stores that mirror the archive."""
    return {
        "failover": policy.failover,
        "on_isolation": policy.on_isolation,
        "interval_s": policy.interval / 1000,
        "standby": policy.standby,
        "devices": [group.state.device_name(d) for d in policy.devices],
        "trust": policy.trust,
        "keep": {
            "all_s": policy.keep_ticks / 1000,
            "hourly": policy.keep_hourly,
            "daily": policy.keep_daily,
            "weekly": policy.keep_weekly,
            "bytes": policy.keep_bytes,
        },
        "mirrors": [group.state.stores[store].name for store in mirrors],
    }


def desire(group: GroupAgent, app: App, desired: Desired) -> Action:
    async def change(_: Progress) -> None:
        await group.journal.append(AppChanged(app=app.id, desired=desired))

    return Action(f"want {app.name} {desired.value}", {"app": app.name}, change)


def stopped(group: GroupAgent, app: str) -> bool:
    status = app_status(group, group.app(app))
    return status["desired"] == "stopped" and status["health"] in ("stopped", "unknown")


@command("app.start")
async def app_start(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    actions = [] if app.desired is Desired.RUNNING else [desire(group, app, Desired.RUNNING)]
    wait = params.number("wait_s", DEFAULT)
    return waiting_plan(group, app.id, wait, actions, lambda: healthy(group, app.id))


@command("app.stop")
async def app_stop(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    actions = [] if app.desired is Desired.STOPPED else [desire(group, app, Desired.STOPPED)]
    wait = params.number("wait_s", DEFAULT)
    return waiting_plan(group, app.id, wait, actions, lambda: stopped(group, app.id))


@command("app.restart")
async def app_restart(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    wait = params.number("wait_s", DEFAULT)

    async def until_stopped(progress: Progress) -> None:
        words = lambda: state_words(group, app.id)  # noqa: E731 - names what follows
        if not await wait_until(group, DEFAULT, lambda: stopped(group, app.id), progress, words):
            progress.say(f"{app.name} has not stopped yet; it is started again all the same")

    actions = [
        desire(group, app, Desired.STOPPED),
        Action("wait until it has stopped", {}, until_stopped),
        desire(group, app, Desired.RUNNING),
    ]
    return waiting_plan(group, app.id, wait, actions, lambda: healthy(group, app.id))


@command("app.move")
async def app_move(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    device = find_device(group.state, params.text("device"))
    if why := refusal(group.state, app, device) or cannot_restore(group.state, app, device):
        raise Denied(f"{app.name} cannot move to {device.name}: {why}")

    async def wish(_: Progress) -> None:
        await group.journal.append(AppMoved(app=app.id, to=device.id))

    actions = (
        []
        if app.owner == device.id and not app.move_to
        else [Action(f"move {app.name} to {device.name}", {"app": app.name, "device": device.name}, wish)]
    )

    def done() -> bool:
        return group.app(app.id).owner == device.id and healthy(group, app.id)

    wait = params.number("wait_s", DEFAULT)
    return waiting_plan(group, app.id, wait, actions, done, lambda: {"device": device.name})


@command("app.restore")
async def app_restore(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    moment = await moment_of(group, app, params.text("at"))
    wish = agent.entropy.bytes(8).hex()
    text = f"{moment.point.epoch}.{moment.point.number}"

    async def append(_: Progress) -> None:
        await group.journal.append(AppRestoreWished(app=app.id, id=wish, point=moment.point))

    def done() -> bool:
        now = group.app(app.id)
        return now.restored == wish and (now.desired is Desired.STOPPED or healthy(group, app.id))

    action = Action(f"bring {app.name} back to snapshot {text}", {"app": app.name, "moment": text}, append)
    wait = params.number("wait_s", DEFAULT)
    return waiting_plan(group, app.id, wait, [action], done, lambda: {"moment": text})


@command("app.update")
async def app_update(agent: Agent, params: Params, _: Progress) -> Plan:
    from fractal.agent.control.app_build import Builds
    from fractal.agent.control.app_install import (
        builds_of,
        new_secrets,
        pack_contexts,
        read_manifest,
        refuse_what_cannot_run,
    )
    from fractal.agent.fork_key import sealed_secrets
    from fractal.manifest.report import reads_line

    group, app = named(agent, params)
    name = check_new_name("app", params.text("name"), _other_names(group, app)) if "name" in params else None
    given = params.table("secrets")
    text: str | None = None
    spec: dict[str, object] | None = None
    builds = Builds(agent=agent, group=group, wanted={}, contexts={})
    told: dict[str, str] = {}
    if any(key in params for key in ("manifest", "env", "allow", "images")) or not (given or name):
        # Without anything else to change the catalog's present manifest is meant.
        manifest = await read_manifest(agent, app.name, params, app, group)
        text, spec, given = manifest.text, manifest.spec, manifest.secrets
        refuse_what_cannot_run(agent, group, app.owner or app.placed, spec)
        builds = builds_of(agent, group, manifest, params)
        builds.refuse_another_machine(app.owner or app.placed)
        told = reads_line(manifest.checked)
        builds.read = partial(manifest.of, agent.workers)
        await pack_contexts(builds, app.name, manifest, params)

    async def change(progress: Progress) -> None:
        given_spec = spec
        if builds.wanted:
            given_spec = await builds.spec()
            if app.owner != group.me:
                await builds.store(app.store, group.app(app.id).keys[-1], progress)
        await append(given_spec)
        await builds.tell(app.id)

    async def append(spec: dict[str, object] | None) -> None:
        for left in reversed(range(ATTEMPTS)):
            now = group.app(app.id)
            made = {n: v for n, v in new_secrets(agent, spec or {}).items() if n not in now.secrets}
            fresh = sealed_secrets(agent.entropy, now.keys[-1].public, {**made, **given})
            secrets = {**now.secrets, **fresh} if fresh else None
            entry = AppChanged(app=app.id, name=name, manifest=text, spec=spec, secrets=secrets)
            try:
                # Both of two who change secrets at once must not undo each other; its device keeps certificates there.
                await group.journal.append(entry, wanted=partial(_unchanged, now, secrets is None))
                return
            except Stale:
                if not left:
                    raise

    def applied() -> bool:
        now = group.app(app.id)
        says = owner_says(group, now)
        runs = says is not None and says[0].spec == digest_of(now.spec)
        return now.desired is Desired.STOPPED or (runs and healthy(group, app.id))

    new = " and ".join(n for n, v in (("manifest", text), ("secrets", given), ("name", name)) if v)
    what = f"give {app.name} a new {new}; where that matters to it, its device takes a snapshot and starts it again"
    actions = [*builds.actions(), Action(what, {"app": app.name, **told}, change)]
    wait = params.number("wait_s", DEFAULT)
    return waiting_plan(group, app.id, wait, actions, applied)


def _unchanged(app: App, free: bool, state: GroupState) -> bool:
    return free or state.apps[app.id].secrets == app.secrets


def _other_names(group: GroupAgent, app: App) -> list[str]:
    return [a.name for a in group.state.apps.values() if a.id != app.id and not a.removed]


@command("app.logs")
async def app_logs(agent: Agent, params: Params, progress: Progress) -> Result:
    group, app = named(agent, params)
    if app.owner != group.me:
        service, tail = params.text("service"), params.integer("tail", 100)
        if params.flag("follow"):
            await follow_there(group, app, service, tail or TAIL, progress)
        wanted = {**_target(group, app), "service": service, "tail": min(tail or TAIL, TAIL)}
        return await ask(group, app.owner, "app.logs", wanted, progress)
    job = job_of(group, app)
    key = run_key(group.id, app.id, app.epoch)
    chosen = params.text("service")
    services = [s.name for s in job.spec.services if chosen in ("", s.name)]
    if not services:
        raise NotFound(
            f"{app.name} has no service {chosen!r}: it has {', '.join(s.name for s in job.spec.services)}"
        )
    tail = params.integer("tail", 100)
    if params.flag("follow"):
        return {"lines": await follow_here(agent.runtime, key, services, tail, progress)}
    return {"lines": sum([await show(agent.runtime, key, s, progress, tail=tail) for s in services])}


def _target(group: GroupAgent, app: App) -> dict[str, object]:
    return {"group": group.id, "app": app.id}


@command("app.exec")
async def app_exec(agent: Agent, params: Params, progress: Progress) -> Result:
    group, app = named(agent, params)
    argv = params.items("argv")
    if app.owner != group.me:
        wanted = {
            "service": params.text("service"),
            "argv": list(argv),
            "stdin": params.text("stdin"),
            "timeout_s": min(params.number("timeout_s", 60.0), 60.0),
        }
        return await ask(group, app.owner, "app.exec", {**_target(group, app), **wanted}, progress)
    job = job_of(group, app)
    service = params.text("service") or job.spec.web_service or job.spec.services[0].name
    result = await agent.runtime.exec(
        run_key(group.id, app.id, app.epoch),
        service,
        argv,
        stdin=params.text("stdin").encode(),
        timeout=params.number("timeout_s", 60.0),
    )
    return {"exit_code": result.exit_code, "output": result.output.decode("utf-8", "replace")}
