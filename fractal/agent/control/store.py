"""`store`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import check_new_name, find_group, find_store
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.agent.control.store_check import failed, try_store
from fractal.api.errors import BackendError, Conflict, InvalidInput, NotInstalled
from fractal.config.convert import field_types, optional_inner
from fractal.core.entries import StoreAdded, StoreRemoved
from fractal.core.model import GroupState, StoreEntry

HIDDEN = "***"
_SECRET_WORDS = ("secret", "password", "token", "key")


@command("store.list")
async def list_stores(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """All stores, without what must not be shown."""
    state = find_group(agent, params).journal.state
    stores = sorted((s for s in state.stores.values() if not s.removed), key=lambda s: s.name.casefold())
    return {
        "stores": [
            {
                "id": store.id,
                "name": store.name,
                "backend": store.backend,
                "config": _shown_config(agent, store),
                "apps": _apps_of(state, store.id),
                "mirrors": _mirrored(state, store.id),
            }
            for store in stores
        ]
    }


@command("store.add")
async def add_store(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Open and try the store from here, then tell the group."""
    group = find_group(agent, params)
    taken = [s.name for s in group.journal.state.stores.values() if not s.removed]
    name = check_new_name("store", params.text("name"), taken)
    backend = params.text("backend")
    agent.plugins.store(backend)
    _refuse_relative(agent, backend, params.table("config"))
    entry = StoreEntry(
        id=agent.entropy.bytes(10).hex(), name=name, backend=backend, config=params.table("config")
    )
    found: dict[str, Any] = {}

    async def attempt(progress: Progress) -> None:
        async with agent.open_store(entry) as store:
            found.update(fencing=store.fencing, weakness=store.weakness)
            problems = failed(await try_store(store, agent.entropy, progress))
        if problems:
            raise BackendError(f"store {name!r} does not do what a store must: {'; '.join(problems)}")

    added = StoreAdded(id=entry.id, name=name, backend=backend, config=entry.config)
    return plan(
        Action("Try the store from this device", {"backend": backend}, attempt),
        Action(f"Add store {name} to the group", {}, lambda _: group.journal.append(added)),
        result=lambda: {"store": entry.id, "name": name, **found},
    )


@command("store.check")
async def check_store(agent: ControlAgent, params: Params, progress: Progress) -> dict[str, Any]:
    """What `store.add` tries, on a store of the group. Writes one small object and deletes it."""
    entry = find_store(find_group(agent, params).journal.state, params.text("store"))
    begun = agent.clock.boottime()
    async with agent.open_store(entry) as store:
        steps = await try_store(store, agent.entropy, progress)
        return {
            "store": entry.id,
            "fencing": store.fencing,
            "weakness": store.weakness,
            "staleness_s": store.staleness,
            "seconds": round(agent.clock.boottime() - begun, 3),
            "steps": steps,
        }


@command("store.remove")
async def remove_store(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Only one that no app uses."""
    group = find_group(agent, params)
    state = group.journal.state
    store = find_store(state, params.text("store"))
    if users := _apps_of(state, store.id):
        raise Conflict(
            f"store {store.name!r} holds the archives of {', '.join(users)}: remove these apps first"
        )
    if users := _mirrored(state, store.id):
        raise Conflict(
            f"store {store.name!r} is a mirror of {', '.join(users)}: name the others, or none, by "
            f"`homeserver app policy {users[0]!r} --mirror ...` or `--no-mirrors` first"
        )
    return plan(
        Action(
            f"Forget store {store.name}",
            {"store": store.id},
            lambda _: group.journal.append(StoreRemoved(id=store.id)),
        ),
        result={"store": store.id},
    )


def _refuse_relative(agent: ControlAgent, backend: str, config: Mapping[str, str]) -> None:
    """Raises InvalidInput for a path that every device of the group would resolve to another place."""
    types = field_types(agent.plugins.store(backend).config)
    for name, value in config.items():
        kind = types[name][1] if name in types else None
        if Path not in (kind, optional_inner(kind)) or value.startswith(("/", "~")):
            continue
        raise InvalidInput(
            f"{name}={value}: a store is the whole group's, and each device would look below its own configuration's folder: "
            f"give the whole path"
        )


def _apps_of(state: GroupState, store: str) -> list[str]:
    return sorted(a.name for a in state.apps.values() if a.store == store and not a.removed)


def _mirrored(state: GroupState, store: str) -> list[str]:
    return sorted(a.name for a in state.apps.values() if store in a.mirrors and not a.removed)


def _shown_config(agent: ControlAgent, store: StoreEntry) -> Mapping[str, str]:
    """The settings; hidden where the backend keeps a field out of its repr, or where its name says so."""
    try:
        hidden = {f.name for f in fields(agent.plugins.store(store.backend).config) if not f.repr}
    except NotInstalled:
        hidden = set()
    return {
        name: HIDDEN if name in hidden or any(w in name.casefold() for w in _SECRET_WORDS) else value
        for name, value in store.config.items()
    }
