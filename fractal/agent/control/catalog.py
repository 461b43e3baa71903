"""`catalog`: what can be installed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fractal.agent.control.dispatch import command
from fractal.agent.control.names import UnknownName, resolve
from fractal.agent.control.params import Params
from fractal.agent.control.ports import ControlAgent
from fractal.agent.control.progress import Progress
from fractal.api.catalog import Catalog, CatalogItem
from fractal.api.errors import BackendError, InvalidInput, NotFound
from fractal.manifest.compose import describe

TIMEOUT = 60.0


@asynccontextmanager
async def open_catalog(agent: ControlAgent, name: str) -> AsyncIterator[Catalog]:
    """One of the configured catalogs by its name. Raises BackendError."""
    chosen = configured_catalogs(agent)[name]
    backend = agent.plugins.catalog(chosen.backend)
    async with backend.open(agent.context("catalog", name), chosen.settings) as catalog:
        yield catalog


def configured_catalogs(agent: ControlAgent) -> dict[str, Any]:
    """Name -> chosen backend and settings, in the order of the configuration. One without a name is called as its backend."""
    return {chosen.name or chosen.backend: chosen for chosen in agent.config.catalogs}


async def find_manifest(agent: ControlAgent, app: str, only: str = "") -> tuple[str, str]:
    """Catalog and text of an app's manifest; the first catalog that has it wins. Raises UnknownName, BackendError.

    A catalog that cannot be read is an error only if no other one has the app.
    """
    offered: set[str] = set()
    problems: list[str] = []
    for name in _chosen(agent, only):
        try:
            async with asyncio.timeout(TIMEOUT), open_catalog(agent, name) as catalog:
                try:
                    return name, await catalog.manifest(app)
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


@command("catalog.list")
async def list_catalog(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """All items of all catalogs, or of one."""
    items: list[dict[str, Any]] = []
    problems: list[str] = []
    for name in _chosen(agent, params.text("catalog")):
        try:
            async with asyncio.timeout(TIMEOUT), open_catalog(agent, name) as catalog:
                items += [{**await _told(catalog, item), "catalog": name} for item in await catalog.items()]
        except TimeoutError:
            problems.append(f"{name}: no answer within {TIMEOUT:.0f} s")
        except BackendError as error:
            problems.append(f"{name}: {error}")
    return {"items": sorted(items, key=lambda i: i["name"]), "failed": problems}


async def _told(catalog: Catalog, item: CatalogItem) -> dict[str, str]:
    """What the catalog says of an app, and where it says nothing, what its manifest says."""
    told = {"name": item.name, "title": item.title, "summary": item.summary, "version": item.version}
    if item.summary and item.version:
        return told
    try:
        manifest = describe(await catalog.manifest(item.name), item.name)
    except (BackendError, InvalidInput) as error:
        return {**told, "summary": told["summary"] or f"cannot be read: {str(error).splitlines()[0]}"}
    return {key: value or manifest.get(key, "") for key, value in told.items()}


@command("catalog.show")
async def show_manifest(agent: ControlAgent, params: Params, _: Progress) -> dict[str, Any]:
    """One manifest."""
    app = params.text("app")
    catalog, manifest = await find_manifest(agent, app, params.text("catalog"))
    return {"name": app, "catalog": catalog, "manifest": manifest}


def _chosen(agent: ControlAgent, only: str) -> list[str]:
    names = configured_catalogs(agent)
    return [resolve("catalog", only, {name: name for name in names})] if only else list(names)
