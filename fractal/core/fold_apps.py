"""The fold of entries about stores, apps, routes and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from fractal.api.errors import Denied
from fractal.core.entries import (
    AppChanged,
    AppInstalled,
    AppKeyAdded,
    AppMoved,
    AppRemoved,
    AppRestored,
    AppRestoreWished,
    Checkpointed,
    Pinned,
    RouteAdded,
    RouteRemoved,
    StoreAdded,
    StoreRemoved,
)
from fractal.core.fold_people import require_new_generation
from fractal.core.fold_rules import (
    KEY_SIZE,
    Turn,
    live_app,
    live_host,
    require,
    require_id,
    require_name,
    require_shallow,
    with_app,
)
from fractal.core.model import (
    App,
    AppKey,
    Checkpoint,
    Desired,
    GroupState,
    Point,
    Policy,
    RestoreWish,
    Route,
    StoreEntry,
)
from fractal.core.placement import trusted

MIN_INTERVAL = 1_000
MAX_INTERVAL = 86_400_000
MAX_STANDBY = 16
MAX_TICKS = 7 * 86_400_000
MAX_KEPT = 1_000
MAX_NUMBER = 2**48
MAX_PINS = 1_000
MAX_APPS = 100
"""Of a member, at a time: what one member writes must not outgrow everybody's memory, nor all runs that a guard holds."""
MAX_NEEDLESS_KEYS = 100
"""Generations of an app's key beyond which there is a new one only after a removal: hosts open all of them."""
MAX_ROUTES = 100
"""Of an app."""
MAX_MIRRORS = 3
"""Of an app: its owner's uplink sends everything once more to each."""
CERTIFICATE = "tls."
"""How the names of an app's secrets begin that hold certificates of its routes."""

_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z"
)
_PORT_NAME = re.compile(r":[1-9][0-9]{0,4}\Z")


# --- stores ----------------------------------------------------------------------------------------------------------


def store_added(turn: Turn, entry: StoreAdded) -> GroupState:
    """A store for everybody; by admins."""
    turn.require_admin()
    require_id(entry.id, "store")
    require(entry.id not in turn.state.stores, f"store {entry.id} exists")
    require_name(entry.name, "store name")
    require_name(entry.backend, "store backend")
    store = StoreEntry(id=entry.id, name=entry.name, backend=entry.backend, config=entry.config)
    return replace(turn.state, stores={**turn.state.stores, store.id: store})


def store_removed(turn: Turn, entry: StoreRemoved) -> GroupState:
    """By admins, when no app's archive is there.

    Apps that name it as a mirror lose that one: agents that know no mirrors remove it, and all must have the same stores.
    The command refuses before.
    """
    turn.require_admin()
    store = _live_store(turn.state, entry.id)
    users = sorted(a.name for a in turn.state.apps.values() if a.store == store.id and not a.removed)
    require(not users, f"store {store.name} is used by {', '.join(users)}")
    apps = {
        i: replace(a, mirrors=tuple(m for m in a.mirrors if m != store.id)) if store.id in a.mirrors else a
        for i, a in turn.state.apps.items()
    }
    stores = {**turn.state.stores, store.id: replace(store, removed=True)}
    return replace(turn.state, stores=stores, apps=apps)


def _live_store(state: GroupState, store: str) -> StoreEntry:
    found = state.stores.get(store)
    if found is None or found.removed:
        raise Denied(f"store {store or '(none)'} is not in the group")
    return found


# --- apps ------------------------------------------------------------------------------------------------------------


