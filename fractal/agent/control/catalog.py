"""`catalog`: what can be installed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import UnknownName, resolve
from fractal.agent.control.params import Params
from fractal.agent.control.plan import Action, Plan, plan
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.api.building import ImageBuild
from fractal.api.catalog import Catalog, CatalogItem, SupportsContexts, SupportsFiles
from fractal.api.errors import BackendError, Conflict, Denied, InvalidInput, NotFound
from fractal.manifest.compose import describe
from fractal.manifest.env_files import named

TIMEOUT = 60.0
ADDED = "catalogs/"
"""Notes: name -> folder."""
FOLDER = "folder"
"""The backend of catalogs that are added."""
NAME = re.compile(r"[a-z0-9_-]{1,40}")


@asynccontextmanager
async def open_catalog(agent: ControlAgent, name: str) -> AsyncIterator[Catalog]:
    """One of the configured catalogs by its name. Raises BackendError."""
    backend, settings = catalogs(agent)[name]
    async with agent.plugins.catalog(backend).open(agent.context("catalog", name), settings) as catalog:
        yield catalog


def configured_catalogs(agent: ControlAgent) -> dict[str, Any]:
    """Name -> chosen backend and settings, in the order of the configuration. One without a name is called as its backend."""
    return {chosen.name or chosen.backend: chosen for chosen in agent.config.catalogs}


def catalogs(agent: ControlAgent) -> dict[str, tuple[str, Any]]:
    """Name -> backend and settings: first those of the configuration, then folders that were added."""
    found = {name: (chosen.backend, chosen.settings) for name, chosen in configured_catalogs(agent).items()}
    for key, path in agent.notes.scan(ADDED):
        settings = agent.plugins.catalog(FOLDER).config(path=Path(path.decode()))
        found.setdefault(key.removeprefix(ADDED), (FOLDER, settings))
    return found


async def find_manifest(agent: ControlAgent, app: str, only: str = "") -> tuple[str, str, Mapping[str, str]]:
    """Catalog, text of an app's manifest, and files that it names; the first catalog that has it wins. Raises UnknownName,
    BackendError.

    A catalog that cannot be read is an error only if no other one has the app.
    """
    offered: set[str] = set()
    problems: list[str] = []
    for name in _chosen(agent, only):
        try:
            async with asyncio.timeout(TIMEOUT), open_catalog(agent, name) as catalog:
                try:
                    text = await catalog.manifest(app)
                    if not isinstance(catalog, SupportsFiles):
                        return name, text, {}
                    return name, text, await catalog.files(app, await agent.workers.run(named, text))
                except NotFound:
                    offered |= {item.name for item in await catalog.items()}
        except TimeoutError:
            problems.append(f"catalog {name!r} did not answer within {TIMEOUT:.0f} s")
        except BackendError as error:
            problems.append(f"catalog {name!r}: {error}")
    if problems:
        raise BackendError("; ".join(problems), retryable=True)
    resolve("app in a catalog", app, {name: name for name in offered})
    raise UnknownName(f"no app {app[:80]!r} in a catalog", sorted(offered))


async def contexts_beside(
    agent: ControlAgent, catalog: str, app: str, builds: Iterable[ImageBuild]
) -> dict[str, str]:
    """Builds of an app's manifest -> why the catalog cannot give their contexts, or "". Raises BackendError."""
    async with asyncio.timeout(TIMEOUT), open_catalog(agent, catalog) as opened:
        if not isinstance(opened, SupportsContexts):
            return {}
        return {build.name: await opened.why_not(app, build) for build in builds}


async def pack_context(
    agent: ControlAgent, catalog: str, app: str, build: ImageBuild, into: IO[bytes]
) -> None:
    """Write the context of a build, as `SupportsContexts.pack`."""
    async with open_catalog(agent, catalog) as opened:
        assert isinstance(opened, SupportsContexts)
        await opened.pack(app, build, into)


@command("catalog.list")
async def list_catalog(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """All items of all catalogs, or of one; or those that hold all words."""
    words = params.text("search").lower().split()
    items: list[dict[str, Any]] = []
    problems: list[str] = []
    for name in _chosen(agent, params.text("catalog")):
        try:
            async with asyncio.timeout(TIMEOUT), open_catalog(agent, name) as catalog:
                told = [
                    {**await _told(agent, catalog, item), "catalog": name} for item in await catalog.items()
                ]
                items += [item for item in told if _fits(item, words)]
        except TimeoutError:
            problems.append(f"{name}: no answer within {TIMEOUT:.0f} s")
        except BackendError as error:
            problems.append(f"{name}: {error}")
    return {"items": sorted(items, key=lambda i: i["name"]), "failed": problems}


def _fits(item: Mapping[str, str], words: list[str]) -> bool:
    text = " ".join((item["name"], item["title"], item["summary"])).lower()
    return all(word in text for word in words)


async def _told(agent: ControlAgent, catalog: Catalog, item: CatalogItem) -> dict[str, str]:
    """What the catalog says of an app, and where it says nothing, what its manifest says."""
    told = {"name": item.name, "title": item.title, "summary": item.summary, "version": item.version}
    if item.summary and item.version:
        return told
    try:
        manifest = await agent.workers.run(describe, await catalog.manifest(item.name), item.name)
    except (BackendError, InvalidInput) as error:
        return {**told, "summary": told["summary"] or f"cannot be read: {str(error).splitlines()[0]}"}
    return {key: value or manifest.get(key, "") for key, value in told.items()}


@command("catalog.show")
async def show_manifest(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """One manifest."""
    app = params.text("app")
    catalog, manifest, _files = await find_manifest(agent, app, params.text("catalog"))
    return {"name": app, "catalog": catalog, "manifest": manifest}


@command("catalog.add")
async def add_catalog(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """A folder of manifests, from now on and after restarts. Raises InvalidInput, Conflict."""
    name, path = params.text("name"), Path(params.text("path"))
    if not NAME.fullmatch(name):
        raise InvalidInput(f"{name[:80]!r} cannot be a catalog's name: 1-40 characters of [a-z0-9_-]")
    if name in catalogs(agent):
        raise Conflict(f"a catalog is called {name!r} already")
    if not path.is_absolute() or not await agent.context("catalog", name).workers.run(path.is_dir):
        raise InvalidInput(f"{path} is no folder that this device's agent can see")
    what = (
        f"offer the manifests in {path} as the catalog {name}; its files are read, and nothing in it is run"
    )

    async def add(_: Progress) -> None:
        agent.notes.write({ADDED + name: str(path).encode()})

    return plan(Action(what, {"catalog": name, "path": str(path)}, add), result={"name": name})


@command("catalog.remove")
async def remove_catalog(agent: ControlAgent, params: Params, _: Progress) -> Plan:
    """Apps that were installed from it stay. Raises UnknownName, Denied for one of the configuration."""
    names = catalogs(agent)
    name = resolve("catalog", params.text("name"), {name: name for name in names})
    if name in configured_catalogs(agent):
        raise Denied(
            f"the catalog {name} is of this device's configuration: take it out of {agent.config.path}"
        )

    async def remove(_: Progress) -> None:
        agent.notes.write({ADDED + name: None})

    return plan(
        Action(f"no longer offer the catalog {name}", {"catalog": name}, remove), result={"name": name}
    )


def _chosen(agent: ControlAgent, only: str) -> list[str]:
    names = catalogs(agent)
    return [resolve("catalog", only, {name: name for name in names})] if only else list(names)
