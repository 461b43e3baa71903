"""Handlers that make a new app: from a manifest, or as a fork of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fractal.agent.agent import Agent
from fractal.agent.control.app import archived, healthy, job_of, moment_of, waiting_plan
from fractal.agent.control.app_build import Builds
from fractal.agent.control.catalog import contexts_beside, find_manifest, pack_context
from fractal.agent.control.dispatch import command
from fractal.agent.control.names import check_new_name, find_device, find_group, find_store
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan
from fractal.agent.control.policy import interval_ms
from fractal.agent.control.progress import Progress
from fractal.agent.control.waiting import DEFAULT, wait_until
from fractal.agent.fork_key import fork_key, new_key, sealed_secrets
from fractal.agent.group import GroupAgent
from fractal.agent.status import app_status
from fractal.api.app import AppSpec
from fractal.api.building import BUILT, ImageBuild
from fractal.api.context import Workers
from fractal.api.errors import Denied, InvalidInput, NotFound
from fractal.core.entries import AppInstalled, RouteAdded
from fractal.core.model import App, DeviceRole, Point, Policy, Source, StoreEntry
from fractal.core.placement import cannot_run, choose, may_trust
from fractal.manifest import Checked, Given, check, parse, secret_forms
from fractal.manifest.fields import normalised
from fractal.manifest.plain import from_plain_spec, to_plain_spec
from fractal.manifest.report import idle_line, lines
from fractal.manifest.ties import ties

SAID = 10.0
"""Seconds to wait for what this device says of itself."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a manifest comes to with what was given for it."""

    text: str
    spec: dict[str, object]
    """As plain values."""
    checked: Checked
    secrets: dict[str, str] = field(repr=False)
    """Values that are to be sealed."""
    source: str
    given: Given = field(repr=False)
    catalog: str = ""
    """Where it is from."""

    async def at(self, workers: Workers, host: str) -> Wanted:
        """The same for an app with a public name. Raises InvalidInput."""
        return await self._read(workers, replace(self.given, host=host))

    async def of(self, workers: Workers, built: Mapping[str, str]) -> Wanted:
        """The same with images that were built. Raises InvalidInput."""
        return await self._read(workers, replace(self.given, built=built))

    async def _read(self, workers: Workers, given: Given) -> Wanted:
        read = await workers.run(read_as_given, self.text, self.source, given, self.secrets)
        return replace(read, catalog=self.catalog)


async def read_manifest(
    agent: Agent, name: str, params: Params, earlier: App | None = None, group: GroupAgent | None = None
) -> Wanted:
    """The manifest and its specification. Raises InvalidInput with every problem in it, and all that it needs.

    What was given for the `earlier` version of an app, which is in `group`, stays given.
    """
    text, files = params.text("manifest"), params.table("files")
    source, catalog = params.text("source") or "the given manifest", ""
    if "manifest" in params:
        pass  # an empty one is a faulty manifest, not none
    elif earlier is not None and _given_only(params):
        text = earlier.manifest
    else:
        catalog, text, beside = await find_manifest(agent, name)
        files = {**beside, **files}
        source = f"{name} in catalog {catalog}"
    host = public_name(routes_of(group, earlier)) if group is not None and earlier is not None else ""
    given = replace(given_for(params, earlier, host), files=files)
    if earlier is None or text != earlier.manifest or catalog or "contexts" in params:
        # What was built for an earlier manifest is not what this one builds.
        images = {name: image for name, image in given.images.items() if not image.startswith(f"{BUILT}/")}
        given = replace(given, images=images, brings=await _brings(agent, name, text, catalog, params, given))
    read = await agent.workers.run(read_as_given, text, source, given, params.table("secrets"))
    return replace(read, catalog=catalog)


