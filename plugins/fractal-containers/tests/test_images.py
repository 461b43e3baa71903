"""An image saved on one engine loads on the other, under the digest that was recorded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import docker
import pytest
from fractal_containers.testing import TestEngine, opened
from fractal_containers.testing_images import busybox_image

from fractal.api.app import AppRun, AppSpec, Mount, ServiceSpec
from fractal.api.errors import NotFound
from fractal.api.runtime import Health
from fractal.testing.runtime_parts import service_where

NAME = "fractal-test/crossing"
WAYS = [("docker", "podman"), ("podman", "docker"), ("docker", "docker"), ("podman", "podman")]


@pytest.fixture(scope="module")
def engines(docker_engine: TestEngine, podman_engine: TestEngine) -> dict[str, TestEngine]:
    return {"docker": docker_engine, "podman": podman_engine}


@contextlib.contextmanager
def forgotten(engine: TestEngine, *names: str) -> Any:
    """These images are not there, neither before nor after."""
    client = engine.api()

    def forget() -> None:
        for name in names:
            with contextlib.suppress(docker.errors.APIError):
                client.remove_image(name, force=True)

    try:
        forget()
        yield client
    finally:
        forget()
        client.close()


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1 << 16):
        yield data[at : at + (1 << 16)]


@pytest.mark.parametrize(("source", "target"), WAYS, ids=lambda name: name)
async def test_an_image_keeps_its_digest_from_engine_to_engine(
    engines: dict[str, TestEngine], source: str, target: str, tmp_path: Path
) -> None:
    """It is pinned by digest, saved, loaded where it never was, and runs; back again it is still the same."""
    marker = f"{source}-{target}"
    name = f"localhost/{NAME}:{marker}"
    first = engines[source]
    with forgotten(first, name), first.network():
        busybox_image(first, name, marker)
        (tmp_path / "a").mkdir()
        async with opened(first, tmp_path / "a") as runtime:
            recorded = await runtime.image_digest(name)
            machine = await runtime.image_architecture(name)
            archive = b"".join([chunk async for chunk in runtime.save_image(name)])
            assert await runtime.image_digest(recorded) == recorded  # it is a name by itself
    assert recorded == config_digest(archive)
    second = engines[target]
    with forgotten(second, name, recorded), second.network():
        (tmp_path / "b").mkdir()
        async with opened(second, tmp_path / "b") as runtime:
            with pytest.raises(NotFound):
                await runtime.image_digest(recorded)
            assert await runtime.load_image(name, chunks(archive)) == recorded
            assert await runtime.image_digest(name) == recorded
            assert await runtime.image_architecture(name) == machine
            again = b"".join([chunk async for chunk in runtime.save_image(recorded)])
            assert config_digest(again) == recorded
            run = app(tmp_path, name, recorded)
            await runtime.prepare(run)
            await runtime.start(run)
            said = await runtime.exec(run.key, "main", ["cat", "/etc/passwd"])
            assert marker.encode() in said.output
            # An empty volume begins as in the image, with its owner, on either engine.
            assert (run.volume_root / "site").stat().st_uid == 1000


def config_digest(archive: bytes) -> str:
    """Computed here, from the archive alone: of the configuration that its manifest names."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        (image,) = json.load(manifest)
        config = tar.extractfile(image["Config"])
        assert config is not None
        assert not image["RepoTags"]  # loading it moves nobody's names
        return f"sha256:{hashlib.sha256(config.read()).hexdigest()}"


def app(folder: Path, image: str, digest: str) -> AppRun:
    root = folder / "root"
    root.mkdir()
    mounts = (Mount(volume="site", target="/srv/site"),)
    main = ServiceSpec(name="main", image=image, argv=("sleep", "1000"), mounts=mounts, stop_grace=1.0)
    spec = AppSpec(name="crossing", services=(main,), volumes=("site",))
    return AppRun(group="group", app="app", epoch=1, spec=spec, volume_root=root, images={image: digest})


@pytest.mark.parametrize("target", ["docker", "podman"])
async def test_an_images_own_check_counts_on_either_engine(
    engines: dict[str, TestEngine], target: str, tmp_path: Path
) -> None:
    """Made by Docker, whose archives keep it. Where the engine does not run it, the runtime does."""
    name = f"localhost/{NAME}:checked"
    first, second = engines["docker"], engines[target]
    with forgotten(first, name), first.network():
        check = 'HEALTHCHECK --interval=1s --retries=1 CMD ["test", "-e", "/srv/site/well"]'
        busybox_image(first, name, "checked", [check])
        (tmp_path / "a").mkdir()
        async with opened(first, tmp_path / "a") as runtime:
            archive = b"".join([chunk async for chunk in runtime.save_image(name)])
    with forgotten(second, name), second.network():
        (tmp_path / "b").mkdir()
        async with opened(second, tmp_path / "b") as runtime:
            digest = await runtime.load_image(name, chunks(archive))
            run = app(tmp_path, name, digest)
            await runtime.prepare(run)
            await runtime.start(run)
            await service_where(runtime, run, "main", lambda s: s.health is Health.UNHEALTHY)
            (run.volume_root / "site" / "well").touch()
            await service_where(runtime, run, "main", lambda s: s.health is Health.HEALTHY)
