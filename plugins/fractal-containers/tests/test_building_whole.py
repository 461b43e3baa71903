"""A file that brings its context, from the command line to an app that runs: here, and on another device that builds nothing."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from click.testing import CliRunner
from fractal_containers.testing import TestEngine
from fractal_containers.testing_images import BUSYBOX

from fractal.agent.control.handlers import COMMANDS
from fractal.agent.control.server import open_control
from fractal.agent.main import CONTROL
from fractal.api.building import BUILT
from fractal.api.errors import InvalidInput, NotFound
from fractal.api.runtime import Health
from fractal.cli.main import cli
from fractal.testing.agents import Bed, bed

MANIFEST = """\
name: test
volumes: {data: }
services:
  web:
    build:
      context: ./web
      args: {WORD: "${WORD:-hello}"}
    stop_grace_period: 1s
    volumes: [data:/data]
"""
WORKER = """\
  worker:
    image: ada/worker:1
    build: ./web
    stop_grace_period: 1s
"""
DOCKERFILE = f"""
FROM {BUSYBOX}
ARG WORD=worker
COPY page /page
RUN echo "$WORD" >> /page
CMD ["sleep", "1000"]
"""
PI, NAS = "Raspberry Pi", "NAS"


def configured(engine: TestEngine, folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "config.toml").write_text(
        f'schema = 1\n[device]\nname = "{name}"\nstate_dir = "{folder}/{name}/state"\n'
        f'runtime_dir = "{folder}/{name}/run"\n'
        f'[runtime]\nbackend = "{engine.name}"\n[runtime.{engine.name}]\nsocket = "{engine.socket}"\n'
        f'[coordination.sqlite]\npath = "{folder}/log.sqlite"\n[transport.direct]\nhttps_port = 0\n'
    )


async def typed(made: Bed, name: str, *words: str) -> dict[str, Any]:
    """What the command line prints, as whoever is at the device would type it."""
    agent = made.agents[name]
    argv = ["--config", str(made.folder / name / "config.toml"), *words, "--json"]
    socket = agent.config.device.runtime_dir / CONTROL
    async with open_control(socket, agent, COMMANDS, contexts=agent.contexts):
        shown = await asyncio.to_thread(CliRunner().invoke, cli, argv)
    assert shown.exit_code == 0, shown.output
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


async def page(made: Bed, name: str, service: str = "web") -> list[str]:
    wanted = {"app": "test", "service": service, "argv": ["cat", "/page"]}
    return str((await made.call(name, "app.exec", **wanted))["output"]).split()


def running(made: Bed, name: str) -> bool:
    run = made.job(name).health()
    return run is not None and run.health is Health.HEALTHY


def forget_built(engine: TestEngine) -> None:
    with closing(engine.api()) as client:
        for image in client.images():
            for name in image["RepoTags"] or ():
                if name.startswith(f"{BUILT}/"):
                    with suppress(docker.errors.APIError):
                        client.remove_image(name, force=True)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "web").mkdir(parents=True)
    (folder / "compose.yaml").write_text(MANIFEST)
    (folder / "web/Dockerfile").write_text(DOCKERFILE)
    (folder / "web/page").write_text("one\n")
    return folder


@pytest.mark.timeout(300)
async def test_an_app_is_built_installed_updated_and_taken_over(
    docker_engine: TestEngine, tmp_path: Path, app: Path
) -> None:
    engine = docker_engine
    for name in (PI, NAS):
        configured(engine, tmp_path, name)
    (app / "compose.yaml").write_text(MANIFEST + WORKER)
    file = str(app / "compose.yaml")
    with engine.network():
        async with bed(tmp_path) as made:
            await made.start(PI)
            await made.found(PI)
            await made.start(NAS)
            await made.join(NAS, by=PI)
            try:
                plan = await typed(made, PI, "app", "install", file, "--device", PI, "--dry-run")
                steps = [step["what"] for step in plan["plan"]]
                assert steps[:2] == ["build web on this device", "build ada/worker:1 on this device"]
                assert not list(made.agents[PI].folder("contexts").iterdir())

                await typed(made, PI, "app", "install", file, "--device", PI, "--as", "test", "--wait", "100")
                assert await page(made, PI) == ["one", "hello"]
                assert await page(made, PI, "worker") == ["one", "worker"]
                images = {s["name"]: s["image"] for s in made.app(PI).spec["services"]}  # type: ignore[attr-defined]
                assert all(image.startswith(f"{BUILT}/{name}:") for name, image in images.items())
                assert not list(made.agents[PI].folder("contexts").iterdir())
                # The store has them without another word, as any other image.
                await made.until(lambda: set(made.app(PI).pinned_images) == set(images.values()))

                (app / "web/page").write_text("two\n")
                update = ("app", "update", "test", "--manifest", file, "--set", "WORD=again", "--wait", "100")
                await typed(made, PI, *update)
                assert await page(made, PI) == ["two", "again"]
                # Nothing is beside the manifest then: what was built stays.
                await made.call(PI, "app.update", app="test", env={"OTHER": "x"}, wait_s=60)
                assert await page(made, PI) == ["two", "again"]

                # By another device than the one that is to run it: built there, and had from the store.
                (app / "web/page").write_text("three\n")
                await typed(made, NAS, *update[:-1], "0")
                await made.until(lambda: made.job(PI).manifest.told() and not made.job(PI).manifest.outdated)
                assert await page(made, PI) == ["three", "again"]
            finally:
                with suppress(NotFound):
                    await made.call(PI, "app.remove", app="test", wait_s=60)
                await made.until(lambda: not made.at(PI).jobs)
                forget_built(engine)


async def test_a_new_app_is_built_for_a_device_that_is_away(
    podman_engine: TestEngine, tmp_path: Path, app: Path
) -> None:
    engine = podman_engine
    for name in (PI, NAS):
        configured(engine, tmp_path, name)
    file = str(app / "compose.yaml")
    with engine.network():
        async with bed(tmp_path) as made:
            await made.start(PI)
            await made.found(PI)
            await made.start(NAS)
            await made.join(NAS, by=PI)
            device = made.agents[NAS].keys.id
            await made.until(lambda: made.at(PI).state.devices[device].arch)
            await made.stop(NAS)
            try:
                await typed(made, PI, "app", "install", file, "--device", NAS, "--as", "test", "--wait", "0")
                assert len(made.app(PI).pinned_images) == 1
                forget_built(engine)
                await made.start(NAS)
                await made.until(lambda: made.at(NAS).jobs and running(made, NAS), limit=120)
                assert await page(made, NAS) == ["one", "hello"]
            finally:
                with suppress(NotFound):
                    await made.call(NAS, "app.remove", app="test", wait_s=60)
                await made.until(lambda: not made.at(NAS).jobs)
                forget_built(engine)


async def test_a_catalog_brings_contexts_too(docker_engine: TestEngine, tmp_path: Path, app: Path) -> None:
    configured(docker_engine, tmp_path, PI)
    shelf = tmp_path / "catalog"
    shelf.mkdir()
    app.rename(shelf / "wiki")
    (shelf / "bare.yml").write_text(MANIFEST)
    with docker_engine.network():
        async with bed(tmp_path) as made:
            await made.start(PI)
            await made.found(PI)
            await made.call(PI, "catalog.add", name="ours", path=str(shelf))
            try:
                await made.call(PI, "app.install", app="wiki", name="test", wait_s=100)
                assert await page(made, PI) == ["one", "hello"]
                with pytest.raises(InvalidInput, match=r"no folder of its own.*--image web=IMAGE"):
                    await made.call(PI, "app.install", app="bare")
                (shelf / "wiki/web/leak").symlink_to("/etc/passwd")
                with pytest.raises(InvalidInput, match="leads out"):
                    await made.call(PI, "app.install", app="wiki", name="second")
                assert not list(made.agents[PI].folder("contexts").iterdir())
            finally:
                await made.call(PI, "app.remove", app="test", wait_s=60)
                await made.until(lambda: not made.at(PI).jobs)
                forget_built(docker_engine)
