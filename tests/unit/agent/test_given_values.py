"""Values that a manifest asks for: given once, sealed, kept by later versions; and what is said before installing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.api.errors import InvalidInput
from fractal.testing.agents import Bed, bed, manifest, service

ASKS = manifest(service(word="${GREETING:?what to say}/${NAME:-nobody}"))


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        yield made


async def test_a_value_that_is_needed_and_not_given_is_asked_for(attic: Bed) -> None:
    with pytest.raises(InvalidInput, match=r"what to say; needs --set GREETING=VALUE"):
        await attic.call("Attic", "app.install", manifest=ASKS)


async def test_values_are_sealed_and_stay_given(attic: Bed) -> None:
    given = {"GREETING": "hail-canary", "NAME": "anna-canary"}
    plan = await attic.call("Attic", "app.install", manifest=ASKS, env=given, dry_run=True)
    step = plan["plan"][0]
    assert step["detail"]["secrets given"] == "GREETING, NAME"
    assert step["detail"]["keeps"].startswith("data")
    assert step["detail"]["can fail over"] == "yes"
    assert "canary" not in json.dumps(plan)

    assert (await attic.call("Attic", "app.install", manifest=ASKS, env=given, wait_s=40))["done"]
    app = attic.app("Attic")
    assert set(app.secrets) >= set(given)
    assert "canary" not in repr((app.spec, app.manifest))
    assert app.policy.failover == "automatic"
    assert await attic.starts("Attic") == ["hail-canary/anna-canary"]

    assert (await attic.call("Attic", "app.update", app="test", env={"GREETING": "bye-canary"}))["done"]
    await attic.until(lambda: not attic.job("Attic").manifest.outdated)
    assert (await attic.starts("Attic"))[-1] == "bye-canary/anna-canary"
    other = manifest(service(word="again/${GREETING:?what to say}"))
    assert (await attic.call("Attic", "app.update", app="test", manifest=other))["done"]
    assert (await attic.starts("Attic"))[-1] == "again/bye-canary"


async def test_what_came_along_with_a_manifest_is_in_the_plan(attic: Bed) -> None:
    with_file, came = manifest(service(more="    env_file: own.env\n")), {"own.env": "A=canary\n"}
    plan = await attic.call("Attic", "app.install", manifest=with_file, files=came, dry_run=True)
    assert plan["plan"][0]["detail"]["reads beside it"] == "own.env"
    assert "canary" not in json.dumps(plan)
    assert (await attic.call("Attic", "app.install", manifest=manifest(), wait_s=40))["done"]
    changes = {"app": "test", "manifest": with_file, "files": came, "dry_run": True}
    plan = await attic.call("Attic", "app.update", **changes)
    assert plan["plan"][0]["detail"]["reads beside it"] == "own.env"


async def test_what_this_runtime_has_no_place_for_is_refused_by_name(attic: Bed) -> None:
    reaching = ASKS.replace(
        "    stop_grace_period", "    volumes: [/srv/media:/media]\n    stop_grace_period"
    )
    allow = ["host-path:/srv/media"]
    with pytest.raises(InvalidInput, match="needs --allow host-path:/srv/media"):
        await attic.call("Attic", "app.install", manifest=reaching, env={"GREETING": "x"})
    with pytest.raises(InvalidInput, match="web: volumes: /srv/media of the device"):
        await attic.call("Attic", "app.install", manifest=reaching, env={"GREETING": "x"}, allow=allow)


async def test_an_install_names_the_file_and_what_is_without_effect(attic: Bed) -> None:
    with pytest.raises(InvalidInput, match=r"m/app\.yml:2: "):
        await attic.call("Attic", "app.install", manifest="name: x\nservises: {}\n", source="m/app.yml")
    for empty in ({"manifest": ""}, {"manifest": "", "app": "empty", "source": "empty.yml"}):
        with pytest.raises(InvalidInput, match=r":1: "):
            await attic.call("Attic", "app.install", **empty)
    idle = manifest(service()) + "networks: {inner: {ipam: {}}}\n"
    plan = await attic.call("Attic", "app.install", manifest=idle, dry_run=True)
    detail = plan["plan"][0]["detail"]
    assert detail["without effect here"].startswith("networks.inner.ipam: ")
    assert "0/tcp" not in detail.get("ports", "")


async def test_a_store_has_the_same_place_on_every_device(attic: Bed) -> None:
    wanted = {"name": "Other", "backend": "directory", "config": {"path": "shelf"}}
    with pytest.raises(InvalidInput, match="path=shelf: a store is the whole group's"):
        await attic.call("Attic", "store.add", **wanted)
    assert [s["name"] for s in (await attic.call("Attic", "store.list"))["stores"]] == ["Shelf"]