def app_installed(turn: Turn, entry: AppInstalled) -> GroupState:
    """Any member may install, on any host that the policy trusts."""
    state = turn.state
    require_id(entry.app, "app")
    require(entry.app not in state.apps, f"app {entry.app} exists")
    mine = sum(a.owner_member == turn.member.id and not a.removed for a in state.apps.values())
    require(mine < MAX_APPS, f"{turn.member.name} has {MAX_APPS} apps: remove some")
    _require_new_app_name(state, entry.app, entry.name)
    require_shallow(entry.spec, "the app's specification")
    _live_store(state, entry.store)
    live_host(state, entry.placed)
    _require_policy(entry.policy)
    if entry.source is not None:
        require(entry.source.app in state.apps, f"the app {entry.source.app} to fork is unknown")
        require(turn.manages(state.apps[entry.source.app]), "only who manages an app may fork it")
        _require_point(entry.source.point)
    app = App(
        id=entry.app,
        name=entry.name,
        manifest=entry.manifest,
        spec=entry.spec,
        store=entry.store,
        mirrors=_mirrors(state, entry.store, entry.mirrors),
        owner_member=turn.member.id,
        policy=entry.policy,
        placed=entry.placed,
        source=entry.source,
        secrets=entry.secrets,
    )
    require_new_generation((), entry.key, _may_trust(state, app))
    require(entry.placed in entry.key.sealed, "the app's key is not sealed to the device it is placed on")
    return with_app(state, replace(app, keys=(entry.key,)))


def app_changed(turn: Turn, entry: AppChanged) -> GroupState:
    """New manifest, policy, name, wish or secrets; by who manages it.

    The device that owns the app, whoever's it is, may bring its certificates, which it serves, and seal its secrets anew
    after the app's key was replaced.
    """
    app = live_app(turn.state, entry.app)
    if not (app.owner == turn.device.id and _owners_secrets(app, entry)):
        turn.managed(entry.app)
    if entry.name is not None:
        _require_new_app_name(turn.state, entry.app, entry.name)
    if entry.spec is not None:
        require_shallow(entry.spec, "the app's specification")
    if entry.policy is not None:
        _require_policy(entry.policy)
    mirrors_alone = entry == AppChanged(app=entry.app, mirrors=entry.mirrors)
    if entry.mirrors is not None and mirrors_alone:
        _require_mirrors(turn.state, app.store, entry.mirrors)
    news = {
        name: value
        for name in ("name", "manifest", "spec", "policy", "desired", "secrets")
        if (value := getattr(entry, name)) is not None
    }
    if entry.mirrors is not None:
        news["mirrors"] = _mirrors(turn.state, app.store, entry.mirrors)
    if entry.secrets is not None:
        news["secrets_generation"] = _secrets_generation(app, entry.secrets)
    if app.unproven and entry.policy is not None and app.policy.keeps and not entry.policy.keeps:
        news["unproven"] = turn.state.position  # until the owner says that it has read this
    if entry.desired is Desired.RUNNING or entry.spec is not None:
        news["failed"] = ()  # asked anew: every device may try it once more
    return with_app(turn.state, replace(app, **news))


def _require_new_app_name(state: GroupState, app: str, name: str) -> None:
    """Names are how people choose what they stop, remove or type secrets into: nobody may pass for another's app."""
    require_name(name, "app name")
    folded = name.casefold()
    taken = any(a.name.casefold() == folded and not a.removed and a.id != app for a in state.apps.values())
    require(not taken, f"there is an app {name!r} already")


def _owners_secrets(app: App, entry: AppChanged) -> bool:
    """Whether only certificates come or go, or, once after the app's key was replaced, all secrets are sealed anew.

    What is sealed cannot be compared here: an owner could put other values in. It could spoil the app's data as well.
    """
    if entry.secrets is None or replace(entry, secrets=None) != AppChanged(app=entry.app):
        return False
    changed = dict(entry.secrets.items() ^ app.secrets.items())
    if all(name.startswith(CERTIFICATE) for name in changed):
        return True
    names = {name for name in (*entry.secrets, *app.secrets) if not name.startswith(CERTIFICATE)}
    due = app.secrets_generation < app.keys[-1].generation
    return due and all(name in app.secrets and name in entry.secrets for name in names)


def _secrets_generation(app: App, secrets: Mapping[str, bytes]) -> int:
    """The newest generation if every value but certificates is another one than before."""
    same = any(
        secrets.get(name) == value for name, value in app.secrets.items() if not name.startswith(CERTIFICATE)
    )
    return app.secrets_generation if same else app.keys[-1].generation