async def _brings(
    agent: Agent, name: str, text: str, catalog: str, params: Params, given: Given
) -> Callable[[ImageBuild], str] | None:
    """What `Given.brings` is of a manifest of a catalog, or one that came with contexts."""
    if "contexts" in params:
        known = params.table("contexts")
        return lambda build: "" if build.name in known else f"its context {build.context} was not sent along"
    if not catalog:
        return None
    checked = await agent.workers.run(check, text, "manifest", replace(given, brings=lambda _: ""))
    if not checked.builds:
        return None
    found = await contexts_beside(agent, catalog, name, [build for build, _ in checked.builds.values()])
    return lambda build: found.get(build.name, "its context is not in the catalog")


def builds_of(agent: Agent, group: GroupAgent, wanted: Wanted, params: Params) -> Builds:
    """What has to be built for a manifest. Raises InvalidInput."""
    return Builds(agent=agent, group=group, wanted=wanted.checked.builds, contexts=params.table("contexts"))


async def pack_contexts(builds: Builds, name: str, wanted: Wanted, params: Params) -> None:
    """Pack what a catalog has beside the manifest, unless nothing is done anyway: the last thing before it is. Raises InvalidInput."""
    if not wanted.catalog or params.dry_run:
        return
    found: dict[str, str] = {}
    try:
        for build, _ in builds.wanted.values():
            write = partial(pack_context, builds.agent, wanted.catalog, name, build)
            found[build.name] = await builds.agent.contexts.make(write)
    except BaseException:
        for context in found.values():
            builds.agent.contexts.discard(context)
        raise
    builds.contexts = found


def read_as_given(text: str, source: str, given: Given, secrets: Mapping[str, str]) -> Wanted:
    """Read it with what is given; where a loop runs, by its workers: it may take seconds. Raises InvalidInput."""
    spec = parse(text, source=source, given=given)
    checked = check(text, source, given)
    sealed = {*spec.given_secrets, *spec.generated_secrets}
    values = normalised(checked.fields, given.values)
    return Wanted(
        text,
        to_plain_spec(spec),
        checked,
        {**secrets, **{n: v for n, v in values.items() if n in sealed}},
        source,
        given,
    )


def routes_of(group: GroupAgent, app: App) -> tuple[str, ...]:
    """An app's public names, in order."""
    return tuple(
        sorted(
            name for name, route in group.state.routes.items() if route.app == app.id and not route.service
        )
    )


def public_name(routes: Sequence[str]) -> str:
    """The first of an app's routes that is a name and no port; "" if there is none."""
    return next((name for name in routes if ":" not in name), "")


def _given_only(params: Params) -> bool:
    return any(key in params for key in ("env", "allow", "images"))


def given_for(params: Params, earlier: App | None, host: str = "") -> Given:
    """What a manifest is read with."""
    old = from_plain_spec(earlier.spec) if earlier is not None else None
    secrets = params.table("secrets")
    return Given(
        values={**(old.values if old is not None else {}), **params.table("env"), **secrets},
        hidden=frozenset(secrets),
        sealed=frozenset(earlier.secrets) if earlier is not None else frozenset(),
        files=params.table("files"),
        images={
            **({s.name: s.image for s in old.services} if old is not None else {}),
            **params.table("images"),
        },
        allowed=frozenset((*(old.allowed if old is not None else ()), *params.items("allow"))),
        host=host,
    )


def new_secrets(agent: Agent, spec: Mapping[str, object]) -> dict[str, str]:
    """Values for the secrets that a specification (or nothing) wants made."""
    if not spec:
        return {}
    wanted = from_plain_spec(spec)
    forms = {name: wanted.secret_forms.get(name, secret_forms.DEFAULT) for name in wanted.generated_secrets}
    return {name: secret_forms.make(form, agent.entropy.bytes) for name, form in forms.items()}


