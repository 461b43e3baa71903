"""Manifests are read aside from the agent's loop: one that takes long holds up no beat and no proof."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fractal.agent.control import app_install, catalog
from fractal.api.errors import InvalidInput
from fractal.testing.agents import PATIENCE, Bed, bed, manifest, service


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        yield made


def held(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[str]:
    """Have each call of a function wait for something that only the loop does; the calls that came through."""
    loop, real, done = asyncio.get_running_loop(), getattr(module, name), list[str]()

    def waiting(*arguments: Any, **named: Any) -> Any:
        turn = threading.Event()
        loop.call_soon_threadsafe(turn.set)
        assert turn.wait(PATIENCE), f"the loop stood still while {name} ran"
        done.append(name)
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, waiting)
    return done


@pytest.mark.parametrize("name", ["parse", "check"])
async def test_the_loop_goes_on_while_a_manifest_is_read(
    attic: Bed, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """For a plan, for an install, which reads it again with its public name, and for an update."""
    done = held(monkeypatch, app_install, name)
    await attic.call("Attic", "app.install", manifest=manifest(), dry_run=True)
    assert len(done) == 1
    named = {"manifest": manifest(), "routes": ["test.example.org"]}
    assert (await attic.call("Attic", "app.install", **named, wait_s=PATIENCE))["done"]
    assert len(done) == 3
    other = manifest(service(word="two"))
    assert (await attic.call("Attic", "app.update", app="test", manifest=other, wait_s=PATIENCE))["done"]
    assert len(done) == 4
    assert attic.app("Attic").manifest == other


async def test_the_loop_goes_on_while_what_catalogs_offer_is_read(
    attic: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, described = held(monkeypatch, catalog, "named"), held(monkeypatch, catalog, "describe")
    checked = held(monkeypatch, app_install, "check")
    await attic.call("Attic", "app.install", app="radicale", dry_run=True)
    assert (len(named), len(checked)) == (1, 2)
    (attic.folder / "menu").mkdir()
    (attic.folder / "menu" / "ours.yml").write_text(manifest())
    await attic.call("Attic", "catalog.add", name="ours", path=str(attic.folder / "menu"))
    found = await attic.call("Attic", "catalog.list", catalog="ours")
    assert [item["title"] for item in found["items"]] == ["Test"]
    assert described


async def test_what_is_wrong_with_a_manifest_comes_through_as_it_is(attic: Bed) -> None:
    with pytest.raises(InvalidInput, match=r"m/app\.yml:2: servises: not supported"):
        await attic.call(
            "Attic", "app.install", manifest="name: x\nservises: {}\n", source="m/app.yml", dry_run=True
        )
