"""Folders that no snapshot holds; forms, generated secrets and public names on a whole agent."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fractal.agent.control.names import UnknownName
from fractal.api.errors import InvalidInput
from fractal.testing.agents import Bed, bed, manifest, service

CODE = """
import http.server, os, pathlib
data, cache = pathlib.Path(os.environ["DATA"]), pathlib.Path(os.environ["CACHE"])
(data / "starts").open("a").write(f"{len(list(cache.iterdir()))}-cached\\n")
(cache / "thumb").write_text("x")
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
CACHING = (
    manifest(
        service(code=CODE).replace('DATA: "{data.data}"', 'DATA: "{data.data}", CACHE: "{data.cache}"')
    ).replace("data: [data]", "data: [data, cache]")
    + "  data: {ignore: [cache]}\n"
)
FORM = (
    manifest(service(word="${HOMESERVER_URL:-nowhere}/${WHO}/${TOKEN}/${COLOUR}"))
    + """
  fields:
    WHO: {title: Your name}
    TOKEN: {type: secret, generate: "hex:12"}
    COLOUR: {type: choice, options: [red, blue], default: red}
"""
)


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        await made.start("Attic")
        await made.found("Attic")
        yield made


async def test_what_is_ignored_stays_over_restarts_and_is_in_no_snapshot(attic: Bed) -> None:
    await attic.install("Attic", CACHING)
    job = attic.job("Attic")
    root = await job.data.root()
    cache = job.data.ignored_root() / "cache"
    assert (cache / "thumb").exists()
    assert not (root / "cache").exists()
    before = await attic.call("Attic", "snapshot.create", app="test", wait_s=40)
    assert before["done"]
    assert (await attic.call("Attic", "app.restart", app="test", wait_s=40))["done"]
    assert await attic.starts("Attic") == ["0-cached", "1-cached"]

    # After a restore nothing of it is left: what is in the moment cannot count on it.
    assert (await attic.call("Attic", "app.restore", app="test", at=before["moment"], wait_s=40))["done"]
    await attic.until((cache / "thumb").exists)
    assert (await attic.starts("Attic"))[-1] == "0-cached"

    assert (await attic.call("Attic", "app.remove", app="test", wait_s=40))["done"]
    await attic.until(lambda: not cache.parent.exists())


async def test_a_link_in_place_of_an_ignored_folder_is_not_followed(attic: Bed, tmp_path: Path) -> None:
    await attic.install("Attic", CACHING)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "film").write_text("x")
    (attic.job("Attic").data.ignored_root() / "cache" / "planted").symlink_to(precious)
    assert (await attic.call("Attic", "app.remove", app="test", wait_s=40))["done"]
    await attic.until(lambda: not attic.at("Attic").jobs)
    assert (precious / "film").exists()


async def test_a_form_is_filled_kept_and_changed(attic: Bed) -> None:
    with pytest.raises(InvalidInput, match="WHO: Your name; needs --set WHO=VALUE"):
        await attic.call("Attic", "app.install", manifest=FORM)
    with pytest.raises(InvalidInput, match="COLOUR: expected one of red, blue"):
        await attic.call("Attic", "app.install", manifest=FORM, env={"WHO": "anna", "COLOUR": "green"})
    routes = ["wiki.example.org"]
    plan = await attic.call(
        "Attic", "app.install", manifest=FORM, env={"WHO": "anna-canary"}, routes=routes, dry_run=True
    )
    assert plan["plan"][0]["detail"]["secrets made"] == "TOKEN"
    assert "canary" not in json.dumps(plan)

    done = await attic.call(
        "Attic", "app.install", manifest=FORM, env={"WHO": "anna"}, routes=routes, wait_s=40
    )
    assert done["done"]
    token = (await attic.call("Attic", "app.secret", app="test", secret="TOKEN"))["value"]
    assert re.fullmatch("[0-9a-f]{12}", token)
    assert await attic.starts("Attic") == [f"https://wiki.example.org/anna/{token}/red"]
    assert token not in repr(attic.app("Attic").spec)
    with pytest.raises(UnknownName):
        await attic.call("Attic", "app.secret", app="test", secret="PASSWORD")

    # What was given and what was made stay; what was a default is the new manifest's to say.
    changed = FORM.replace("default: red", "default: blue")
    assert (await attic.call("Attic", "app.update", app="test", manifest=changed, wait_s=40))["done"]
    assert (await attic.starts("Attic"))[-1] == f"https://wiki.example.org/anna/{token}/blue"
    own = {"TOKEN": "given-by-hand"}
    assert (await attic.call("Attic", "app.update", app="test", env=own, wait_s=40))["done"]
    assert (await attic.starts("Attic"))[-1] == "https://wiki.example.org/anna/given-by-hand/blue"