def refuse_what_cannot_run(agent: Agent, group: GroupAgent, device: str, spec: Mapping[str, object]) -> None:
    """Raises InvalidInput naming every service and key that the runtime of a device of the group cannot honour.

    Known only of a runtime like this device's own; another one says so itself when it is to start the app.
    """
    known = group.state.devices.get(device)
    alike = device == group.me or (known is not None and known.runtime == agent.config.runtime.backend)
    refusals = agent.runtime.check(from_plain_spec(spec)) if alike else ()
    if refusals:
        lines = "\n".join(f"  {r.service}: {r.key}: {r.reason}" for r in refusals)
        runtime = agent.config.runtime.backend
        raise InvalidInput(f"runtime {runtime} cannot run this manifest:\n{lines}")


def placed_on(group: GroupAgent, spec: Mapping[str, object], policy: Policy, wanted: str) -> str:
    """Id of the device for a new app. Raises NotFound, Denied with the reason."""
    state = group.state
    member = state.devices[group.me].member
    trusted = may_trust(state, policy.trust, policy.devices, member)
    if not wanted:
        online = {d: group.online(d) for d in state.devices}
        found = choose(state, spec=spec, trusted_devices=trusted, online=online)
        if not found:
            raise NotFound("no device of the group can run it: add one with `homeserver group invite`")
        return found
    device = find_device(state, wanted)
    if DeviceRole.HOST not in device.roles:
        raise Denied(f"{device.name} does not run apps: it does not have the role host")
    if device.id not in trusted:
        raise Denied(f"{device.name} is not trusted with this app by its policy ({policy.trust})")
    if reason := cannot_run(spec, device):
        raise Denied(f"{device.name} cannot run it: {reason}")
    return device.id


def store_for(group: GroupAgent, wanted: str) -> StoreEntry:
    """The store of a new app. Raises NotFound when there is none, or several and none was named."""
    if wanted:
        return find_store(group.state, wanted)
    stores = [s for s in group.state.stores.values() if not s.removed]
    if len(stores) == 1:
        return stores[0]
    if not stores:
        raise NotFound(
            "the group has no store yet: add one with `homeserver store add NAME directory path=FOLDER`"
        )
    names = ", ".join(sorted(s.name for s in stores))
    raise NotFound(f"the group has {len(stores)} stores: say which with --store ({names})")


def default_routes(group: GroupAgent, name: str, spec: AppSpec) -> tuple[str, ...]:
    """The app's name below each gateway's address, if it has a web service."""
    if not spec.web_service:
        return ()
    label = "".join(c if c.isalnum() and c.isascii() else "-" for c in name.lower()).strip("-")
    taken = group.state.routes
    gateways = [d for d in group.state.devices.values() if DeviceRole.GATEWAY in d.roles and not d.removed]
    names = {f"{label}.{d.address}" for d in gateways if d.address and label}
    return tuple(sorted(n for n in names if n not in taken))


def installed(
    group: GroupAgent,
    entry: AppInstalled,
    routes: tuple[str, ...],
    more: Mapping[str, str] | None = None,
    builds: Builds | None = None,
) -> Action:
    """The action that appends the app, and its routes; the owner makes the certificates."""

    async def append(progress: Progress) -> None:
        made = entry
        if builds is not None and builds.wanted:
            made = replace(entry, spec=await builds.spec())
            if entry.placed != group.me:
                await builds.store(entry.store, entry.key, progress)
        await group.journal.append(made)
        if builds is not None:
            await builds.tell(entry.app)
        for route in routes:
            await group.journal.append(RouteAdded(name=route, app=entry.app))

    where = group.state.device_name(entry.placed)
    detail = {"app": entry.name, "device": where, "store": group.state.stores[entry.store].name}
    if routes:
        detail["routes"] = ", ".join(routes)
    return Action(f"install {entry.name} on {where}", {**detail, **(more or {})}, append)


