"""Catalogs that were added to a device: on offer at once and after restarts, and no way to run or read anything else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.agent.control.names import UnknownName
from fractal.api.errors import Conflict, Denied, InvalidInput
from fractal.testing.agents import Bed, bed, manifest, service


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        yield made


async def names(attic: Bed, **params: object) -> list[str]:
    found = await attic.call("Attic", "catalog.list", **params)
    assert found["failed"] == []
    return [f"{item['name']} ({item['catalog']})" for item in found["items"]]


async def test_a_checkout_is_on_offer_at_once_and_after_a_restart(attic: Bed, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "greeter").mkdir(parents=True)
    text = manifest(service(), title="Says hello").replace(
        "    environment:", "    env_file: [more.env]\n    environment:"
    )
    (checkout / "greeter" / "compose.yaml").write_text(text)
    (checkout / "greeter" / "more.env").write_text("MORE=said\n")
    plan = await attic.call("Attic", "catalog.add", name="ours", path=str(checkout), dry_run=True)
    assert "nothing in it is run" in plan["plan"][0]["what"]
    assert not [n for n in await names(attic) if "ours" in n]

    await attic.call("Attic", "catalog.add", name="ours", path=str(checkout))
    assert await names(attic, search="HELLO says") == ["greeter (ours)"]
    assert "vaultwarden (folder)" in await names(attic)
    await attic.stop("Attic")
    await attic.start("Attic")
    assert await names(attic, catalog="ours") == ["greeter (ours)"]

    await attic.until(lambda: attic.agents["Attic"].groups)
    installed = await attic.call("Attic", "app.install", app="greeter", name="test", wait_s=40)
    assert installed["done"]
    (spec,) = attic.job("Attic").spec.services
    assert spec.env["MORE"] == "said"

    await attic.call("Attic", "catalog.remove", name="ours")
    assert not [n for n in await names(attic) if "ours" in n]


async def test_what_is_no_catalog_is_refused_by_name(attic: Bed, tmp_path: Path) -> None:
    for name, path in (
        ("Ours", tmp_path),
        ("../x", tmp_path),
        ("ours", "relative"),
        ("ours", tmp_path / "absent"),
    ):
        with pytest.raises(InvalidInput):
            await attic.call("Attic", "catalog.add", name=name, path=str(path))
    with pytest.raises(Conflict):
        await attic.call("Attic", "catalog.add", name="folder", path=str(tmp_path))
    with pytest.raises(Denied, match="configuration"):
        await attic.call("Attic", "catalog.remove", name="folder")
    with pytest.raises(UnknownName):
        await attic.call("Attic", "catalog.remove", name="ours")


async def test_a_catalog_whose_folder_went_away_is_told_and_hides_no_other(
    attic: Bed, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    await attic.call("Attic", "catalog.add", name="ours", path=str(gone))
    gone.rmdir()
    found = await attic.call("Attic", "catalog.list")
    assert len(found["failed"]) == 1 and "ours" in found["failed"][0]
    assert "radicale" in {item["name"] for item in found["items"]}
