"""What `homeserver status` shows: the log's facts, what the owners last said, and how old that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fractal import __version__
from fractal.agent.beats import AppBeat
from fractal.api.runtime import Health
from fractal.core.lease import check_timers
from fractal.core.model import App, Desired, Device, DeviceRole
from fractal.core.placement import cannot_restore, images_of, refusal, standbys, successors

if TYPE_CHECKING:
    from fractal.agent.agent import Agent
    from fractal.agent.group import GroupAgent


def agent_status(agent: Agent) -> dict[str, Any]:
    """The answer of `agent.status`."""
    config = agent.config
    jobs = {
        f"{group.state.name}: {job.app.name}": job.problem() or "ok"
        for group in agent.groups.values()
        for job in group.jobs.values()
        if job.owns
    }
    return {
        "version": __version__,
        "device": agent.keys.id,
        "name": config.device.name,
        "pid": agent.pid,
        "up_s": round(agent.clock.boottime() - agent.started, 1),
        "guard": agent.guard_problem or "holding",
        "backends": {
            "runtime": config.runtime.backend,
            "snapshot": config.snapshot.backend,
            "transport": config.transport.backend,
            "coordination": config.coordination.backend,
        },
        "jobs": {**jobs, **agent.broken, "routes": agent.link_problem or "ok"},
        "groups": len(agent.groups),
        "config": str(config.path),
    }


def group_status(group: GroupAgent) -> dict[str, Any]:
    """One item of `groups` of `status.show`."""
    state, now = group.state, group.agent.clock.boottime()
    sent = group.journal.proof_sent
    return {
        "group": {
            "id": group.id,
            "name": state.name,
            "position": state.position,
            "log_age_s": None if sent is None else round(now - sent, 1),
            "alarms": alarms(group),
            "pending": len(state.requests),
        },
        "devices": [
            device_status(group, d)
            for d in sorted(state.devices.values(), key=lambda d: d.name)
            if not d.removed
        ],
        "apps": [
            app_status(group, a) for a in sorted(state.apps.values(), key=lambda a: a.name) if not a.removed
        ],
    }


def alarms(group: GroupAgent) -> list[str]:
    """What is wrong with the group as a whole."""
    state = group.state
    found = list(check_timers(state.timers))
    for device, evidence in state.alarms.items():
        name = state.devices[device].name if device in state.devices else device
        found.append(
            f"the log server showed different histories, or {name} lies: {evidence}; nobody takes anything over "
            f"until {name} is removed"
        )
    if state.left:
        found.append("this device was removed from the group")
    elif state.sealed_out:
        found.append(f"entry {state.sealed_out} of the log cannot be opened here: the log proves nothing")
    if group.log_problem:
        found.append(f"the log cannot be read: {group.log_problem}")
    found += [
        f"{job.app.name} was removed, but {len(job.facts.now.queue)} snapshot(s) of it on this device are not in store "
        f"{state.stores[job.app.store].name} yet: {job.saver.problem or 'under way'}; "
        f"`homeserver app remove {job.id} --discard` gives them up"
        for job in group.jobs.values()
        if job.app.removed and job.facts.now.queue
    ]
    arbiters = {app.store for app in state.apps.values()}
    for store, opened in group.stores.items():
        if store not in arbiters:
            continue  # a mirror proves nothing, and what is wrong with it is said of the app
        name = state.stores[store].name
        if opened.problem:
            found.append(f"store {name}: {opened.problem}")
        if not opened.store.fencing:
            found.append(f"store {name} cannot fence: no automatic failover for its apps")
    return found


def device_status(group: GroupAgent, device: Device) -> dict[str, Any]:
    """A device as others last heard it."""
    member = group.state.members.get(device.member)
    heard = group.heard.get(device.id)
    this = device.id == group.me
    seen = 0.0 if this else None if heard is None else group.agent.clock.boottime() - heard
    return {
        "id": device.id,
        "name": device.name,
        "member": member.name if member else "",
        "roles": sorted(r.value for r in device.roles),
        "this": this,
        "online": group.online(device.id),
        "last_seen_s": None if seen is None else round(seen, 1),
        "draining": device.draining,
        "version": device.version,
    }


def owner_says(group: GroupAgent, app: App) -> tuple[AppBeat, float] | None:
    """What the app's owner last said of it, and how many seconds ago."""
    if app.owner == group.me:
        job = group.jobs.get(app.id)
        return (job.beat(), 0.0) if job else None
    beat = group.beats.get(app.owner)
    said = beat.apps.get(app.id) if beat else None
    if beat is None or said is None or said.epoch != app.epoch:
        return None
    return said, group.agent.clock.boottime() - group.heard[app.owner]


