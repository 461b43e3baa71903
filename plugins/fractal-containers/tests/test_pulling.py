"""Images from a registry: by tag and pinned by digest, once, and with an error that names what is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import docker
import pytest
from fractal_containers.testing import RememberingRuntime, TestEngine, opened
from fractal_containers.testing_images import busybox_image
from fractal_podman.testing import PodmanTestEngine
from podman.api.client import APIClient

from fractal.api.app import AppRun, AppSpec, ServiceSpec
from fractal.api.errors import BackendError

pytestmark = pytest.mark.usefixtures("inside")
REGISTRY = "127.0.0.1:5000"
SETTINGS = """
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: ROOT}}
http: {addr: "127.0.0.1:5000"}
"""


@pytest.fixture
def registry(inside: None, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Debian's, on the loopback of the engine's own network."""
    if shutil.which("docker-registry") is None:
        reason = "docker-registry: not installed (Debian: docker-registry)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    settings = tmp_path / "registry.yml"
    settings.write_text(SETTINGS.replace("ROOT", str(tmp_path / "registry")))
    with (tmp_path / "registry.log").open("ab") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def push(engine: TestEngine, name: str) -> None:
    """Push an image, as soon as the registry listens, and forget it here."""
    end = time.monotonic() + 60
    while trouble := _push(engine, name):
        assert time.monotonic() < end, trouble
        time.sleep(0.2)
    with closing(engine.api()) as client:
        client.remove_image(name, force=True)


def _push(engine: TestEngine, name: str) -> str:
    """What was wrong, or ""."""
    if isinstance(engine, PodmanTestEngine):
        with APIClient(base_url=f"unix://{engine.socket}", version="4.0.0", timeout=60) as podman:
            query = {"destination": name, "tlsVerify": "false"}
            answer = podman.post(f"/images/{quote(name, safe='')}/push", params=query)
            said, status = str(answer.text), int(answer.status_code)
            return "" if status == 200 and "error" not in said else f"{status}: {said}"
    with closing(engine.api()) as client:
        said = str(client.push(name))
        return said if "error" in said else ""


def registered(name: str) -> str:
    """The digest by which the registry knows an image: not that of its configuration."""
    repository, _, tag = name.removeprefix(f"{REGISTRY}/").rpartition(":")
    request = Request(f"http://{REGISTRY}/v2/{repository}/manifests/{tag}", method="HEAD")
    kinds = ("vnd.docker.distribution.manifest.v2", "vnd.oci.image.manifest.v1")
    request.add_header("Accept", ", ".join(f"application/{kind}+json" for kind in kinds))
    with urlopen(request, timeout=20) as answer:
        return str(answer.headers["Docker-Content-Digest"])


@pytest.fixture
async def runtime(engine: TestEngine, tmp_path: Path, inside: None) -> AsyncIterator[RememberingRuntime]:
    async with opened(engine, tmp_path) as made:
        yield made


def run_of(folder: Path, image: str) -> AppRun:
    main = ServiceSpec(name="main", image=image, argv=("sleep", "1000"), stop_grace=1.0)
    return AppRun(group="g", app="a", epoch=1, spec=AppSpec(name="x", services=(main,)), volume_root=folder)


async def test_an_image_is_pulled_once(
    engine: TestEngine, runtime: RememberingRuntime, registry: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    name = f"{REGISTRY}/ada/notes:2"
    recorded = busybox_image(engine, name, "pulled")
    push(engine, name)
    pinned = f"{REGISTRY}/ada/notes@{registered(name)}"
    try:
        for image in (name, pinned):
            await runtime.prepare(run_of(tmp_path, image))
            assert await runtime.image_digest(image) == f"sha256:{recorded.removeprefix('sha256:')}"
        with pytest.raises(BackendError, match="ada/nothing"):
            await runtime.prepare(run_of(tmp_path, f"{REGISTRY}/ada/nothing:1"))
        registry.kill()
        registry.wait()
        run = run_of(tmp_path, pinned)  # what is here needs no registry
        await runtime.prepare(run)
        await runtime.start(run)
    finally:
        await runtime.kill("g.a.1")
        await runtime.remove("g.a.1")
        with closing(engine.api()) as client:
            for image in (name, pinned):
                with suppress(docker.errors.APIError):
                    client.remove_image(image, force=True)