@command("app.install")
async def app_install(agent: Agent, params: Params, progress: Progress) -> Plan:
    group = agent.groups[find_group(agent, params).journal.state.id]
    wanted = params.text("app")
    if not wanted and "manifest" not in params:
        raise InvalidInput("name an app of a catalog, or give the path of a manifest (`./app.yml`)")
    manifest = await read_manifest(agent, wanted, params)
    spec = manifest.spec
    parsed = from_plain_spec(spec)
    taken = [a.name for a in group.state.apps.values() if not a.removed]
    name = check_new_name("app", params.text("name") or wanted or parsed.name, taken)
    policy = Policy(interval=interval_ms(params)) if "interval_s" in params else Policy()
    if ties(parsed):
        policy = replace(policy, failover="manual")
    builds = builds_of(agent, group, manifest, params)
    if parsed.architectures or builds.wanted:  # a device says what it is a moment after it joined
        await wait_until(group, SAID, lambda: bool(group.state.devices[group.me].arch), progress, str)
    # What is built here runs on machines like this one.
    fitting = {**spec, "architectures": list(parsed.architectures or builds.arch)}
    placed = placed_on(group, fitting, policy, params.text("device"))
    refuse_what_cannot_run(agent, group, placed, spec)
    store = store_for(group, params.text("store"))
    routes = params.items("routes") or default_routes(group, name, parsed)
    if host := public_name(routes):
        manifest = await manifest.at(agent.workers, host)
    key = new_key(agent.entropy, group.state, policy, group.state.devices[group.me].member)
    secrets = {**new_secrets(agent, spec), **manifest.secrets}
    entry = AppInstalled(
        app=agent.entropy.bytes(8).hex(),
        name=name,
        manifest=manifest.text,
        spec=manifest.spec,
        store=store.id,
        placed=placed,
        key=key,
        policy=policy,
        secrets=sealed_secrets(agent.entropy, key.public, secrets),
    )
    builds.read = partial(manifest.of, agent.workers)
    await pack_contexts(builds, wanted, manifest, params)
    told = {**lines(manifest.checked), **idle_line(manifest.checked)}
    actions = [*builds.actions(), installed(group, entry, routes, told, builds)]
    return _made(group, entry, actions, routes, params, {})


@command("app.fork")
async def app_fork(agent: Agent, params: Params, _: Progress) -> Plan:
    group, origin = archived(agent, params)
    moment = await moment_of(group, origin, params.text("at"))
    taken = [a.name for a in group.state.apps.values() if not a.removed]
    name = check_new_name("app", params.text("name"), taken)
    placed = placed_on(group, origin.spec, origin.policy, params.text("device"))
    text = f"{moment.point.epoch}.{moment.point.number}"
    routes = default_routes(group, name, job_of(group, origin).spec)
    made = await fork_key(group, origin)
    entry = AppInstalled(
        app=agent.entropy.bytes(8).hex(),
        name=name,
        manifest=origin.manifest,
        spec=origin.spec,
        store=origin.store,
        placed=placed,
        key=made.key,
        policy=origin.policy,
        secrets=made.secrets,
        source=Source(app=origin.id, point=Point(epoch=moment.point.epoch, number=moment.point.number)),
        mirrors=tuple(s for s in origin.mirrors if not group.state.stores[s].removed),
    )
    action = installed(group, entry, routes)
    return _made(group, entry, [action], routes, params, {"moment": text})


def _made(
    group: GroupAgent,
    entry: AppInstalled,
    actions: list[Action],
    routes: tuple[str, ...],
    params: Params,
    more: dict[str, object],
) -> Plan:
    def result() -> dict[str, object]:
        app = group.state.apps.get(entry.app)
        health = app_status(group, app)["health"] if app else "unknown"
        fields: dict[str, object] = {
            "name": entry.name,
            "device": group.state.device_name(entry.placed),
            **more,
        }
        return fields if more else {**fields, "health": health, "routes": list(routes)}

    wait = params.number("wait_s", DEFAULT)
    return waiting_plan(group, entry.app, wait, actions, lambda: healthy(group, entry.app), result)