def app_key_added(turn: Turn, entry: AppKeyAdded) -> GroupState:
    """A key for more devices, or a new generation.

    By who manages the app. A device that the app already trusts may widen any generation to devices that the policy
    trusts (it alone can: it holds the secret), and may begin a new one when a removed device holds the newest.
    """
    app = live_app(turn.state, entry.app)
    newest = app.keys[-1]
    allowed = _may_trust(turn.state, app)
    manages, holds = turn.manages(app), trusted(app, turn.device.id)
    require(manages or holds, "only who manages the app, or a device that it trusts, may pass its key on")
    known = next((n for n, key in enumerate(app.keys) if key.generation == entry.key.generation), None)
    if known is not None:
        widened = _widened(app.keys[known], entry.key, allowed)
        return with_app(turn.state, replace(app, keys=(*app.keys[:known], widened, *app.keys[known + 1 :])))
    stale = any(d.removed for i, d in turn.state.devices.items() if i in newest.sealed)
    wanted = manages and len(app.keys) < MAX_NEEDLESS_KEYS
    require(wanted or stale, "a new key is needed only when a removed device holds the newest")
    require_new_generation(app.keys, entry.key, allowed)
    return with_app(turn.state, replace(app, keys=(*app.keys, entry.key)))


def _widened(known: AppKey, key: AppKey, allowed: set[str]) -> AppKey:
    require(key.public == known.public, "the public key of this generation is another")
    added = {device: sealed for device, sealed in key.sealed.items() if device not in known.sealed}
    require(bool(added), "the key is sealed to all of these devices already")
    strangers = sorted(set(added) - allowed)
    require(not strangers, f"the app's key is sealed to devices that are not trusted: {', '.join(strangers)}")
    return replace(known, sealed={**known.sealed, **added})


def _may_trust(state: GroupState, app: App) -> set[str]:
    """Devices that may get the app's key, whatever they do for the group at present."""
    live = [d for d in state.devices.values() if not d.removed]
    if app.policy.trust == "member":
        return {d.id for d in live if d.member == app.owner_member}
    if app.policy.trust == "list":
        return {d.id for d in live if d.id in app.policy.devices}
    return {d.id for d in live}


def app_moved(turn: Turn, entry: AppMoved) -> GroupState:
    """By who manages it, or by the device that runs it and wants to be rid of it."""
    app = live_app(turn.state, entry.app)
    require(
        turn.manages(app) or app.owner == turn.device.id, "only who manages the app or runs it may move it"
    )
    if entry.to:
        live_host(turn.state, entry.to)
        require(trusted(app, entry.to), f"device {entry.to} does not hold the app's key")
    return with_app(turn.state, replace(app, move_to="" if entry.to == app.owner else entry.to))


def app_restore_wished(turn: Turn, entry: AppRestoreWished) -> GroupState:
    """By who manages it; a later wish replaces an open one."""
    app = turn.managed(entry.app)
    require_id(entry.id, "restore wish")
    require(entry.id != app.restored, f"restore wish {entry.id} was carried out already")
    _require_point(entry.point)
    return with_app(turn.state, replace(app, restore=RestoreWish(id=entry.id, point=entry.point), failed=()))


def app_restored(turn: Turn, entry: AppRestored) -> GroupState:
    """By the app's present owner, for the wish that stands."""
    app = live_app(turn.state, entry.app)
    require(app.owner == turn.device.id, "only the device that owns the app may say so")
    require(app.restore is not None and app.restore.id == entry.id, f"restore wish {entry.id} is not open")
    return with_app(turn.state, replace(app, restore=None, restored=entry.id))


def app_removed(turn: Turn, entry: AppRemoved) -> GroupState:
    """By who manages it; its routes go with it."""
    app = turn.managed(entry.app)
    routes = {name: route for name, route in turn.state.routes.items() if route.app != app.id}
    return with_app(replace(turn.state, routes=routes), replace(app, removed=True, move_to="", restore=None))


def pinned(turn: Turn, entry: Pinned) -> GroupState:
    """By who manages it. Pinning twice is pinning once."""
    app = turn.managed(entry.app)
    _require_point(entry.point)
    pins = app.pins | {entry.point} if entry.keep else app.pins - {entry.point}
    require(len(pins) <= MAX_PINS, f"{MAX_PINS} snapshots are pinned: unpin some")
    return with_app(turn.state, replace(app, pins=pins))


