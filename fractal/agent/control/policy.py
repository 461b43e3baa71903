"""`app policy`: how an app is treated, what it keeps, and where copies of its archive are."""

from __future__ import annotations

from dataclasses import replace

from fractal.agent.agent import Agent
from fractal.agent.control.app import named, policy_plain
from fractal.agent.control.dispatch import command
from fractal.agent.control.names import find_device, find_store
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.progress import Progress
from fractal.agent.group import GroupAgent
from fractal.api.errors import InvalidInput
from fractal.core.entries import AppChanged
from fractal.core.fold_apps import MAX_KEPT, MAX_MIRRORS, MAX_NUMBER, MAX_TICKS
from fractal.core.lease import owes_word, renews
from fractal.core.model import App, GroupState, Policy


def changed_policy(group: GroupAgent, policy: Policy, params: Params) -> Policy:
    """The policy with what the parameters change. Raises InvalidInput."""
    if "failover" in params:
        policy = replace(policy, failover=_one_of("failover", params.text("failover"), "automatic", "manual"))
    if "on_isolation" in params:
        policy = replace(
            policy, on_isolation=_one_of("on_isolation", params.text("on_isolation"), "freeze", "keep")
        )
    if "trust" in params:
        policy = replace(policy, trust=_one_of("trust", params.text("trust"), "group", "member", "list"))
    if "interval_s" in params:
        policy = replace(policy, interval=interval_ms(params))
    if "standby" in params:
        if not 0 <= params.integer("standby") <= 16:
            raise InvalidInput("standby must be between 0 and 16")
        policy = replace(policy, standby=params.integer("standby"))
    if "devices" in params:
        policy = replace(
            policy, devices=tuple(find_device(group.state, d).id for d in params.items("devices"))
        )
    policy = _changed_keep(policy, params)
    if policy.on_isolation == "keep" and policy.failover != "manual":
        raise InvalidInput(
            "on_isolation `keep` goes only with failover `manual`: otherwise two copies could run"
        )
    if policy.trust == "list" and not policy.devices:
        raise InvalidInput("trust `list` needs devices: name them with --devices")
    return policy


def changed_mirrors(state: GroupState, app: App, params: Params) -> tuple[str, ...]:
    """Ids of the app's mirrors with what the parameters change. Raises InvalidInput, UnknownName."""
    if "mirrors" not in params:
        return app.mirrors
    mirrors = tuple(dict.fromkeys(find_store(state, name).id for name in params.items("mirrors")))
    if len(mirrors) > MAX_MIRRORS:
        raise InvalidInput(f"an app has at most {MAX_MIRRORS} mirrors: everything is sent once more to each")
    if app.store in mirrors:
        name = state.stores[app.store].name
        raise InvalidInput(
            f"{name} is the store of {app.name} itself: a mirror is another one; see `homeserver store list`"
        )
    return mirrors


def _changed_keep(policy: Policy, params: Params) -> Policy:
    """The policy with what the parameters change of what stays. Raises InvalidInput."""
    changes: dict[str, int] = {}
    if "keep_all_s" in params:
        if not 0 <= params.number("keep_all_s") <= MAX_TICKS / 1000:
            raise InvalidInput(
                "all snapshots can be kept for at most a week: keep hourly or daily ones longer"
            )
        changes["keep_ticks"] = int(params.number("keep_all_s") * 1000)
    for name in ("keep_hourly", "keep_daily", "keep_weekly"):
        if name in params:
            if not 0 <= params.integer(name) <= MAX_KEPT:
                raise InvalidInput(f"{name} must be between 0 and {MAX_KEPT}")
            changes[name] = params.integer(name)
    if "keep_bytes" in params:
        if not 0 <= params.integer("keep_bytes") <= MAX_NUMBER:
            raise InvalidInput(f"keep_bytes must be between 0 (no limit) and {MAX_NUMBER}")
        changes["keep_bytes"] = params.integer("keep_bytes")
    return replace(policy, **changes)  # type: ignore[arg-type]  # dataclasses.replace checks names itself


def interval_ms(params: Params) -> int:
    """The snapshot interval in milliseconds. Raises InvalidInput outside 10 s to 1 h."""
    if not 10 <= params.number("interval_s") <= 3600:
        raise InvalidInput("the snapshot interval must be between 10 s and 1 h")
    return int(params.number("interval_s") * 1000)


def _one_of(name: str, value: str, *allowed: str) -> str:
    if value not in allowed:
        raise InvalidInput(f"{name} must be {' or '.join(allowed)}, not {value[:40]!r}")
    return value


def _what_follows(group: GroupAgent, app: App, policy: Policy) -> str:
    """What else a change of what happens where the app's device is cut off comes to."""
    owner = group.state.device_name(app.owner)
    if renews(replace(app, policy=policy)):
        return f"; {owner} stops it and starts it in a new epoch, as only such a one can be kept"
    if owes_word(replace(app, policy=policy), app.owner):
        return f"; nobody takes it over before {owner} has read that, or is removed"
    return ""


@command("app.policy")
async def app_policy(agent: Agent, params: Params, _: Progress) -> Plan:
    group, app = named(agent, params)
    policy = changed_policy(group, app.policy, params)
    mirrors = changed_mirrors(group.state, app, params)

    async def change(_: Progress) -> None:
        await group.journal.append(AppChanged(app=app.id, policy=policy))

    async def mirror(_: Progress) -> None:
        # An entry of its own: an agent that knows no mirrors folds the policy alike, whatever is said about mirrors.
        await group.journal.append(AppChanged(app=app.id, mirrors=mirrors))

    what = f"change the policy of {app.name}{_what_follows(group, app, policy)}"
    actions = [Action(what, {}, change)] if policy != app.policy else []
    if mirrors != app.mirrors:
        names = ", ".join(group.state.stores[store].name for store in mirrors)
        words = f"mirror the archive of {app.name} in {names}" if names else f"mirror {app.name} nowhere"
        actions.append(Action(words, {"app": app.name}, mirror))
    return plan(*actions, result={"app": app.id, "policy": policy_plain(group, policy, mirrors)})
