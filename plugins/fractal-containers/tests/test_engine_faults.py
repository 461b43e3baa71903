"""An engine that is too old, or whose disk is full: what is said, and that all goes on once it is mended."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fractal_docker.testing
import fractal_podman.testing
import pytest
from fractal_containers.advice import advised
from fractal_containers.testing import RememberingRuntime, TestEngine, again, opened
from fractal_containers.testing_images import BUSYBOX, busybox_image
from fractal_docker.testing import DockerTestEngine
from fractal_podman.testing import PodmanTestEngine

from fractal.api.app import AppRun, AppSpec, ServiceSpec
from fractal.api.errors import BackendError
from fractal.testing.runtime_parts import seen

OLD = b'{"message":"client version 1.41 is too new. Maximum supported API version is 1.39"}'
SIZE = 160 << 20
MISSING = {
    DockerTestEngine: fractal_docker.testing.missing,
    PodmanTestEngine: fractal_podman.testing.missing,
}


async def test_an_engine_that_is_too_old_says_so(tmp_path: Path) -> None:
    """Nobody packages one any more: this answers as Docker 18.09 does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(OLD)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + OLD)
        await writer.drain()
        writer.close()

    old = DockerTestEngine(tmp_path / "old")
    old.folder.mkdir()
    async with await asyncio.start_unix_server(answer, str(old.socket)), again(old, tmp_path) as runtime:
        for asking in (runtime.observe(), anext(runtime.save_image(BUSYBOX))):
            with pytest.raises(BackendError) as caught:
                await asking
            text = str(caught.value)
            assert f"docker at {old.socket}" in text and "too new" in text
            assert text.endswith("Docker 20.10 or later is needed") and not caught.value.retryable


@pytest.fixture(params=[DockerTestEngine, PodmanTestEngine], ids=["docker", "podman"])
def small(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Iterator[TestEngine]:
    """An engine on a small disk of its own."""
    if reason := MISSING[request.param]():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    # A socket's path has room for 107 bytes, and Docker's own ones are deep below.
    disk, folder = tmp_path / "disk", tmp_path_factory.mktemp("e")
    with disk.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(disk)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(disk), str(folder)], check=True, timeout=60)
    try:
        engine: TestEngine = request.param(folder / "e")
        with engine.running():
            busybox_image(engine)
            yield engine
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


def fill(file: Path) -> None:
    """Take all that is left, to the last block."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 20, 4096, 512):
            while True:
                try:
                    os.write(handle, bytes(size))
                except OSError:
                    break
    finally:
        os.close(handle)


async def start(runtime: RememberingRuntime, run: AppRun) -> None:
    await runtime.prepare(run)
    await runtime.freezable(run)
    await runtime.start(run)


async def test_a_full_disk_is_told_and_once_there_is_room_the_app_starts(
    small: TestEngine, tmp_path: Path
) -> None:
    main = ServiceSpec(name="main", image=BUSYBOX, argv=("sleep", "1000"), stop_grace=1.0)
    (tmp_path / "root").mkdir()
    spec = AppSpec(name="x", services=(main,))
    run = AppRun(group="group", app="app", epoch=1, spec=spec, volume_root=tmp_path / "root")
    with small.network():
        async with opened(small, tmp_path / "agent") as runtime:
            fill(small.folder / "filling")
            with pytest.raises(BackendError) as caught:
                await start(runtime, run)
            text = str(caught.value)
            assert f"{small.name} at {small.socket}" in text and "no space left on device" in text
            assert "is full: free some of it" in text and caught.value.retryable
            (small.folder / "filling").unlink()
            await start(runtime, run)
            assert (await seen(runtime, run)).running


@pytest.mark.parametrize(
    ("said", "engine", "setting"),
    [
        ("all predefined address pools have been fully subnetted", "docker", "default-address-pools"),
        ("could not find free subnet from subnet pools", "podman", "default_subnet_pools"),
    ],
)
def test_an_engine_without_room_for_a_network_is_told_how_to_have_more(
    said: str, engine: str, setting: str
) -> None:
    assert setting in advised(said, engine, "")