def _require_policy(policy: Policy) -> None:
    require(policy.failover in ("automatic", "manual"), "failover is automatic or manual")
    require(policy.on_isolation in ("freeze", "keep"), "on_isolation is freeze or keep")
    require(
        policy.on_isolation == "freeze" or policy.failover == "manual",
        "on_isolation keep goes only with manual failover: two devices would write at once",
    )
    require(policy.trust in ("group", "member", "list"), "trust is group, member or list")
    require(MIN_INTERVAL <= policy.interval <= MAX_INTERVAL, "interval is between a second and a day")
    require(0 <= policy.standby <= MAX_STANDBY, f"standby is 0 to {MAX_STANDBY}")
    require(0 <= policy.keep_ticks <= MAX_TICKS, "all snapshots are kept for at most a week")
    for count in (policy.keep_hourly, policy.keep_daily, policy.keep_weekly):
        require(0 <= count <= MAX_KEPT, f"kept snapshots of hours, days and weeks are 0 to {MAX_KEPT}")
    require(0 <= policy.keep_bytes <= MAX_NUMBER, "the bytes to keep are out of range")


def _mirrors(state: GroupState, arbiter: str, named: tuple[str, ...]) -> tuple[str, ...]:
    """Those that may be. Wrong ones spoil nothing else of their entry, which agents that know no mirrors carry out."""
    live = {i for i, store in state.stores.items() if not store.removed} - {arbiter}
    return tuple(dict.fromkeys(m for m in named if m in live))[:MAX_MIRRORS]


def _require_mirrors(state: GroupState, arbiter: str, mirrors: tuple[str, ...]) -> None:
    require(len(mirrors) <= MAX_MIRRORS, f"an app has at most {MAX_MIRRORS} mirrors")
    require(len(set(mirrors)) == len(mirrors), "a mirror is named twice")
    require(arbiter not in mirrors, "the app's own store is no mirror of itself")
    for store in mirrors:
        _live_store(state, store)


def _require_point(point: Point) -> None:
    good = 0 <= point.epoch <= MAX_NUMBER and 0 <= point.number <= MAX_NUMBER
    require(good, "a point's numbers are out of range")


# --- routes and checkpoints ------------------------------------------------------------------------------------------


def route_added(turn: Turn, entry: RouteAdded) -> GroupState:
    """By who manages the app; the first claim of a name stands."""
    app = turn.managed(entry.app)
    if entry.kind == "https":
        require(_DNS_NAME.match(entry.name) is not None, f"{entry.name!r} is not a lower-case DNS name")
    else:
        require(entry.kind in ("tcp", "udp"), "a route's kind is https, tcp or udp")
        port = _PORT_NAME.match(entry.name) is not None and int(entry.name[1:]) <= 65_535
        require(port, "the name of a TCP or UDP route is :PORT")
    mine = sum(r.app == app.id for r in turn.state.routes.values())
    require(mine < MAX_ROUTES or entry.name in turn.state.routes, f"{app.name} has {MAX_ROUTES} routes")
    standing = turn.state.routes.get(entry.name)
    require(standing is None or standing.app == app.id, f"route {entry.name} belongs to another app")
    route = Route(name=entry.name, app=app.id, kind=entry.kind, service=entry.service, port=entry.port)
    return replace(turn.state, routes={**turn.state.routes, route.name: route})


def route_removed(turn: Turn, entry: RouteRemoved) -> GroupState:
    """By who manages the app that it leads to."""
    route = turn.state.routes.get(entry.name)
    if route is None:
        raise Denied(f"route {entry.name} does not exist")
    turn.managed(route.app)
    routes = {name: r for name, r in turn.state.routes.items() if name != entry.name}
    return replace(turn.state, routes=routes)


def checkpointed(turn: Turn, entry: Checkpointed) -> GroupState:
    """By admins' devices, as those who join will believe it; each newer than the last."""
    turn.require_admin()
    state = turn.state
    _live_store(state, entry.store)
    last = state.checkpoint.position if state.checkpoint else 0
    require(last < entry.position < state.position, "the checkpoint is not newer than the last")
    require(len(entry.state_hash) == KEY_SIZE, "the state's hash is not 32 bytes")
    made = Checkpoint(position=entry.position, state_hash=entry.state_hash, key=entry.key, by=turn.device.id)
    return replace(state, checkpoint=made)