def app_status(group: GroupAgent, app: App) -> dict[str, Any]:
    """An app as its owner last told it, never younger than it is."""
    says = owner_says(group, app)
    said, age = says or (None, 0.0)
    lose = None if said is None or said.would_lose < 0 else round(said.would_lose / 1000 + age, 1)
    stale = said is not None and not group.online(app.owner)
    return {
        "id": app.id,
        "name": app.name,
        "device": group.state.device_name(app.owner),
        "epoch": app.epoch,
        "health": "unknown" if said is None or stale else said.health,
        "frozen": bool(said and said.frozen),
        "desired": app.desired.value,
        "last_snapshot_s": lose if said is not None and said.committed is not None else None,
        "would_lose_s": lose,
        "unarchived": [name for name in images_of(app.spec) if name not in app.pinned_images],
        "excluded": excluded(group, app),
        "mirrors": [mirror_status(group, store, said, age) for store in app.mirrors],
        "standby": [standby_status(group, app, d, said, age) for d in standbys(group.state, app)],
        "route": min((r.name for r in group.state.routes.values() if r.app == app.id), default=""),
        "moving_to": group.state.device_name(app.move_to) if app.move_to != app.owner else "",
        "note": note(group, app, said, stale=stale),
    }


def mirror_status(group: GroupAgent, store: str, said: AppBeat | None, age: float) -> dict[str, Any]:
    """How far a mirror of the app's archive is behind, as the app's owner last told it."""
    beat = said.mirrors.get(store) if said is not None else None
    since = None if beat is None or beat.since < 0 else round(beat.since / 1000 + age, 1)
    return {
        "store": group.state.stores[store].name,
        "behind": None if beat is None or beat.behind < 0 else beat.behind,
        "since_s": since,
        "problem": beat.problem if beat is not None else "",
    }


def excluded(group: GroupAgent, app: App) -> list[dict[str, Any]]:
    """Hosts of the group that cannot take the app over, and why."""
    hosts = sorted(group.state.devices.values(), key=lambda d: d.name)
    reasons = {
        d.name: refusal(group.state, app, d) or cannot_restore(group.state, app, d)
        for d in hosts
        if DeviceRole.HOST in d.roles and not d.removed
    }
    return [{"device": name, "reason": reason} for name, reason in reasons.items() if reason]


def standby_status(
    group: GroupAgent, app: App, device: str, said: AppBeat | None, age: float
) -> dict[str, Any]:
    """How far a warm copy is behind what would be there after a takeover."""
    job = group.jobs.get(app.id)
    beat = group.beats.get(device)
    have = job.fetched if device == group.me and job else beat.warm.get(app.id) if beat else None
    behind = None
    if have is not None and said is not None and said.committed is not None:
        lose = max(said.would_lose, 0) / 1000
        # A copy of the last committed snapshot lacks what the owner would lose; an older one lacks an interval more.
        steps = 0 if have >= said.committed else max(1, said.committed.number - have.number)
        behind = round(lose + age + steps * app.policy.interval / 1000, 1)
    return {"device": group.state.device_name(device), "behind_s": behind}


def _without(app: App, owner: str) -> str:
    """What becomes of an app whose owner is silent."""
    if app.unproven:
        unread = "" if app.policy.keeps else "until it has read the new policy "
        return (
            f"it may still run there {unread}without proof, so nobody takes it over: "
            f"once it surely does not, `homeserver device remove {owner!r}` frees it"
        )
    if app.policy.failover == "automatic":
        return "another device takes it over"
    return f"`homeserver app move {app.name!r} DEVICE` takes it to another device"


def note(group: GroupAgent, app: App, said: AppBeat | None, *, stale: bool) -> str:
    """Why the app is not as desired, and what to do."""
    if app.desired is Desired.STOPPED:
        return ""
    owner = group.state.device_name(app.owner)
    if app.epoch == 0:
        return f"waiting for {group.state.device_name(app.placed)} to start it"
    if app.release is not None:
        return "changing hands"
    if not successors(group.state, app):
        return "no device of the group may run it: add one with the role host, or widen its trust policy"
    if set(app.failed) >= set(successors(group.state, app)):
        return "it does not get healthy on any device: look at `homeserver app logs`, then `homeserver app restart`"
    if said is None and group.online(app.owner):
        return f"{owner} takes it up"
    if app.move_to and app.move_to != app.owner and not group.online(app.move_to) and not stale:
        target = group.state.device_name(app.move_to)
        return (
            f"it is to move to {target}, which is silent; it runs on where it is. "
            f"`homeserver app move {app.name!r} {owner!r}` takes the wish back"
        )
    if stale or said is None:
        return f"{owner} is silent; {_without(app, owner)}"
    if said.detail:
        return said.detail
    if said.health != Health.HEALTHY.value:
        return f"{said.health} on {owner}"
    promise = max(120.0, 2 * app.policy.interval / 1000)
    if said.would_lose > promise * 1000:
        return f"no snapshot was stored for {said.would_lose // 1000} s: look at the store"
    return ""
